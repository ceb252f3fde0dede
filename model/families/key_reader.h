// Typed, ranged reads of a configuration's keys. A family reads what it needs one line a key; errors name the file, the
// key, the value and what was allowed. Every key that is read is remembered, so that what nobody read can be found.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"
#include "model/json.h"

namespace moe {

/// Both ends allowed.
struct IntRange {
  std::int64_t min = 1;
  std::int64_t max = std::numeric_limits<int>::max();  // at most int's
};
struct RealRange {
  double min = 0;
  double max = 0;
};

/// The most entries of a list: twice the most layers, for which nearly all lists are. Longer ones are refused, so that
/// a search through one for every layer takes no time.
inline constexpr std::size_t kMaxListLength = 1 << 12;

/// A key that changes what the model computes and that a family does not compute: refused unless absent, null or one of
/// the neutral values (JSON texts).
struct MathematicalKey {
  std::string_view key;
  std::vector<std::string_view> neutral;
};

/// Failures are sticky: after the first one, reads return some value in range and status() says what was wrong. Call
/// status() before trusting any of them.
class KeyReader {
 public:
  /// `file` is for messages; `object` must outlive this. `prefix` ("rope_scaling.") goes before keys in messages.
  KeyReader(const JsonValue& object, std::string file, std::string prefix = "");

  /// Required; absent and null are errors.
  int Int(std::string_view key, IntRange range);
  double Real(std::string_view key, RealRange range);
  /// An index of `choices`.
  std::size_t Choice(std::string_view key, std::span<const std::string_view> choices);

  /// Required, but null says something: nothing then.
  std::optional<int> NullableInt(std::string_view key, IntRange range);

  /// Nothing when absent or null.
  std::optional<int> OptionalInt(std::string_view key, IntRange range);
  std::optional<double> OptionalReal(std::string_view key, RealRange range);
  std::optional<bool> OptionalBool(std::string_view key);
  /// true, false, or a number, of which 0 is false.
  std::optional<bool> OptionalTruth(std::string_view key);
  std::optional<std::string> OptionalString(std::string_view key);
  std::vector<std::string> OptionalStrings(std::string_view key);
  std::optional<std::vector<int>> OptionalInts(std::string_view key, IntRange range);
  /// A whole number or a list of them.
  std::optional<std::vector<std::uint32_t>> OptionalTokenIds(std::string_view key, int vocab_size);
  /// The object under `key` as a reader of its own, whose failures are its own.
  std::optional<KeyReader> OptionalObject(std::string_view key);
  /// An index of `choices`.
  std::optional<std::size_t> OptionalChoice(std::string_view key, std::span<const std::string_view> choices);
  /// A list of `choices`, as indices.
  std::optional<std::vector<std::size_t>> OptionalChoices(std::string_view key,
                                                          std::span<const std::string_view> choices);

  /// Whether the key is there, if only as null.
  bool Has(std::string_view key) const { return object_->Find(key) != nullptr; }
  /// Counts keys as read whose values mean nothing beside those of others.
  void Ignore(std::initializer_list<std::string_view> keys) { read_.insert(keys.begin(), keys.end()); }

  /// Records that a required key is missing, when there is no failure yet.
  void Missing(std::string_view key);
  /// Records "FILE: PREFIXKEY is VALUE, not ALLOWED" (KEY of this object) when there is no failure yet.
  void Refuse(std::string_view key, std::string_view allowed);
  /// Records another failure when there is none yet: of a part's reader, or a message that goes after "FILE: ".
  void Fail(const Status& status);
  void Fail(std::string_view message);

  /// Keys that nobody read, against the two other lists: a mathematical one that is not neutral is a failure, a
  /// harmless one is passed over, any other gets one sentence in `warnings`.
  void CheckUnread(std::span<const std::string_view> harmless, std::span<const MathematicalKey> mathematical,
                   std::vector<std::string>& warnings);

  const Status& status() const { return status_; }
  const std::string& file() const { return file_; }
  const std::string& prefix() const { return prefix_; }

 private:
  /// The value, remembered as read; null when absent or null.
  const JsonValue* Read(std::string_view key);
  template <typename Value>
  std::optional<Value> Check(std::string_view key, std::optional<Value> value, bool in_range, std::string_view allowed);
  /// The list that `value` of `key` is, null when it is none, or refused for its length.
  const JsonValue::Array* List(std::string_view key, const JsonValue& value);
  /// The failure of an unknown name, with the known ones.
  void UnknownChoice(const std::string& name, const JsonValue& value, std::span<const std::string_view> choices);

  const JsonValue* object_;
  std::string file_;
  std::string prefix_;
  std::set<std::string, std::less<>> read_;
  Status status_;
};

}  // namespace moe
