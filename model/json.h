// Strict JSON: duplicate keys, deep nesting and anything after the value are errors. Numbers keep the integers apart.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "core/status.h"

namespace moe {

/// One JSON value; copies deeply.
class JsonValue {
 public:
  struct Member;
  using Array = std::vector<JsonValue>;
  using Object = std::vector<Member>;  // ascending by key, no key twice
  /// Integers above the signed range are std::uint64_t; numbers written with a fraction or an exponent are double.
  using Variant = std::variant<std::nullptr_t, bool, std::int64_t, std::uint64_t, double, std::string, Array, Object>;

  JsonValue();
  explicit JsonValue(Variant value);
  JsonValue(const JsonValue& other);
  JsonValue(JsonValue&& other) noexcept;
  JsonValue& operator=(const JsonValue& other);
  JsonValue& operator=(JsonValue&& other) noexcept;
  ~JsonValue();

  bool is_null() const { return std::holds_alternative<std::nullptr_t>(value_); }
  const bool* AsBool() const { return std::get_if<bool>(&value_); }
  const std::string* AsString() const { return std::get_if<std::string>(&value_); }
  const Array* AsArray() const { return std::get_if<Array>(&value_); }
  const Object* AsObject() const { return std::get_if<Object>(&value_); }
  /// Integers only; nothing for 1.0 and for what does not fit.
  std::optional<std::int64_t> AsInt() const;
  std::optional<std::uint64_t> AsUnsigned() const;
  /// Any number.
  std::optional<double> AsReal() const;

  /// The member named `key` of an object; null when there is none or this is no object.
  const JsonValue* Find(std::string_view key) const;

  /// As JSON text cut to about 60 characters, for messages.
  std::string Excerpt() const;

 private:
  Variant value_;  // null at first
};

struct JsonValue::Member {
  std::string key;
  JsonValue value;
};

/// `text` cut to `max_length` bytes, with a ? for every byte that is not printable ASCII: names of tensors and keys
/// come from files.
std::string Printable(std::string_view text, std::size_t max_length = 120);

/// INVALID_ARGUMENT with the place and the reason, in printable characters.
Result<JsonValue> ParseJson(std::string_view text);

/// For config.json and its like; published ones have a few KB.
inline constexpr std::uint64_t kMaxConfigBytes = 1 << 20;

/// The bytes of a regular file. NOT_FOUND or INVALID_ARGUMENT naming the file (without its folder).
Result<std::string> ReadSmallFile(const std::filesystem::path& path, std::uint64_t max_bytes);

/// ReadSmallFile and ParseJson; errors name the file.
Result<JsonValue> ReadJsonFile(const std::filesystem::path& path, std::uint64_t max_bytes);

}  // namespace moe
