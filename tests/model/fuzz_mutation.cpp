#include "tests/model/fuzz_mutation.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "core/text.h"
#include "tests/model/random_config.h"

namespace moe {
namespace {

using nlohmann::json;

// The ends of types and of the ranges that readers allow, values of every type, and lists as keys have them.
constexpr const char* kValues[] = {
    "null",
    "true",
    "false",
    "0",
    "-0",
    "0.0",
    "-1",
    "1",
    "1.0",
    "2",
    "3",
    "4",
    "5",
    "7",
    "8",
    "16",
    "31",
    "32",
    "33",
    "64",
    "100",
    "127",
    "128",
    "129",
    "1000",
    "2047",
    "2048",
    "2049",
    "4096",
    "4097",
    "8191",
    "8192",
    "8193",
    "65536",
    "65537",
    "131072",
    "131073",
    "524288",
    "524289",
    "16777216",
    "16777217",
    "1073741824",
    "1073741825",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "-2147483649",
    "-9223372036854775808",
    "1e-6",
    "1e-7",
    "1e-12",
    "1e-320",
    "0.1",
    "0.3",
    "0.5",
    "0.999999",
    "1.5",
    "2.5",
    "1e6",
    "1000000.1",
    "1e9",
    "1e15",
    "1e16",
    "1e38",
    "1e39",
    "1.7e308",
    "-1e308",
    "\"\"",
    "\"silu\"",
    "\"relu\"",
    "\"yarn\"",
    "\"linear\"",
    "\"default\"",
    "\"llama3\"",
    "\"mxfp4\"",
    "\"fp8\"",
    "\"sigmoid\"",
    "\"greedy\"",
    "\"noaux_tc\"",
    "\"group_limited_greedy\"",
    "\"bfloat16\"",
    "\"1\"",
    "\"F32\"",
    "\"F8_E4M3\"",
    "\"I64\"",
    "\"\\u0000\"",
    "\"\\u00e9\\ud83d\\ude00\"",
    "\"\\n\\\"\"",
    "[]",
    "{}",
    "[0]",
    "[1]",
    "[-1]",
    "[1, 0, 1]",
    "[128, 128]",
    "[0, 18446744073709551615]",
    "[2147483648]",
    "[null]",
    "[[]]",
    "[1.5]",
    "[\"full_attention\"]",
    "{\"rope_type\": \"yarn\", \"factor\": 4}",
    "{\"rope_type\": \"linear\"}",
    "{\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1, \"high_freq_factor\": 1}",
    "{\"type\": \"yarn\", \"factor\": 1e6, \"mscale\": 1000, \"mscale_all_dim\": 1000}",
    "{\"quant_method\": \"fp8\", \"weight_block_size\": [128, 128]}",
    "{\"quant_method\": \"mxfp4\"}"};

json AnyValue(std::mt19937_64& random) {
  switch (Uniform(random, 0, 9)) {
    case 0: return Uniform(random, 0, 4096);
    case 1: return static_cast<std::int64_t>(random()) >> Uniform(random, 0, 63);
    case 2: return std::int64_t{1} << Uniform(random, 0, 62);
    case 3: {
      const json item = json::parse(kValues[random() % std::size(kValues)]);
      json list = json::array();
      for (std::int64_t n = Uniform(random, 0, OneIn(random, 20) ? 3000 : 20); n > 0; --n) list.push_back(item);
      return list;
    }
    case 4:
      if (OneIn(random, 4)) return std::string(static_cast<std::size_t>(Uniform(random, 1, 3000)), 'x');
      [[fallthrough]];
    default: return json::parse(kValues[random() % std::size(kValues)]);
  }
}

void Collect(json& value, std::vector<json*>& nodes) {
  nodes.push_back(&value);
  if (!value.is_structured()) return;
  for (json& inner : value) Collect(inner, nodes);
}

json::iterator AnyMember(json& container, std::mt19937_64& random) {
  return std::next(container.begin(), static_cast<std::ptrdiff_t>(random() % container.size()));
}

json& AnyOf(json& container, std::mt19937_64& random) { return *AnyMember(container, random); }

void MutateList(json& list, std::mt19937_64& random) {
  const std::size_t at = list.empty() ? 0 : random() % list.size();
  switch (Uniform(random, 0, 4)) {
    case 0: list.push_back(AnyValue(random)); break;
    case 1:
      if (!list.empty()) list.erase(at);
      break;
    case 2:
      if (!list.empty()) list.push_back(json(list[at]));
      break;
    default:
      if (!list.empty()) list[at] = AnyValue(random);
      break;
  }
}

void MutateObject(json& object, const std::vector<json>& donors, std::mt19937_64& random) {
  if (object.empty()) {
    object[OneIn(random, 2) ? "factor" : "unheard_of"] = AnyValue(random);
    return;
  }
  const json::iterator member = AnyMember(object, random);
  switch (Uniform(random, 0, 9)) {
    case 0:
    case 1: object.erase(member); break;
    case 2: {  // renamed
      json value = std::move(*member);
      // A copy, for the name goes with the member.
      const std::string key = member.key();  // NOLINT(performance-unnecessary-copy-initialization)
      object.erase(key);
      object[OneIn(random, 3) || object.empty() ? key + "_" : AnyMember(object, random).key()] = value;
      break;
    }
    case 3: *member = json(AnyOf(object, random)); break;
    case 4:
    case 5: {  // what another model says
      json donor = donors[random() % donors.size()];
      if (donor.contains("text_config") && OneIn(random, 2)) donor = json(donor["text_config"]);
      const json::iterator theirs = AnyMember(donor, random);
      object[theirs.key()] = *theirs;
      break;
    }
    case 6: *member = json::object({{member.key(), *member}}); break;
    case 7: *member = json::array({*member}); break;
    default: *member = AnyValue(random); break;
  }
}

}  // namespace

void MutateJson(json& root, const std::vector<json>& donors, std::mt19937_64& random) {
  std::vector<json*> nodes;
  Collect(root, nodes);
  // The root has most members; the others get their share too.
  json& node = OneIn(random, 2) ? root : *nodes[random() % nodes.size()];
  if (node.is_object()) {
    MutateObject(node, donors, random);
  } else if (node.is_array()) {
    MutateList(node, random);
  } else {
    node = AnyValue(random);
  }
}

void MutateBytes(std::string& text, std::mt19937_64& random) {
  const auto place = [&] { return text.empty() ? 0 : random() % text.size(); };
  switch (Uniform(random, 0, 6)) {
    case 0:
      for (std::int64_t n = Uniform(random, 1, 8); n > 0 && !text.empty(); --n) {
        char& byte = text[place()];
        byte = static_cast<char>(byte ^ (1 << Uniform(random, 0, 7)));
      }
      break;
    case 1: text.resize(place()); break;
    case 2: text.erase(place(), static_cast<std::size_t>(Uniform(random, 1, 30))); break;
    case 3: text.insert(place(), text.substr(place(), static_cast<std::size_t>(Uniform(random, 1, 60)))); break;
    case 4: text.insert(place(), 1, static_cast<char>(random())); break;
    case 5:
      text.insert(place(), std::string(static_cast<std::size_t>(Uniform(random, 1, 400)), "[{\"0"[random() % 4]));
      break;
    default: {
      // A digit, which keeps numbers numbers.
      const std::size_t digit = text.find_first_of("0123456789", place());
      if (digit != std::string::npos) text.insert(digit, Cat(Uniform(random, 0, 99999)));
      break;
    }
  }
}

std::string WithDuplicateKey(const json& object, std::mt19937_64& random) {
  std::string text = object.dump();
  if (object.empty()) return text;
  const auto member = std::next(object.begin(), static_cast<std::ptrdiff_t>(random() % object.size()));
  const json value = OneIn(random, 2) ? *member : AnyValue(random);
  text.insert(1, Cat(json(member.key()).dump(), ": ", value.dump(), ", "));
  return text;
}

bool IsPrintable(const std::string& message) {
  std::string text = message;
  constexpr std::string_view kEllipsis = "…";
  for (std::size_t at = text.find(kEllipsis); at != std::string::npos; at = text.find(kEllipsis, at)) {
    text.erase(at, kEllipsis.size());
  }
  return std::ranges::all_of(text, [](char c) { return c >= ' ' && c <= '~'; });
}

}  // namespace moe
