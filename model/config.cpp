#include "model/config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <numbers>
#include <optional>
#include <system_error>
#include <utility>

#include "model/families/family.h"
#include "model/families/known_keys.h"
#include "model/json.h"

namespace moe {
namespace {

const Family* ReadFamily(KeyReader& keys) {
  const auto model_type = keys.OptionalString("model_type");
  if (!model_type.has_value()) {
    keys.Missing("model_type");
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

/// `dtype` or the older `torch_dtype`.
std::optional<WeightType> ReadStoredType(KeyReader& keys) {
  constexpr std::array<std::string_view, 3> kNames = {"float32", "bfloat16", "float16"};
  constexpr std::array<WeightType, 3> kTypes = {WeightType::kF32, WeightType::kBf16, WeightType::kF16};
  const auto type = keys.OptionalChoice("dtype", kNames);
  const auto older = keys.OptionalChoice("torch_dtype", kNames);
  if (type.has_value() && older.has_value() && type != older) {
    keys.Refuse("torch_dtype", Cat(kNames[*type], ", as dtype says"));
  }
  const auto either = type.has_value() ? type : older;
  return either.has_value() ? std::optional(kTypes[*either]) : std::nullopt;
}

/// FP8 in blocks of 128 × 128; how other software quantises activations is its own affair.
void CheckFp8(KeyReader& settings, std::vector<std::string>& warnings) {
  static const std::vector<MathematicalKey> mathematical = {{"fmt", {"\"e4m3\""}},
                                                            {"activation_scheme", {"\"dynamic\""}}};
  constexpr std::array<std::string_view, 3> kHarmless = {"modules_to_not_convert", "ignored_layers", "scale_fmt"};
  const auto block = settings.OptionalInts("weight_block_size", {});
  if (block != std::vector<int>{128, 128}) settings.Refuse("weight_block_size", "[128, 128]");
  settings.CheckUnread(kHarmless, mathematical, warnings);
}

void ReadEncoding(KeyReader& keys, const Family& family, ModelConfig& config) {
  auto settings = keys.OptionalObject("quantization_config");
  if (!settings.has_value()) return;
  if (family.encoding == StoredEncoding::kPlain) {
    return keys.Refuse("quantization_config", "absent (this model_type is read unquantised only)");
  }
  const bool fp8 = family.encoding == StoredEncoding::kFp8Blocks;
  const std::array<std::string_view, 1> methods = {fp8 ? "fp8" : "mxfp4"};
  (void)settings->Choice("quant_method", methods);
  if (fp8) CheckFp8(*settings, config.warnings);
  keys.Fail(settings->status());
  config.encoding = family.encoding;
}

/// What a configuration and the one inside it may both say; the inner one goes first.
struct SharedSettings {
  std::optional<WeightType> stored_type;
  std::optional<std::vector<std::uint32_t>> eos_token_ids;
};

void ReadKeys(KeyReader& keys, const Family& family, ModelConfig& config, SharedSettings& shared);

/// The configuration of the text model inside that of a larger one.
void ReadTextConfig(KeyReader& keys, const Family& family, ModelConfig& config, SharedSettings& shared) {
  auto text = keys.OptionalObject(family.text_key);
  if (!text.has_value()) return keys.Missing(family.text_key);
  const std::array<std::string_view, 1> model_types = {family.text_model_type};
  (void)text->OptionalChoice("model_type", model_types);
  const Family* text_family = FindFamily(family.text_model_type);
  MOE_CHECK(text_family != nullptr, family.text_model_type);
  ReadKeys(*text, *text_family, config, shared);
  keys.Fail(text->status());
}

void ReadKeys(KeyReader& keys, const Family& family, ModelConfig& config, SharedSettings& shared) {
  if (!family.text_key.empty()) ReadTextConfig(keys, family, config, shared);
  config.model_type = family.model_type;
  config.servable = family.servable;
  family.parse(keys, config);
  const auto architectures = keys.OptionalStrings("architectures");
  config.architecture = architectures.empty() ? std::string(family.architecture) : architectures.front();
  ReadEncoding(keys, family, config);
  const auto stored_type = ReadStoredType(keys);
  if (!shared.stored_type.has_value()) shared.stored_type = stored_type;
  auto eos_token_ids = keys.OptionalTokenIds("eos_token_id", config.vocab_size);
  if (!shared.eos_token_ids.has_value()) shared.eos_token_ids = std::move(eos_token_ids);

  std::vector<std::string_view> harmless(HarmlessKeys().begin(), HarmlessKeys().end());
  harmless.insert(harmless.end(), family.harmless.begin(), family.harmless.end());
  std::vector<MathematicalKey> mathematical(family.mathematical.begin(), family.mathematical.end());
  mathematical.insert(mathematical.end(), MathematicalKeys().begin(), MathematicalKeys().end());
  keys.CheckUnread(harmless, mathematical, config.warnings);
}

Result<ModelConfig> ParseConfig(const JsonValue& root, const std::string& file) {
  if (root.AsObject() == nullptr) return InvalidArgument(file, " is ", root.Excerpt(), ", not a JSON object");
  KeyReader keys(root, file);
  const Family* family = ReadFamily(keys);
  if (family == nullptr) return keys.status();

  ModelConfig config;
  SharedSettings shared;
  ReadKeys(keys, *family, config, shared);
  config.stored_type = shared.stored_type.value_or(family->absent_dtype);
  config.eos_token_ids = std::move(shared.eos_token_ids).value_or(std::vector<std::uint32_t>{});
  if (!keys.status().ok()) return keys.status();
  return config;
}

}  // namespace

namespace {

/// Rarely turning pairs are slowed down, often turning ones kept, with a band between; by the turns that a pair makes
/// within the original context. With low = high (Llama 4) only the one point is between.
double Llama3Frequency(const RopeSpec& rope, double base) {
  const double turns = rope.original_max_positions * base / (2 * std::numbers::pi);
  if (turns < rope.low_freq_factor) return base / rope.factor;
  if (turns > rope.high_freq_factor) return base;
  const double span = rope.high_freq_factor - rope.low_freq_factor;
  const double kept = span > 0 ? (turns - rope.low_freq_factor) / span : 1;
  return (1 - kept) * base / rope.factor + kept * base;
}

/// Yarn's ramp: how much of pair i is slowed down, 0 … 1.
class YarnRamp {
 public:
  explicit YarnRamp(const RopeSpec& rope) {
    const auto pair_with_turns = [&](double turns) {
      return rope.width * std::log(rope.original_max_positions / (2 * std::numbers::pi * turns)) /
             (2 * std::log(rope.theta));
    };
    low_ = pair_with_turns(rope.beta_fast);
    high_ = pair_with_turns(rope.beta_slow);
    if (rope.truncate) {
      low_ = std::floor(low_);
      high_ = std::ceil(high_);
    }
    low_ = std::max(low_, 0.0);
    high_ = std::min(high_, rope.width - 1.0);
    if (low_ == high_) high_ += 0.001;  // as published
  }
  double At(int pair) const { return std::clamp((pair - low_) / (high_ - low_), 0.0, 1.0); }

 private:
  double low_ = 0;
  double high_ = 0;
};

}  // namespace

std::vector<double> RopeSpec::Frequencies() const {
  std::vector<double> frequencies;
  std::optional<YarnRamp> ramp;
  if (scaling == RopeScaling::kYarn) ramp.emplace(*this);
  for (int i = 0; i < width / 2; ++i) {
    const double base = std::pow(theta, -2.0 * i / width);
    switch (scaling) {
      case RopeScaling::kNone: frequencies.push_back(base); break;
      case RopeScaling::kLinear: frequencies.push_back(base / factor); break;
      case RopeScaling::kLlama3: frequencies.push_back(Llama3Frequency(*this, base)); break;
      case RopeScaling::kYarn: {
        const double slowed = ramp->At(i);
        frequencies.push_back(base * (1 - slowed) + base / factor * slowed);
        break;
      }
    }
  }
  return frequencies;
}

int RelativeBiasSpec::Bucket(int delta, bool causal) const {
  int first = 0;
  int count = buckets;
  int distance = 0;
  if (causal) {
    distance = std::max(-delta, 0);
  } else {
    count /= 2;
    if (delta > 0) first = count;
    distance = std::abs(delta);
  }
  // Half of the buckets are single distances, the other half grow by a factor up to max_distance.
  const int exact = count / 2;
  if (distance < exact) return first + distance;
  const double share =
      std::log(static_cast<double>(distance) / exact) / std::log(static_cast<double>(max_distance) / exact);
  return first + exact + static_cast<int>(std::min(share * (count - exact), count - 1.0 - exact));
}

int AttentionSpec::projected_width() const {
  if (!latent) return (num_heads + 2 * num_kv_heads) * head_dim;
  const int query = latent->query_rank > 0 ? latent->query_rank : num_heads * head_dim;
  return query + latent->kv_rank + latent->rope_dim;
}

int AttentionSpec::heads_width() const { return num_heads * (latent ? latent->value_dim : head_dim); }

std::size_t AttentionSpec::FirstVisible(std::size_t position) const {
  const auto limit = static_cast<std::size_t>(window);
  if (chunk > 0) return position - position % static_cast<std::size_t>(chunk);
  return window > 0 && position + 1 > limit ? position + 1 - limit : 0;
}

std::vector<StackSpec> ModelConfig::stacks() const {
  std::vector<StackSpec> stacks;
  const auto encoder = static_cast<std::size_t>(encoder_layers);
  if (encoder > 0) stacks.push_back({.first_layer = 0, .num_layers = encoder, .encoder = true});
  stacks.push_back({.first_layer = encoder, .num_layers = layers.size() - encoder});
  return stacks;
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

Result<ModelConfig> ParseModelConfig(std::string_view text, const std::string& name) {
  Result<JsonValue> root = ParseJson(text);
  if (!root.ok()) return root.status().WithContext(name);
  return ParseConfig(*root, name);
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
  if (!config.servable) {
    return InvalidArgument("config.json: model_type \"", config.model_type,
                           "\" can be counted (moe_plan) but not served");
  }

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
