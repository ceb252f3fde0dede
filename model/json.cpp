#include "model/json.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <system_error>

namespace moe {
namespace {

// Enough for any configuration; bounds the recursion of ~JsonValue and Append.
constexpr std::size_t kMaxDepth = 64;

/// Builds a JsonValue from nlohmann's events, which report errors without exceptions.
class Builder : public nlohmann::json_sax<nlohmann::json> {
 public:
  bool null() override { return Add(JsonValue(nullptr)); }
  bool boolean(bool value) override { return Add(JsonValue(value)); }
  bool number_integer(number_integer_t value) override { return Add(JsonValue(std::int64_t{value})); }
  bool number_unsigned(number_unsigned_t value) override {
    if (value <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
      return Add(JsonValue(static_cast<std::int64_t>(value)));
    }
    return Add(JsonValue(std::uint64_t{value}));
  }
  bool number_float(number_float_t value, const string_t&) override { return Add(JsonValue(double{value})); }
  bool string(string_t& value) override { return Add(JsonValue(std::move(value))); }
  bool binary(binary_t&) override { return Fail("binary value"); }
  bool start_object(std::size_t) override { return Open(true); }
  bool start_array(std::size_t) override { return Open(false); }
  bool end_array() override {
    JsonValue value{JsonValue::Variant(std::move(open_.back().array))};
    open_.pop_back();
    return Add(std::move(value));
  }
  bool key(string_t& value) override {
    open_.back().keys.push_back(std::move(value));
    return true;
  }
  bool end_object() override {
    Frame frame = std::move(open_.back());
    open_.pop_back();
    JsonValue::Object object;
    object.reserve(frame.keys.size());
    for (std::size_t i = 0; i < frame.keys.size(); ++i) {
      object.push_back({std::move(frame.keys[i]), std::move(frame.array[i])});
    }
    std::ranges::sort(object, {}, &JsonValue::Member::key);
    const auto twice = std::ranges::adjacent_find(object, {}, &JsonValue::Member::key);
    if (twice != object.end()) return Fail(Cat("key \"", Printable(twice->key), "\" is there twice"));
    return Add(JsonValue(JsonValue::Variant(std::move(object))));
  }
  bool parse_error(std::size_t, const std::string&, const nlohmann::json::exception& error) override {
    std::string_view what = error.what();
    if (const auto prefix = what.find("] "); prefix != std::string_view::npos) what.remove_prefix(prefix + 2);
    return Fail(Cat("not JSON, ", Printable(what, 200)));
  }

  JsonValue TakeRoot() { return std::move(root_); }
  const std::string& error() const { return error_; }

 private:
  struct Frame {
    bool is_object = false;
    std::vector<std::string> keys;  // of an object, beside the values in `array`
    JsonValue::Array array;
  };

  bool Open(bool is_object) {
    if (open_.size() == kMaxDepth) return Fail(Cat("nested more than ", kMaxDepth, " deep"));
    open_.push_back({.is_object = is_object, .keys = {}, .array = {}});
    return true;
  }
  bool Add(JsonValue value) {
    if (open_.empty()) {
      root_ = std::move(value);
    } else {
      open_.back().array.push_back(std::move(value));
    }
    return true;
  }
  bool Fail(std::string error) {
    error_ = std::move(error);
    return false;
  }

