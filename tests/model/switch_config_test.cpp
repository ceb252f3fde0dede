// Switch Transformers, and the buckets of its relative positions.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

#include "model/config.h"
#include "model/tensor_specs.h"
#include "tests/model/published_config.h"

namespace moe {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const char* const kBase = "switch-base-8";

TEST(Switch, Stacks) {
  const ModelConfig config = ReadWith(kBase);
  EXPECT_EQ(config.num_layers(), 24);
  EXPECT_EQ(config.encoder_layers, 12);
  EXPECT_EQ(config.hidden, 768);
  EXPECT_EQ(config.rms_norm_eps, 1e-6f);
  EXPECT_EQ(config.decoder_start_token, 0u);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(1u));
  EXPECT_EQ(config.context_length, 0);
  EXPECT_EQ(ReadWith(kBase, {{"n_positions", 512}}).context_length, 512);
  EXPECT_THAT(config.sparse_layers(), ElementsAre(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23));
}

TEST(Switch, Layers) {
  const ModelConfig config = ReadWith(kBase);
  const LayerSpec& encoder = config.layers[11];
  EXPECT_EQ(encoder.attention.num_heads, 12);
  EXPECT_EQ(encoder.attention.num_kv_heads, 12);
  EXPECT_EQ(encoder.attention.head_dim, 64);
  EXPECT_EQ(encoder.attention.scale, 1);
  EXPECT_FALSE(encoder.attention.causal || encoder.attention.rope || encoder.attention.qkv_bias);
  EXPECT_EQ(encoder.attention.relative_bias.value().buckets, 32);
  EXPECT_EQ(encoder.attention.relative_bias->max_distance, 128);
  EXPECT_FALSE(encoder.cross_attention.has_value());
  const LayerSpec& decoder = config.layers[12];
  EXPECT_TRUE(decoder.attention.causal);
  EXPECT_TRUE(decoder.attention.relative_bias.has_value());
  const AttentionSpec& cross = decoder.cross_attention.value();
  EXPECT_FALSE(cross.causal || cross.rope || cross.relative_bias.has_value());
  EXPECT_EQ(cross.scale, 1);
  EXPECT_EQ(cross.head_dim, 64);
  EXPECT_EQ(decoder.dense_mlp.activation, Activation::kRelu);
  EXPECT_EQ(decoder.dense_mlp.intermediate, 3072);
  const MoeSpec& moe = config.layers[13].moe.value();
  EXPECT_EQ(moe.expert.activation, Activation::kRelu);
  EXPECT_EQ(moe.gate.num_experts, 8);
  EXPECT_EQ(moe.gate.experts_per_token, 1);
  EXPECT_EQ(moe.gate.scoring, GateSpec::Scoring::kSoftmax);
  EXPECT_EQ(moe.gate.normalization, GateSpec::Normalization::kNone);
  EXPECT_EQ(moe.gate.capacity, 64);
}

TEST(Switch, TensorsOfBothStacks) {
  const ModelConfig config = ReadWith(kBase);
  const auto names = [&](int layer) {
    std::vector<std::string> all;
    for (const TensorSpec& spec : LayerTensors(config, layer)) all.push_back(spec.name);
    return all;
  };
  EXPECT_THAT(
      names(0),
      ElementsAre("encoder.block.0.layer.0.layer_norm.weight", "encoder.block.0.layer.0.SelfAttention.q.weight",
                  "encoder.block.0.layer.0.SelfAttention.k.weight", "encoder.block.0.layer.0.SelfAttention.v.weight",
                  "encoder.block.0.layer.0.SelfAttention.o.weight",
                  "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                  "encoder.block.0.layer.1.layer_norm.weight", "encoder.block.0.layer.1.mlp.wi.weight",
                  "encoder.block.0.layer.1.mlp.wo.weight"));
  EXPECT_THAT(
      names(13),
      ElementsAre(
          "decoder.block.1.layer.0.layer_norm.weight", "decoder.block.1.layer.0.SelfAttention.q.weight",
          "decoder.block.1.layer.0.SelfAttention.k.weight", "decoder.block.1.layer.0.SelfAttention.v.weight",
          "decoder.block.1.layer.0.SelfAttention.o.weight", "decoder.block.1.layer.1.layer_norm.weight",
          "decoder.block.1.layer.1.EncDecAttention.q.weight", "decoder.block.1.layer.1.EncDecAttention.k.weight",
          "decoder.block.1.layer.1.EncDecAttention.v.weight", "decoder.block.1.layer.1.EncDecAttention.o.weight",
          "decoder.block.1.layer.2.layer_norm.weight", "decoder.block.1.layer.2.mlp.router.classifier.weight"));
  EXPECT_EQ(ExpertTensors(config, 13, 7)[0].name, "decoder.block.1.layer.2.mlp.experts.expert_7.wi.weight");
  EXPECT_EQ(ExpertTensors(config, 1, 7)[1].name, "encoder.block.1.layer.1.mlp.experts.expert_7.wo.weight");
  EXPECT_EQ(OuterTensors(config)[0].name, "shared.weight");
  EXPECT_THAT(config.tensor_names.embedding_copies, ElementsAre("encoder.embed_tokens", "decoder.embed_tokens"));
  EXPECT_FALSE(IsIgnorable(config, "encoder.embed_tokens.weight"));
}

