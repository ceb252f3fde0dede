#include "model/config.h"

#include <array>
#include <cmath>
#include <numbers>
#include <system_error>
#include <utility>

#include "model/families/decoder_common.h"
#include "model/families/family.h"
#include "model/json.h"

namespace moe {
namespace {

const Family* ReadFamily(KeyReader& keys) {
  const auto model_type = keys.OptionalString("model_type");
  if (!model_type.has_value()) {
    keys.Fail("key model_type is missing");
    return nullptr;
  }
  const Family* family = FindFamily(*model_type);
  if (family == nullptr) {
    std::string known;
    for (const Family* other : Families()) known += Cat(known.empty() ? "" : ", ", other->model_type);
    keys.Fail(Cat("model_type \"", Printable(*model_type), "\" is unknown (", known, ")"));
  }
  return family;
}

/// `dtype` or the older `torch_dtype`; absent means float32, as published software takes it.
WeightType ReadStoredType(KeyReader& keys) {
  constexpr std::array<std::string_view, 3> kNames = {"float32", "bfloat16", "float16"};
  constexpr std::array<WeightType, 3> kTypes = {WeightType::kF32, WeightType::kBf16, WeightType::kF16};
  const auto type = keys.OptionalChoice("dtype", kNames);
  const auto older = keys.OptionalChoice("torch_dtype", kNames);
  if (type.has_value() && older.has_value() && type != older) {
    keys.Refuse("torch_dtype", Cat(kNames[*type], ", as dtype says"));
  }
  const auto either = type.has_value() ? type : older;
  return either.has_value() ? kTypes[*either] : WeightType::kF32;
}

Result<ModelConfig> ParseConfig(const JsonValue& root, const std::string& file) {
  if (root.AsObject() == nullptr) return InvalidArgument(file, " is ", root.Excerpt(), ", not a JSON object");
  KeyReader keys(root, file);
  ModelConfig config;
  const Family* family = ReadFamily(keys);
  if (family == nullptr) return keys.status();

  config.model_type = family->model_type;
  family->parse(keys, config);
  const auto architectures = keys.OptionalStrings("architectures");
  config.architecture = architectures.empty() ? std::string(family->architecture) : architectures.front();
  config.stored_type = ReadStoredType(keys);
  config.eos_token_ids =
      keys.OptionalTokenIds("eos_token_id", config.vocab_size).value_or(std::vector<std::uint32_t>{});

  std::vector<std::string_view> harmless(HarmlessKeys().begin(), HarmlessKeys().end());
  harmless.insert(harmless.end(), family->harmless.begin(), family->harmless.end());
  keys.CheckUnread(harmless, family->mathematical, config.warnings);
  if (!keys.status().ok()) return keys.status();
  return config;
}

}  // namespace

std::vector<double> RopeSpec::Frequencies() const {
  std::vector<double> frequencies;
  for (int i = 0; i < width / 2; ++i) {
    const double base = std::pow(theta, -2.0 * i / width);
    double frequency = base;
    if (scaling == RopeScaling::kLinear) frequency = base / factor;
    if (scaling == RopeScaling::kLlama3) {
      // How often the angle turns within the original context decides: rarely, scaled; often, kept; else between. With
      // low = high (Llama 4) only the one point is between.
      const double turns = original_max_positions * base / (2 * std::numbers::pi);
      if (turns < low_freq_factor) {
        frequency = base / factor;
      } else if (turns <= high_freq_factor) {
        const double span = high_freq_factor - low_freq_factor;
        const double kept = span > 0 ? (turns - low_freq_factor) / span : 1;
        frequency = (1 - kept) * base / factor + kept * base;
      }
    }
    frequencies.push_back(frequency);
  }
  return frequencies;
}

int ModelConfig::num_experts() const {
  for (const LayerSpec& layer : layers) {
    if (layer.moe.has_value()) return layer.moe->gate.num_experts;
  }
  return 0;
}

int ModelConfig::experts_per_token() const {
  for (const LayerSpec& layer : layers) {
    if (layer.moe.has_value()) return layer.moe->gate.experts_per_token;
  }
  return 0;
}

std::vector<int> ModelConfig::sparse_layers() const {
  std::vector<int> sparse;
  for (int i = 0; i < num_layers(); ++i) {
    if (layers[static_cast<std::size_t>(i)].moe.has_value()) sparse.push_back(i);
  }
  return sparse;
}

Result<ModelConfig> ReadModelConfigFile(const std::filesystem::path& file) {
  MOE_ASSIGN_OR_RETURN(const JsonValue root, ReadJsonFile(file, kMaxConfigBytes));
  return ParseConfig(root, file.filename().string());
}

Result<ModelConfig> ReadModelConfig(const std::filesystem::path& directory) {
  std::error_code error;
  const auto status = std::filesystem::status(directory, error);
  if (!std::filesystem::exists(status)) return NotFound("model folder ", directory.string(), " does not exist");
  if (!std::filesystem::is_directory(status)) return InvalidArgument("model ", directory.string(), " is not a folder");
  if (!std::filesystem::exists(directory / "config.json", error)) {
    return NotFound("model folder ", directory.string(), " has no config.json");
  }
  MOE_ASSIGN_OR_RETURN(ModelConfig config, ReadModelConfigFile(directory / "config.json"));

  constexpr const char* kGeneration = "generation_config.json";
  if (!std::filesystem::exists(directory / kGeneration, error)) return config;
  MOE_ASSIGN_OR_RETURN(const JsonValue root, ReadJsonFile(directory / kGeneration, kMaxConfigBytes));
  if (root.AsObject() == nullptr) return InvalidArgument(kGeneration, " is ", root.Excerpt(), ", not a JSON object");
  KeyReader keys(root, kGeneration);
  auto ids = keys.OptionalTokenIds("eos_token_id", config.vocab_size);
  if (!keys.status().ok()) return keys.status();
  if (ids.has_value()) config.eos_token_ids = *std::move(ids);
  return config;
}

}  // namespace moe
