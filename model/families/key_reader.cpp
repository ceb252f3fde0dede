#include "model/families/key_reader.h"

#include <algorithm>
#include <utility>

namespace moe {
namespace {

std::string Allowed(IntRange range) { return Cat("a whole number from ", range.min, " to ", range.max); }
std::string Allowed(RealRange range) { return Cat("a number from ", range.min, " to ", range.max); }

bool Contains(IntRange range, std::int64_t value) { return range.min <= value && value <= range.max; }
bool Contains(RealRange range, double value) {
  return range.min <= value && value <= range.max;  // not a number is in no range
}

/// The same JSON value; 1 and 1.0 are.
bool Equal(const JsonValue& a, const JsonValue& b) {
  if (const auto number = a.AsReal()) return number == b.AsReal();
  return !b.AsReal().has_value() && a.Excerpt() == b.Excerpt();
}

std::optional<std::size_t> IndexOf(const JsonValue& value, std::span<const std::string_view> choices) {
  const std::string* text = value.AsString();
  const auto it = text == nullptr ? choices.end() : std::ranges::find(choices, *text);
  return it == choices.end() ? std::nullopt : std::optional(static_cast<std::size_t>(it - choices.begin()));
}

bool IsNeutral(const JsonValue& value, const MathematicalKey& key) {
  if (value.is_null()) return true;
  return std::ranges::any_of(key.neutral, [&](std::string_view text) {
    const Result<JsonValue> neutral = ParseJson(text);
    MOE_CHECK(neutral.ok(), text);
    return Equal(value, *neutral);
  });
}

}  // namespace

KeyReader::KeyReader(const JsonValue& object, std::string file, std::string prefix)
    : object_(&object), file_(std::move(file)), prefix_(std::move(prefix)) {
  MOE_CHECK(object.AsObject() != nullptr);
}

const JsonValue* KeyReader::Read(std::string_view key) {
  read_.emplace(key);
  const JsonValue* value = object_->Find(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

void KeyReader::Fail(const Status& status) {
  if (status_.ok()) status_ = status;
}

void KeyReader::Fail(std::string_view message) { Fail(InvalidArgument(file_, ": ", message)); }

void KeyReader::Refuse(std::string_view key, std::string_view allowed) {
  const JsonValue* value = object_->Find(key);
  if (value == nullptr) return Missing(key);
  Fail(Cat(prefix_, key, " is ", value->Excerpt(), ", not ", allowed));
}

void KeyReader::Missing(std::string_view key) {
  const bool is_null = object_->Find(key) != nullptr;
  Fail(Cat("key ", prefix_, key, is_null ? " is null" : " is missing"));
}

template <typename Value>
std::optional<Value> KeyReader::Check(std::string_view key, std::optional<Value> value, bool in_range,
                                      std::string_view allowed) {
  if (value.has_value() && in_range) return value;
  Refuse(key, allowed);
  return std::nullopt;
}

std::optional<int> KeyReader::OptionalInt(std::string_view key, IntRange range) {
  const JsonValue* value = Read(key);
  if (value == nullptr) return std::nullopt;
  const auto number = value->AsInt();
  if (!Check(key, number, number.has_value() && Contains(range, *number), Allowed(range))) return std::nullopt;
  return static_cast<int>(*number);
}

std::optional<double> KeyReader::OptionalReal(std::string_view key, RealRange range) {
  const JsonValue* value = Read(key);
  if (value == nullptr) return std::nullopt;
  const auto number = value->AsReal();
  return Check(key, number, number.has_value() && Contains(range, *number), Allowed(range));
}

int KeyReader::Int(std::string_view key, IntRange range) {
  if (const auto value = OptionalInt(key, range)) return *value;
  Missing(key);
  return static_cast<int>(range.min);
}

double KeyReader::Real(std::string_view key, RealRange range) {
  if (const auto value = OptionalReal(key, range)) return *value;
  Missing(key);
  return range.min;
}

std::size_t KeyReader::Choice(std::string_view key, std::span<const std::string_view> choices) {
  if (const auto choice = OptionalChoice(key, choices)) return *choice;
  Missing(key);
  return 0;
}

std::optional<int> KeyReader::NullableInt(std::string_view key, IntRange range) {
  if (!Has(key)) Missing(key);
  return OptionalInt(key, range);
}

std::optional<bool> KeyReader::OptionalBool(std::string_view key) {
  const JsonValue* value = Read(key);
  if (value == nullptr) return std::nullopt;
  const bool* flag = value->AsBool();
  return Check(key, flag == nullptr ? std::nullopt : std::optional(*flag), flag != nullptr, "true or false");
}

std::optional<bool> KeyReader::OptionalTruth(std::string_view key) {
  const JsonValue* value = Read(key);
  if (value == nullptr) return std::nullopt;
  if (const auto number = value->AsReal()) return *number != 0;
  const bool* flag = value->AsBool();
  return Check(key, flag == nullptr ? std::nullopt : std::optional(*flag), flag != nullptr, "true, false or a number");
}

std::optional<std::string> KeyReader::OptionalString(std::string_view key) {
  const JsonValue* value = Read(key);
  if (value == nullptr) return std::nullopt;
  const std::string* text = value->AsString();
  return Check(key, text == nullptr ? std::nullopt : std::optional(*text), text != nullptr, "a string");
}

const JsonValue::Array* KeyReader::List(std::string_view key, const JsonValue& value) {
  const JsonValue::Array* array = value.AsArray();
  if (array == nullptr || array->size() <= kMaxListLength) return array;
  Refuse(key, Cat("a list of at most ", kMaxListLength, " entries, but of ", array->size()));
  return nullptr;
}

std::vector<std::string> KeyReader::OptionalStrings(std::string_view key) {
  const JsonValue* value = Read(key);
  if (value == nullptr) return {};
  std::vector<std::string> texts;
  if (const JsonValue::Array* array = List(key, *value)) {
    for (const JsonValue& item : *array) {
      if (const std::string* text = item.AsString()) texts.push_back(*text);
    }
    if (texts.size() == array->size()) return texts;
  }
  Refuse(key, "a list of strings");
  return {};
}

std::optional<std::vector<int>> KeyReader::OptionalInts(std::string_view key, IntRange range) {
  const JsonValue* value = Read(key);
  if (value == nullptr) return std::nullopt;
  std::vector<int> numbers;
  if (const JsonValue::Array* array = List(key, *value)) {
    for (const JsonValue& item : *array) {
      const auto number = item.AsInt();
      if (number.has_value() && Contains(range, *number)) numbers.push_back(static_cast<int>(*number));
    }
    if (numbers.size() == array->size()) return numbers;
  }
  Refuse(key, Cat("a list of whole numbers from ", range.min, " to ", range.max));
  return std::nullopt;
}

std::optional<std::vector<std::uint32_t>> KeyReader::OptionalTokenIds(std::string_view key, int vocab_size) {
  const JsonValue* value = Read(key);
  if (value == nullptr) return std::nullopt;
  const JsonValue::Array one = {*value};
  const JsonValue::Array* items = List(key, *value);
  std::vector<std::uint32_t> ids;
  for (const JsonValue& item : items == nullptr ? one : *items) {
    const auto id = item.AsInt();
    if (!id.has_value() || !Contains(IntRange{.min = 0, .max = vocab_size - 1}, *id)) {
      Refuse(key, Cat("a token id, or a list of them, from 0 to ", vocab_size - 1, " (vocab_size ", vocab_size, ")"));
      return std::nullopt;
    }
    ids.push_back(static_cast<std::uint32_t>(*id));
  }
  return ids;
}

std::optional<KeyReader> KeyReader::OptionalObject(std::string_view key) {
  const JsonValue* value = Read(key);
  if (value == nullptr) return std::nullopt;
  if (value->AsObject() == nullptr) {
    Refuse(key, "an object");
    return std::nullopt;
  }
  return KeyReader(*value, file_, Cat(prefix_, key, "."));
}

void KeyReader::UnknownChoice(const std::string& name, const JsonValue& value,
                              std::span<const std::string_view> choices) {
  std::string allowed;
  for (const std::string_view choice : choices) allowed += Cat(allowed.empty() ? "" : ", ", choice);
  Fail(Cat(prefix_, name, " ", value.Excerpt(), " is unknown (", allowed, ")"));
}

std::optional<std::size_t> KeyReader::OptionalChoice(std::string_view key, std::span<const std::string_view> choices) {
  const JsonValue* value = Read(key);
  if (value == nullptr) return std::nullopt;
  const auto choice = IndexOf(*value, choices);
  if (!choice.has_value()) UnknownChoice(std::string(key), *value, choices);
  return choice;
}

std::optional<std::vector<std::size_t>> KeyReader::OptionalChoices(std::string_view key,
                                                                   std::span<const std::string_view> choices) {
  const JsonValue* value = Read(key);
  if (value == nullptr) return std::nullopt;
  const JsonValue::Array* array = List(key, *value);
  if (array == nullptr) {
    Refuse(key, "a list of names");
    return std::nullopt;
  }
  std::vector<std::size_t> indices;
  for (const JsonValue& item : *array) {
    const auto choice = IndexOf(item, choices);
    if (!choice.has_value()) {
      UnknownChoice(Cat(key, "[", indices.size(), "]"), item, choices);
      return std::nullopt;
    }
    indices.push_back(*choice);
  }
  return indices;
}

void KeyReader::CheckUnread(std::span<const std::string_view> harmless, std::span<const MathematicalKey> mathematical,
                            std::vector<std::string>& warnings) {
  for (const JsonValue::Member& member : *object_->AsObject()) {
    if (read_.contains(member.key) || std::ranges::find(harmless, member.key) != harmless.end()) continue;
    const auto key = std::ranges::find(mathematical, member.key, &MathematicalKey::key);
    if (key == mathematical.end()) {
      warnings.push_back(Cat(file_, ": key ", prefix_, Printable(member.key), " is unknown and ignored"));
    } else if (!IsNeutral(member.value, *key)) {
      std::string allowed = "absent";
      for (const std::string_view text : key->neutral) allowed += Cat(" or ", text);
      Refuse(member.key, Cat(allowed, " (nothing else is implemented for this model_type)"));
    }
  }
}

}  // namespace moe
