#include "tests/reference/golden.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include "core/text.h"
#include "model/json.h"
#include "model/safetensors.h"

namespace moe {
namespace {

constexpr std::uint64_t kMaxGoldenBytes = 16 << 20;

// "Two errors of the size of fp32_noise plus room for other vector maths", and not less than this.
constexpr double kNoises = 8;
constexpr double kLeastTolerance = 1e-4;

const JsonValue& Member(const JsonValue& object, std::string_view key) {
  const JsonValue* value = object.Find(key);
  if (value == nullptr) throw std::runtime_error(Cat("golden.json has no key ", key));
  return *value;
}

double Number(const JsonValue& object, std::string_view key) { return Member(object, key).AsReal().value(); }

const JsonValue::Array& List(const JsonValue& object, std::string_view key) {
  const JsonValue::Array* list = Member(object, key).AsArray();
  if (list == nullptr) throw std::runtime_error(Cat("golden.json: ", key, " is not a list"));
  return *list;
}

std::vector<std::uint32_t> TokenIds(const JsonValue& object, std::string_view key) {
  std::vector<std::uint32_t> ids;
  for (const JsonValue& id : List(object, key)) ids.push_back(static_cast<std::uint32_t>(id.AsUnsigned().value()));
  return ids;
}

GoldenPrompt ReadPrompt(const JsonValue& object) {
  GoldenPrompt prompt{.ids = TokenIds(object, "ids"), .greedy = TokenIds(object, "greedy")};
  if (object.Find("argmax") != nullptr) prompt.argmax = TokenIds(object, "argmax");
  if (const JsonValue* dropped = object.Find("dropped_encoder_tokens")) {
    for (const JsonValue::Member& layer : *dropped->AsObject())
      prompt.dropped.emplace(std::stoi(layer.key), TokenIds(*dropped, layer.key));
  }
  return prompt;
}

double Tolerance(double noise) { return std::max(kNoises * noise, kLeastTolerance); }

std::map<std::string, GoldenTensor> ReadTensors(const std::filesystem::path& path) {
  const Result<std::string> read = ReadSmallFile(path, kMaxGoldenBytes);
  const std::string& file = *read;
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), sizeof(header_bytes));
  const std::string_view header = std::string_view(file).substr(kSafetensorsPrefixBytes, header_bytes);
  std::map<std::string, GoldenTensor> tensors;
  const auto infos = ParseSafetensorsHeader(header, file.size(), 0);
  for (const auto& [name, info] : *infos) {
    GoldenTensor tensor{.shape = info.shape};
    if (info.dtype == "F32") {
      tensor.floats.resize(info.elements());
      std::memcpy(tensor.floats.data(), file.data() + info.offset, info.bytes);
    } else if (info.dtype == "I32") {
      tensor.ints.resize(info.elements());
      std::memcpy(tensor.ints.data(), file.data() + info.offset, info.bytes);
    } else {
      throw std::runtime_error(Cat(name, " has dtype ", info.dtype));
    }
    tensors.emplace(name, std::move(tensor));
  }
  return tensors;
}

}  // namespace

const GoldenTensor& Golden::tensor(const std::string& name) const {
  const auto found = tensors.find(name);
  if (found == tensors.end()) throw std::runtime_error("golden.safetensors has no tensor " + name);
  return found->second;
}

Golden ReadGolden(const std::filesystem::path& folder) {
  const JsonValue json = *ReadJsonFile(folder / "golden.json", kMaxGoldenBytes);
  Golden golden{.logit_tolerance = Tolerance(Number(json, "fp32_noise")),
                .tensors = ReadTensors(folder / "golden.safetensors")};
  if (json.Find("fp32_noise_hidden") != nullptr) {
    golden.hidden_tolerance = Tolerance(Number(json, "fp32_noise_hidden"));
    golden.num_parameters = Member(json, "num_parameters").AsUnsigned().value();
  }
  for (const JsonValue& prompt : List(json, "prompts")) golden.prompts.push_back(ReadPrompt(prompt));
  return golden;
}

BundledGolden ReadBundledGolden(const std::filesystem::path& folder) {
  const JsonValue json = *ReadJsonFile(folder / "golden.json", kMaxGoldenBytes);
  BundledGolden golden;
  for (const JsonValue& prompt : List(json, "prompts"))
    golden.prompts.push_back({.ids = TokenIds(prompt, "prompt_ids"), .greedy = TokenIds(prompt, "greedy_ids")});
  const JsonValue& last = Member(json, "last_logits");
  golden.logits_prompt = TokenIds(last, "prompt_ids");
  for (const JsonValue& logit : List(last, "logits"))
    golden.logits.push_back(static_cast<float>(logit.AsReal().value()));
  golden.logit_tolerance = Tolerance(Number(last, "max_abs_difference_to_float64"));
  return golden;
}

}  // namespace moe