  std::vector<Frame> open_;
  JsonValue root_;
  std::string error_;
};

void Append(const JsonValue& value, std::size_t max_length, std::string& out);

void AppendItem(const JsonValue& value, std::size_t max_length, bool first, std::string& out) {
  if (!first) out += ", ";
  Append(value, max_length, out);
}

/// Appends JSON text and gives up soon after `max_length`.
void Append(const JsonValue& value, std::size_t max_length, std::string& out) {
  if (out.size() > max_length) return;
  if (value.is_null()) {
    out += "null";
  } else if (const bool* flag = value.AsBool()) {
    out += *flag ? "true" : "false";
  } else if (const auto integer = value.AsInt()) {
    out += Cat(*integer);
  } else if (const auto big = value.AsUnsigned()) {
    out += Cat(*big);
  } else if (const auto real = value.AsReal()) {
    std::array<char, 32> digits{};  // as short as reads back the same
    out.append(digits.data(), std::to_chars(digits.data(), digits.data() + digits.size(), *real).ptr);
  } else if (const std::string* text = value.AsString()) {
    out += Cat('"', Printable(*text, max_length), '"');
  } else if (const JsonValue::Array* array = value.AsArray()) {
    out += "[";
    for (std::size_t i = 0; i < array->size() && out.size() <= max_length; ++i) {
      AppendItem((*array)[i], max_length, i == 0, out);
    }
    out += "]";
  } else if (const JsonValue::Object* object = value.AsObject()) {
    out += "{";
    for (std::size_t i = 0; i < object->size() && out.size() <= max_length; ++i) {
      if (i != 0) out += ", ";
      out += Cat('"', Printable((*object)[i].key, max_length), "\": ");
      AppendItem((*object)[i].value, max_length, true, out);
    }
    out += "}";
  }
}

}  // namespace

// Here, where Member is complete.
JsonValue::JsonValue() = default;
JsonValue::JsonValue(Variant value) : value_(std::move(value)) {}
JsonValue::JsonValue(const JsonValue& other) = default;
JsonValue::JsonValue(JsonValue&& other) noexcept = default;
JsonValue& JsonValue::operator=(const JsonValue& other) = default;
JsonValue& JsonValue::operator=(JsonValue&& other) noexcept = default;
JsonValue::~JsonValue() = default;

std::optional<std::int64_t> JsonValue::AsInt() const {
  if (const auto* value = std::get_if<std::int64_t>(&value_)) return *value;
  return std::nullopt;
}

std::optional<std::uint64_t> JsonValue::AsUnsigned() const {
  if (const auto* value = std::get_if<std::uint64_t>(&value_)) return *value;
  if (const auto value = AsInt(); value.has_value() && *value >= 0) return static_cast<std::uint64_t>(*value);
  return std::nullopt;
}

std::optional<double> JsonValue::AsReal() const {
  if (const auto* value = std::get_if<double>(&value_)) return *value;
  if (const auto* value = std::get_if<std::uint64_t>(&value_)) return static_cast<double>(*value);
  if (const auto value = AsInt()) return static_cast<double>(*value);
  return std::nullopt;
}

const JsonValue* JsonValue::Find(std::string_view key) const {
  const Object* object = AsObject();
  if (object == nullptr) return nullptr;
  const auto it = std::ranges::lower_bound(*object, key, {}, &Member::key);
  return it == object->end() || it->key != key ? nullptr : &it->value;
}

std::string JsonValue::Excerpt() const {
  std::string out;
  Append(*this, 60, out);
  return out.size() <= 80 ? out : Cat(out.substr(0, 60), "…");
}

std::string Printable(std::string_view text, std::size_t max_length) {
  std::string out(text.substr(0, max_length));
  for (char& c : out) {
    if (c < ' ' || c > '~') c = '?';
  }
  if (text.size() > max_length) out += "…";
  return out;
}

Result<JsonValue> ParseJson(std::string_view text) {
  Builder builder;
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &builder)) return InvalidArgument(builder.error());
  return builder.TakeRoot();
}

Result<std::string> ReadSmallFile(const std::filesystem::path& path, std::uint64_t max_bytes) {
  const std::string name = path.filename().string();
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) return NotFound(path.string(), " does not exist");
  if (!std::filesystem::is_regular_file(status)) return InvalidArgument(path.string(), " is not a file");
  const std::uint64_t bytes = std::filesystem::file_size(path, error);
  if (error) return InvalidArgument(name, " cannot be read: ", error.message());
  if (bytes > max_bytes) return InvalidArgument(name, " has ", bytes, " bytes (at most ", max_bytes, ")");
  std::string text(bytes, '\0');
  std::ifstream in(path, std::ios::binary);
  in.read(text.data(), static_cast<std::streamsize>(bytes));
  if (!in) return InvalidArgument(path.string(), " cannot be read");
  return text;
}

Result<JsonValue> ReadJsonFile(const std::filesystem::path& path, std::uint64_t max_bytes) {
  MOE_ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(path, max_bytes));
  const std::string name = path.filename().string();
  if (text.empty()) return InvalidArgument(name, " is empty");
  Result<JsonValue> value = ParseJson(text);
  if (!value.ok()) return value.status().WithContext(name);
  return value;
}

}  // namespace moe
