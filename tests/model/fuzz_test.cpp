// Changed configurations, 40,000 of the 100,000 cases: each is an error that says what is wrong, or a model of which
// everything that follows from a configuration alone can be had, in little memory. Run under the address and undefined
// behaviour sanitizers too.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>

#include "model/config.h"
#include "model/families/family.h"
#include "model/kv_cache.h"
#include "model/parameter_count.h"
#include "model/tensor_specs.h"
#include "model/weight_bytes.h"
#include "tests/model/fuzz_memory.h"
#include "tests/model/fuzz_mutation.h"
#include "tests/model/model_files.h"
#include "tests/model/random_config.h"

namespace moe {
namespace {

using nlohmann::json;
__extension__ using Wide = unsigned __int128;  // no product of sizes overflows it

constexpr int kCases = 40'000;
// A configuration of 2^12 layers has some 4 MB of LayerSpecs; lists and texts of cases are smaller.
constexpr std::uint64_t kMostMemory = 64 << 20;

std::vector<json> Seeds() {
  std::vector<json> seeds;
  for (const auto& entry : std::filesystem::directory_iterator(InRepository("tests/goldens"))) {
    if (entry.is_directory()) seeds.push_back(json::parse(ReadBytes(entry.path() / "config.json")));
  }
  for (const std::filesystem::path& file : PublishedFiles()) seeds.push_back(json::parse(ReadBytes(file)));
  std::ranges::sort(seeds);  // folders have no order
  return seeds;
}

Wide Elements(const std::vector<TensorSpec>& specs) {
  Wide sum = 0;
  for (const TensorSpec& spec : specs) {
    Wide product = 1;
    for (const std::int64_t dim : spec.shape) {
      EXPECT_GT(dim, 0) << spec.name;
      product *= static_cast<Wide>(dim);
    }
    EXPECT_EQ(spec.name.find('{'), std::string::npos) << spec.name;
    EXPECT_EQ(static_cast<Wide>(spec.elements()), product) << spec.name;
    sum += product;
  }
  return sum;
}

void CheckCount(const ModelConfig& config) {
  const ParameterCount count = CountParameters(config);
  Wide total = Elements(OuterTensors(config));
  Wide active = total;
  Wide expert_bytes = 0;
  for (int layer = 0; layer < config.num_layers(); ++layer) {
    const Wide dense = Elements(LayerTensors(config, layer));
    total += dense;
    active += dense;
    const auto& moe = config.layers[static_cast<std::size_t>(layer)].moe;
    if (!moe) continue;
    const Wide each = Elements(ExpertTensors(config, layer, moe->gate.num_experts - 1));
    total += each * static_cast<Wide>(moe->gate.num_experts);
    active += each * static_cast<Wide>(moe->gate.experts_per_token);
    expert_bytes += Wide{ExpertBytes(config, layer, WeightType::kF32)} * static_cast<Wide>(moe->gate.num_experts);
  }
  EXPECT_EQ(static_cast<Wide>(count.total), total);
  EXPECT_EQ(static_cast<Wide>(count.active), active);
  EXPECT_LE(count.active_without_embedding, count.active);
  const CheckpointElements& stored = count.checkpoint;
  EXPECT_EQ(static_cast<Wide>(stored.total()),
            Wide{stored.weights} + stored.scales + stored.prediction_layers + stored.duplicates);
  // All bytes of a model together are a number that programs may add up in 64 bits.
  const Wide bytes = expert_bytes + DenseBytes(config, WeightType::kF32);
  EXPECT_GE(bytes, 4 * total);
  EXPECT_LT(bytes, Wide{1} << 64);
}

void CheckAttention(const ModelConfig& config, const AttentionSpec& attention) {
  EXPECT_GT(attention.head_dim, 0);
  EXPECT_GT(attention.num_kv_heads, 0);
  EXPECT_EQ(attention.num_heads % attention.num_kv_heads, 0);
  EXPECT_TRUE(std::isfinite(attention.scale) && attention.scale > 0) << attention.scale;
  EXPECT_GT(attention.projected_width(), 0);
  EXPECT_GT(attention.heads_width(), 0);
  for (const std::size_t position : {std::size_t{0}, std::size_t{100}, std::size_t{1} << 30}) {
    EXPECT_LE(attention.FirstVisible(position), position);
  }
  if (config.servable && attention.rope) {
    EXPECT_GT(config.rope.width, 0);
    EXPECT_LE(config.rope.width, attention.latent ? attention.latent->rope_dim : attention.head_dim);
  }
  if (const auto& bias = attention.relative_bias) {
    for (const int delta :
         {-(1 << 30), -bias->max_distance, -1, 0, 1, bias->buckets / 2, bias->max_distance, 1 << 30}) {
      EXPECT_GE(bias->Bucket(delta, attention.causal), 0);
      EXPECT_LT(bias->Bucket(delta, attention.causal), bias->buckets);
    }
  }
}

void CheckFfn(const LayerSpec& layer) {
  if (!layer.moe) {
    EXPECT_GT(layer.dense_mlp.inner_width(), 0);
    return;
  }
  const GateSpec& gate = layer.moe->gate;
  EXPECT_GT(layer.moe->expert.inner_width(), 0);
  EXPECT_TRUE(!layer.moe->shared || layer.moe->shared->inner_width() > 0);
  EXPECT_GE(gate.experts_per_token, 1);
  EXPECT_LE(gate.experts_per_token, gate.num_experts);
  EXPECT_LE(gate.num_experts, kMaxExperts);
  ASSERT_GT(gate.groups, 0);
  EXPECT_EQ(gate.num_experts % gate.groups, 0);
  EXPECT_GE(gate.top_groups, 1);
  EXPECT_LE(gate.top_groups, gate.groups);
  EXPECT_GE(gate.num_experts / gate.groups * gate.top_groups, gate.experts_per_token);
  EXPECT_TRUE(std::isfinite(gate.scale) && gate.scale > 0) << gate.scale;
  EXPECT_GE(gate.capacity, 0);
}

/// Pages for the least and for far more than any memory holds: the exact bytes, or all that 64 bits can say.
void CheckCache(const ModelConfig& config) {
  const std::vector<KvGroup> groups = KvGroups(config);
  ASSERT_FALSE(groups.empty());
  EXPECT_LE(groups.size(), 4u);
  const KvLimits most = {
      .tokens = std::size_t{1} << 50, .max_sequences = 1 << 20, .max_step_tokens = 1 << 20, .max_chunk = 1 << 20};
  std::uint64_t before = 0;
  for (const KvLimits& limits : {KvLimits{1, 1, 2, 2}, KvLimits{4096, 16, 512, 64}, most}) {
    const KvPlan plan = PlanKv(config, limits);
    EXPECT_EQ(plan.pages.size(), groups.size());
    EXPECT_GE(plan.bytes, before);
    Wide least = 0;  // what the decoder's unlimited layers take for the tokens alone
    for (const LayerSpec& layer : config.layers) {
      const AttentionSpec& a = layer.attention;
      if (a.window > 0 || a.chunk > 0 || !a.causal) continue;
      const int row = a.latent ? a.latent->kv_rank + a.latent->rope_dim : 2 * a.num_kv_heads * a.head_dim;
      least += Wide{limits.tokens} * static_cast<Wide>(row) * sizeof(float);
    }
    EXPECT_GE(static_cast<Wide>(plan.bytes), std::min(least, (Wide{1} << 64) - 1));
    before = plan.bytes;
  }
}

void CheckModel(const ModelConfig& config) {
  EXPECT_GT(config.vocab_size, 0);
  EXPECT_GT(config.hidden, 0);
  EXPECT_GE(config.context_length, 0);
  EXPECT_GT(config.rms_norm_eps, 0);
  ASSERT_GT(config.num_layers(), config.encoder_layers);
  EXPECT_GE(config.encoder_layers, 0);
  for (const float scale : {config.embedding_scale, config.residual_scale, config.logits_scale}) {
    EXPECT_TRUE(std::isfinite(scale) && scale > 0) << scale;
  }
  for (const std::uint32_t id : config.eos_token_ids) EXPECT_LT(id, static_cast<std::uint32_t>(config.vocab_size));
  EXPECT_EQ(config.has_encoder(), config.decoder_start_token.has_value());
  std::size_t layers = 0;
  for (const StackSpec& stack : config.stacks()) layers += stack.num_layers;
  EXPECT_EQ(layers, config.layers.size());
  for (const LayerSpec& layer : config.layers) {
    CheckAttention(config, layer.attention);
    if (layer.cross_attention) CheckAttention(config, *layer.cross_attention);
    CheckFfn(layer);
    if (::testing::Test::HasFailure()) return;
  }
  for (const double frequency : config.rope.Frequencies()) {
    EXPECT_TRUE(frequency >= 0 && frequency <= 1) << frequency;
  }
  EXPECT_TRUE(std::isfinite(config.rope.magnitude) && config.rope.magnitude > 0) << config.rope.magnitude;
  for (const std::string& warning : config.warnings) EXPECT_TRUE(IsPrintable(warning)) << warning;
  EXPECT_FALSE(IsIgnorable(config, config.tensor_names.embedding + ".weight"));
  CheckCount(config);
  if (config.servable) CheckCache(config);
}

/// Whether `text` is a model. Everything is checked in either case.
bool CheckText(const std::string& text) {
  const MemoryWatch memory;
  const Result<ModelConfig> config = ParseModelConfig(text, "config.json");
  if (config.ok()) {
    CheckModel(*config);
  } else {
    const std::string& message = config.status().message();
    EXPECT_EQ(config.status().code(), StatusCode::kInvalidArgument);
    EXPECT_TRUE(message.starts_with("config.json") && message.size() > 20 && message.size() < 1000) << message;
    EXPECT_TRUE(IsPrintable(message)) << message;
  }
  EXPECT_LT(memory.peak_bytes(), kMostMemory);
  return config.ok();
}

/// Of published models a few layers, for time.
void Shorten(json& config) {
  if (config.contains("text_config")) return Shorten(config["text_config"]);
  for (const char* key : {"num_hidden_layers", "n_layer"}) {
    if (config.value(key, 0) > 4) config[key] = 4;
  }
  if (config.contains("layer_types")) {
    json& types = config["layer_types"];
    while (types.size() > config["num_hidden_layers"]) types.erase(types.size() - 1);
  }
}

TEST(ConfigFuzz, AnErrorOrAModel) {
  const std::vector<json> seeds = Seeds();
  std::mt19937_64 random(20);
  int models = 0;
  for (int i = 0; i < kCases; ++i) {
    json config = seeds[random() % seeds.size()];
    if (!OneIn(random, 50)) Shorten(config);
    for (std::int64_t n = Uniform(random, 1, 2); n > 0; --n) MutateJson(config, seeds, random);
    const bool twice = OneIn(random, 20);
    std::string text = twice ? WithDuplicateKey(config, random) : config.dump();
    const bool flipped = OneIn(random, 8);
    if (flipped) MutateBytes(text, random);
    SCOPED_TRACE(::testing::Message() << "case " << i << ": " << text);
    const bool is_model = CheckText(text);
    EXPECT_FALSE(is_model && twice && !flipped);
    if (is_model) ++models;
    if (HasFailure()) return;
  }
  // Neither side is idle.
  EXPECT_GT(models, kCases / 5);
  EXPECT_LT(models, kCases * 4 / 5);
}

TEST(ConfigFuzz, SeedsAreModels) {
  for (const json& seed : Seeds()) EXPECT_TRUE(CheckText(seed.dump())) << seed.dump();
}

/// Raises the whole numbers of `inner`, which is `root` or inside of it, to the largest powers of two that are read.
void Enlarge(json& inner, const json& root) {
  std::vector<std::string> keys;
  for (const auto& [key, value] : inner.items()) {
    if (value.is_number_integer() && !key.ends_with("_token_id")) keys.push_back(key);
  }
  // Layers last: they make everything else slow.
  std::stable_partition(keys.begin(), keys.end(), [](const std::string& key) { return !key.ends_with("_layers"); });
  for (const std::string& key : keys) {
    json& value = inner[key];
    const std::int64_t before = value;
    for (int bits = 31; bits >= 0; --bits) {
      value = std::int64_t{1} << bits;
      if (value < before) value = before;
      if (value == before || ParseModelConfig(root.dump(), "config.json").ok()) break;
    }
  }
}

TEST(ConfigFuzz, LargestSizesAreCountedExactly) {
  std::set<std::string> types;
  for (json config : Seeds()) {
    if (!types.insert(config["model_type"]).second) continue;
    config.erase("layer_types");  // one for each layer
    config.erase("no_rope_layers");
    Enlarge(config, config);
    if (config.contains("text_config")) {
      config["text_config"].erase("no_rope_layers");
      config["text_config"].erase("layer_types");
      Enlarge(config["text_config"], config);
    }
    EXPECT_TRUE(CheckText(config.dump())) << config.dump();
    if (HasFailure()) return;
  }
  EXPECT_GE(types.size(), 12u);
}

/// A file of half a megabyte may have lists of many entries, which must not be searched for every layer.
TEST(ConfigFuzz, LongListsAreRefused) {
  struct {
    const char* golden;
    const char* key;
    json entry;
  } const lists[] = {{"qwen3_moe", "mlp_only_layers", 2048}, {"llama4_text", "moe_layers", 2048},
                     {"llama4_text", "no_rope_layers", 1},   {"gpt_oss", "layer_types", "full_attention"},
                     {"mixtral", "eos_token_id", 1},         {"mixtral", "architectures", "x"}};
  for (const auto& list : lists) {
    json config = json::parse(ReadBytes(InRepository(std::string("tests/goldens/") + list.golden + "/config.json")));
    config["num_hidden_layers"] = 2048;
    config.erase("no_rope_layers");
    config[list.key] = json::array();
    for (std::size_t i = 0; i < 100'000; ++i) config[list.key].push_back(list.entry);
    const Result<ModelConfig> read = ParseModelConfig(config.dump(), "config.json");
    ASSERT_FALSE(read.ok()) << list.key;
    EXPECT_NE(read.status().message().find("a list of at most 4096 entries, but of 100000"), std::string::npos)
        << read.status().message();
  }
}

}  // namespace
}  // namespace moe
