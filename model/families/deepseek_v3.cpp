// DeepSeek-V3 and R1: V2's latent attention, the biased sigmoid gate, prediction layers.
#include <array>

#include "model/families/decoder_common.h"
#include "model/families/deepseek_common.h"
#include "model/families/family.h"

namespace moe {
namespace {

void Parse(KeyReader& keys, ModelConfig& config) {
  ReadDecoderSizes(keys, config);
  const bool interleaved = keys.OptionalBool("rope_interleave").value_or(true);
  const AttentionSpec attention =
      ReadLatentAttention(keys, config, interleaved ? RopePairing::kInterleaved : RopePairing::kHalfSplit);
  ReadDeepseekLayers(keys, config, attention, ReadBiasedGate, 3);
}

constexpr std::array<std::string_view, 2> kHarmless = {"num_key_value_heads", "head_dim"};

}  // namespace

const Family& DeepseekV3Family() {
  static const Family family = {
      .model_type = "deepseek_v3", .architecture = "DeepseekV3ForCausalLM", .parse = Parse, .harmless = kHarmless};
  return family;
}

}  // namespace moe
