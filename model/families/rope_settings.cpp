#include "model/families/rope_settings.h"

#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "model/families/decoder_common.h"

namespace moe {
namespace {

// theta 1 is the least that makes sense (all frequencies equal); the largest published is 1e9.
constexpr RealRange kThetas = {.min = 1, .max = 1e15};
constexpr RealRange kRopeFactors = {.min = 1, .max = 1e6};
constexpr RealRange kTurns = {.min = 1e-6, .max = 1e6};
constexpr RealRange kMscales = {.min = 0, .max = 1e3};
constexpr RealRange kShares = {.min = 1e-6, .max = 1};

constexpr std::array<std::string_view, 5> kRopeTypes = {"default", "none", "linear", "llama3", "yarn"};
constexpr std::array<RopeScaling, 5> kRopeScalings = {RopeScaling::kNone, RopeScaling::kNone, RopeScaling::kLinear,
                                                      RopeScaling::kLlama3, RopeScaling::kYarn};

/// `rope_type`, or the older `type`; they must agree when both are there.
RopeScaling ReadRopeType(KeyReader& settings) {
  const auto type = settings.OptionalChoice("rope_type", kRopeTypes);
  const auto older = settings.OptionalChoice("type", kRopeTypes);
  if (type.has_value() && older.has_value() && type != older) {
    settings.Refuse("type", Cat(kRopeTypes[*type], ", as rope_type says"));
  }
  const auto either = type.has_value() ? type : older;
  return either.has_value() ? kRopeScalings[*either] : RopeScaling::kNone;
}

/// Of keys that nobody read: a part of the head where whole heads rotate, yarn's magnitudes without yarn, sectioned
/// rotation, and dictionaries of one set of keys per layer type.
const std::vector<MathematicalKey>& RopeMathematicalKeys() {
  static const std::vector<MathematicalKey> keys = {
      {"partial_rotary_factor", {"1"}}, {"attention_factor", {"1"}}, {"mscale", {"0"}},
      {"mscale_all_dim", {"0"}},        {"mrope_section", {}},       {"full_attention", {}},
      {"sliding_attention", {}},        {"chunked_attention", {}},
  };
  return keys;
}

void ReadLlama3(KeyReader& settings, RopeSpec& rope) {
  rope.low_freq_factor = settings.Real("low_freq_factor", kTurns);
  rope.high_freq_factor = settings.Real("high_freq_factor", kTurns);
  if (rope.high_freq_factor < rope.low_freq_factor) {
    settings.Refuse("high_freq_factor", Cat("at least low_freq_factor, ", rope.low_freq_factor));
  }
}

void ReadYarn(KeyReader& settings, RopeSettings& read) {
  RopeSpec& rope = read.rope;
  rope.beta_fast = settings.OptionalReal("beta_fast", kTurns).value_or(32);
  rope.beta_slow = settings.OptionalReal("beta_slow", kTurns).value_or(1);
  if (rope.beta_fast < rope.beta_slow) {
    settings.Refuse(settings.Has("beta_fast") ? "beta_fast" : "beta_slow",
                    Cat("such that beta_fast, ", rope.beta_fast, ", is at least beta_slow, ", rope.beta_slow));
  }
  rope.truncate = settings.OptionalBool("truncate").value_or(true);
  const auto attention_factor = settings.OptionalReal("attention_factor", kPositiveReals);
  const double mscale = settings.OptionalReal("mscale", kMscales).value_or(0);
  const double mscale_all = settings.OptionalReal("mscale_all_dim", kMscales).value_or(0);
  const auto magnitude = [&](double m) { return rope.factor > 1 ? 0.1 * m * std::log(rope.factor) + 1 : 1; };
  if (attention_factor.has_value()) {
    rope.magnitude = *attention_factor;
  } else if (mscale > 0 && mscale_all > 0) {
    rope.magnitude = magnitude(mscale) / magnitude(mscale_all);
  } else {
    rope.magnitude = magnitude(1);
  }
  if (mscale_all > 0) read.score_factor = magnitude(mscale_all) * magnitude(mscale_all);
}

/// The scaling keys of rope_scaling or rope_parameters.
void ReadScaling(KeyReader& settings, double original_positions, RopeSettings& read,
                 std::vector<std::string>& warnings) {
  RopeSpec& rope = read.rope;
  rope.scaling = ReadRopeType(settings);
  if (rope.scaling != RopeScaling::kNone) rope.factor = settings.Real("factor", kRopeFactors);
  if (rope.scaling == RopeScaling::kLlama3) ReadLlama3(settings, rope);
  if (rope.scaling == RopeScaling::kYarn) ReadYarn(settings, read);
  if (rope.scaling == RopeScaling::kLlama3 || rope.scaling == RopeScaling::kYarn) {
    rope.original_max_positions = original_positions;
  }
  constexpr std::array<std::string_view, 1> kHarmless = {"finetuned"};
  settings.CheckUnread(kHarmless, RopeMathematicalKeys(), warnings);
}

/// One setting that may stand in two places, which must agree.
template <typename Number>
void Merge(KeyReader& keys, std::string_view key, const std::optional<Number>& inner, std::string_view inner_name,
           std::optional<Number>& value) {
  if (value.has_value() && inner.has_value() && value != inner) {
    keys.Refuse(key, Cat(*inner, ", as ", inner_name, " says"));
  }
  if (inner.has_value()) value = inner;
}

void CheckWidth(KeyReader& keys, const RopeSpec& rope, int head_dim, double share) {
  if (rope.width > 0 && rope.width % 2 == 0) return;
  if (rope.width != head_dim) {
    keys.Fail(Cat(keys.prefix(), "partial_rotary_factor ", share, " rotates ", rope.width, " of a head's ", head_dim,
                  " elements, not an even number from 2"));
  } else if (keys.Has("head_dim")) {
    keys.Refuse("head_dim", "even, as rotary embedding needs");
  } else {
    keys.Refuse("num_attention_heads", Cat("one that makes heads of an even width, not of ", head_dim));
  }
}

}  // namespace

RopeSettings ReadRope(KeyReader& keys, ModelConfig& config, int head_dim, const RopeDefaults& defaults) {
  RopeSettings read;
  read.rope.pairing = defaults.pairing;
  std::optional<double> theta = keys.OptionalReal("rope_theta", kThetas);
  std::optional<int> original = keys.OptionalInt("original_max_position_embeddings", kContextLengths);
  std::optional<double> share;
  if (defaults.partial.has_value()) share = keys.OptionalReal("partial_rotary_factor", kShares);

  auto scaling = keys.OptionalObject("rope_scaling");
  auto parameters = keys.OptionalObject("rope_parameters");
  if (scaling.has_value() && parameters.has_value()) {
    keys.Refuse("rope_scaling", "absent or null, as rope_parameters is there too");
  }
  auto& settings = parameters.has_value() ? parameters : scaling;
  const std::string_view name = parameters.has_value() ? "rope_parameters" : "rope_scaling";
  if (settings.has_value()) {
    Merge(keys, "rope_theta", settings->OptionalReal("rope_theta", kThetas), name, theta);
    Merge(keys, "original_max_position_embeddings",
          settings->OptionalInt("original_max_position_embeddings", kContextLengths), name, original);
    if (defaults.partial.has_value()) {
      Merge(keys, "partial_rotary_factor", settings->OptionalReal("partial_rotary_factor", kShares), name, share);
    }
    ReadScaling(*settings, original.value_or(config.context_length), read, config.warnings);
    keys.Fail(settings->status());
  }

  read.rope.theta = theta.value_or(defaults.theta);
  if (read.rope.scaling == RopeScaling::kYarn && read.rope.theta == 1) {
    keys.Fail(Cat(keys.prefix(), "rope_theta is 1, not more than 1, as yarn needs"));
  }
  const double used = share.value_or(defaults.partial.value_or(1));
  read.rope.width = static_cast<int>(head_dim * used);
  CheckWidth(keys, read.rope, head_dim, used);
  return read;
}

}  // namespace moe