TEST(Switch, SparseBlocks) {
  const auto sparse = [](const json& changes) { return ReadWith(kBase, changes).sparse_layers(); };
  EXPECT_THAT(sparse({{"num_layers", 6},
                      {"num_decoder_layers", 4},
                      {"num_sparse_encoder_layers", 2},
                      {"num_sparse_decoder_layers", 4}}),
              ElementsAre(1, 4, 6, 7, 8, 9));  // steps 3 and 1
  EXPECT_THAT(sparse({{"num_layers", 7},
                      {"num_decoder_layers", 5},
                      {"num_sparse_encoder_layers", 3},
                      {"num_sparse_decoder_layers", 1}}),
              ElementsAre(1, 3, 5, 8));  // steps 7 / 3 = 2 and 5
  for (const char* key : {"num_sparse_encoder_layers", "num_sparse_decoder_layers"}) {
    EXPECT_THAT(ErrorWith(kBase, {{key, 0}}), HasSubstr(std::string(key) + " is 0, not a whole number from 1 to 12"));
    EXPECT_THAT(ErrorWith(kBase, {{key, 13}}), HasSubstr(std::string(key) + " is 13"));
    EXPECT_EQ(ErrorWithout(kBase, key), std::string("config.json: key ") + key + " is missing");
  }
  EXPECT_THAT(ReadWith(kBase, {{"encoder_sparse_step", 2}, {"decoder_sparse_step", 2}}).warnings, IsEmpty());
  EXPECT_EQ(ErrorWith(kBase, {{"encoder_sparse_step", 3}}),
            "config.json: encoder_sparse_step is 3, not 2, as num_sparse_encoder_layers of 12 layers gives");
}

TEST(Switch, DecoderIsAsDeepAsTheEncoderUnlessSaid) {
  EXPECT_EQ(ReadWithout(kBase, {"num_decoder_layers"}).num_layers(), 24);
  EXPECT_EQ(ReadWith(kBase, {{"num_decoder_layers", nullptr}}).num_layers(), 24);
  EXPECT_EQ(ReadWith(kBase, {{"num_decoder_layers", 6}}).num_layers(), 18);
}

TEST(Switch, TiedHeadsAreScaled) {
  EXPECT_FLOAT_EQ(ReadWith(kBase).logits_scale, static_cast<float>(1 / std::sqrt(768.0)));
  EXPECT_TRUE(ReadWithout(kBase, {"tie_word_embeddings"}).tied_embeddings);
  const ModelConfig untied = ReadWith(kBase, {{"tie_word_embeddings", false}});
  EXPECT_FALSE(untied.tied_embeddings);
  EXPECT_EQ(untied.logits_scale, 1);
}

TEST(Switch, RequiredKeys) {
  for (const char* key : {"d_model", "d_kv", "d_ff", "num_heads", "num_layers", "num_experts", "expert_capacity",
                          "vocab_size", "layer_norm_epsilon", "relative_attention_num_buckets",
                          "relative_attention_max_distance", "decoder_start_token_id"}) {
    EXPECT_EQ(ErrorWithout(kBase, key), std::string("config.json: key ") + key + " is missing");
  }
  EXPECT_THAT(ErrorWith(kBase, {{"decoder_start_token_id", 32128}}), HasSubstr("decoder_start_token_id is 32128"));
  EXPECT_THAT(ErrorWith(kBase, {{"expert_capacity", 0}}), HasSubstr("expert_capacity is 0"));
}

TEST(Switch, RefusesWhatItDoesNotCompute) {
  const std::vector<std::pair<const char*, json>> refused = {
      {"feed_forward_proj", "gated-gelu"},
      {"is_gated_act", true},
      {"dense_act_fn", "gelu"},
      {"router_bias", true},
      {"router_dtype", "bfloat16"},
      {"router_type", "experts_masked"},
      {"is_encoder_decoder", false},
      {"num_sparse_encoder_layers", 2.5},
  };
  for (const auto& [key, value] : refused) {
    EXPECT_THAT(ErrorWith(kBase, {{key, value}}), HasSubstr(std::string(key) + " is " + value.dump()));
  }
  EXPECT_THAT(ReadWith(kBase, {{"router_jitter_noise", 0.5}, {"dropout_rate", 0.3}}).warnings, IsEmpty());
}

// T5, section 2.1 (arXiv 1910.10683), re-derived: half of a direction's buckets are single distances; bucket e + j
// begins where the distance has grown from e by (D / e)^(j / (n − e)), and the last one has no end.

int BucketByBoundaries(const RelativeBiasSpec& spec, int delta, bool causal) {
  const int n = causal ? spec.buckets : spec.buckets / 2;
  const int distance = causal ? (delta < 0 ? -delta : 0) : std::abs(delta);
  const int e = n / 2;
  int bucket = 0;
  while (bucket + 1 < n) {
    const double begin = bucket + 1 <= e ? bucket + 1
                                         : e * std::pow(static_cast<double>(spec.max_distance) / e,
                                                        static_cast<double>(bucket + 1 - e) / (n - e));
    if (distance < begin * (1 - 1e-12)) break;
    ++bucket;
  }
  return bucket + (!causal && delta > 0 ? n : 0);
}

TEST(RelativeBuckets, GrowWithTheDistance) {
  for (const RelativeBiasSpec spec : {RelativeBiasSpec{32, 128}, RelativeBiasSpec{8, 20}, RelativeBiasSpec{4, 3},
                                      RelativeBiasSpec{6, 50}, RelativeBiasSpec{64, 1000}}) {
    for (const bool causal : {false, true}) {
      for (int delta = -3000; delta <= 3000; ++delta) {
        ASSERT_EQ(spec.Bucket(delta, causal), BucketByBoundaries(spec, delta, causal))
            << delta << " of " << spec.buckets << ", " << spec.max_distance << (causal ? " causal" : "");
      }
    }
  }
}

TEST(RelativeBuckets, AtTheirLimits) {
  const RelativeBiasSpec spec{.buckets = 32, .max_distance = 128};
  // Both ways: 16 buckets a direction, of which 8 are single distances.
  EXPECT_EQ(spec.Bucket(0, false), 0);
  EXPECT_EQ(spec.Bucket(-7, false), 7);
  EXPECT_EQ(spec.Bucket(7, false), 23);
  EXPECT_EQ(spec.Bucket(-8, false), 8);
  EXPECT_EQ(spec.Bucket(-15, false), 9);  // 8 √2^2 = 16 begins bucket 10
  EXPECT_EQ(spec.Bucket(-16, false), 10);
  EXPECT_EQ(spec.Bucket(-127, false), 15);
  EXPECT_EQ(spec.Bucket(128, false), 31);
  EXPECT_EQ(spec.Bucket(1 << 30, false), 31);
  // Backwards only: 32 buckets, of which 16 are single distances.
  EXPECT_EQ(spec.Bucket(5, true), 0);
  EXPECT_EQ(spec.Bucket(-15, true), 15);
  EXPECT_EQ(spec.Bucket(-128, true), 31);
  EXPECT_EQ(spec.Bucket(-(1 << 30), true), 31);
}

TEST(RelativeBuckets, BadCountsAreNamed) {
  EXPECT_THAT(ErrorWith(kBase, {{"relative_attention_num_buckets", 3}}),
              HasSubstr("relative_attention_num_buckets is 3, not a whole number from 4"));
  EXPECT_THAT(ErrorWith(kBase, {{"relative_attention_max_distance", 16}}),
              HasSubstr("relative_attention_max_distance is 16, not more than half"));
  EXPECT_EQ(ErrorWith(kBase, {{"relative_attention_max_distance", 17}}), "no error");
}

}  // namespace
}  // namespace moe
