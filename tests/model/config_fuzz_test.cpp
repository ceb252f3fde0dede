// Configurations with a few keys changed at random: each is an error that names the file, or a model whose sizes fit
// together and can be counted.
#include <gtest/gtest.h>

#include <filesystem>
#include <limits>
#include <random>

#include "model/config.h"
#include "model/parameter_count.h"
#include "tests/model/model_files.h"
#include "tests/model/published_config.h"

namespace moe {
namespace {

using nlohmann::json;

std::vector<json> Seeds() {
  std::vector<json> seeds;
  for (const auto& entry : std::filesystem::directory_iterator(InRepository("tests/goldens"))) {
    if (entry.is_directory()) seeds.push_back(json::parse(ReadBytes(entry.path() / "config.json")));
  }
  for (const auto& entry : std::filesystem::directory_iterator(InRepository("tests/model/configs"))) {
    seeds.push_back(json::parse(ReadBytes(entry.path())));
  }
  return seeds;
}

/// Values that readers must think of, at random.
class Values {
 public:
  explicit Values(std::uint32_t seed) : random_(seed) {}
  std::size_t Below(std::size_t count) { return random_() % count; }
  json Any(int depth = 0) {
    switch (Below(depth < 2 ? 14 : 11)) {
      case 0: return nullptr;
      case 1: return Below(2) == 1;
      case 2: return static_cast<int>(Below(5)) - 2;
      case 3: return 1 << Below(31);
      case 4: return (std::int64_t{1} << Below(63)) - 1;
      case 5: return std::numeric_limits<std::uint64_t>::max() - Below(3);
      case 6: return static_cast<double>(Below(1000)) / 100;
      case 7: return 1e300;
      case 8: return 5e-324;
      case 9: return kWords[Below(kWords.size())];
      case 10: return static_cast<int>(Below(300));
      case 11: return json::object();
      case 12: {
        json list = json::array();
        for (std::size_t i = Below(6); i > 0; --i) list.push_back(Any(depth + 1));
        return list;
      }
      default: return {{kWords[Below(kWords.size())], Any(depth + 1)}, {"rope_type", "yarn"}, {"factor", 3}};
    }
  }

  const std::vector<std::string> kWords = {
      "",        "silu",  "yarn",       "default",           "llama3",
      "softmax", "fp8",   "mxfp4",      "sliding_attention", "full_attention",
      "greedy",  "gelu",  "noaux_tc",   "model_type",        "factor",
      "\n\x01",  "float", "rope_theta", "llama4_text",       "switch_transformers"};

 private:
  std::mt19937 random_;
};

/// A key of `object`, of an object inside it, or one that other families have.
void Mutate(json& object, const std::vector<json>& seeds, Values& values) {
  const json& other = values.Below(3) == 0 ? seeds[values.Below(seeds.size())] : object;
  auto it = other.begin();
  std::advance(it, static_cast<std::ptrdiff_t>(values.Below(other.size())));
  const std::string key = it.key();
  json& value = object[key];
  if (value.is_object() && !value.empty() && values.Below(3) > 0) return Mutate(value, seeds, values);
  if (values.Below(6) == 0) {
    object.erase(key);
  } else if (values.Below(4) == 0 && other.contains(key)) {
    value = json(*it);
  } else {
    value = values.Any();
  }
}

void CheckLayer(const ModelConfig& config, const LayerSpec& layer) {
  const AttentionSpec& attention = layer.attention;
  ASSERT_GT(attention.head_dim, 0);
  ASSERT_GT(attention.num_kv_heads, 0);
  ASSERT_EQ(attention.num_heads % attention.num_kv_heads, 0);
  ASSERT_GT(attention.scale, 0);
  ASSERT_GT(attention.projected_width(), 0);
  ASSERT_GT(attention.heads_width(), 0);
  if (config.servable && attention.rope) {
    ASSERT_GT(config.rope.width, 0);
    ASSERT_EQ(config.rope.width % 2, 0);
    ASSERT_LE(config.rope.width, attention.latent ? attention.latent->rope_dim : attention.head_dim);
  }
  if (!layer.moe.has_value()) {
    ASSERT_GT(layer.dense_mlp.intermediate, 0);
    return;
  }
  const GateSpec& gate = layer.moe->gate;
  ASSERT_GT(layer.moe->expert.intermediate, 0);
  ASSERT_GE(gate.experts_per_token, 1);
  ASSERT_LE(gate.experts_per_token, gate.num_experts);
  ASSERT_EQ(gate.num_experts % gate.groups, 0);
  ASSERT_LE(gate.top_groups, gate.groups);
  ASSERT_GE(gate.top_groups * (gate.num_experts / gate.groups), gate.experts_per_token);
  ASSERT_GT(gate.scale, 0);
}

void CheckModel(const ModelConfig& config) {
  ASSERT_GT(config.vocab_size, 0);
  ASSERT_GT(config.hidden, 0);
  ASSERT_GT(config.num_layers(), 0);
  ASSERT_LE(config.num_layers(), 1 << 12);
  ASSERT_LE(config.encoder_layers, config.num_layers());
  CheckLayer(config, config.layers.front());
  CheckLayer(config, config.layers.back());
  for (const double frequency : config.rope.Frequencies()) ASSERT_TRUE(frequency >= 0 && frequency <= 1) << frequency;
  if (const auto& bias = config.layers.back().attention.relative_bias) {
    for (const int delta : {-(1 << 30), -7, 0, 9, 1 << 30}) {
      ASSERT_GE(bias->Bucket(delta, false), 0);
      ASSERT_LT(bias->Bucket(delta, false), bias->buckets);
      ASSERT_LT(bias->Bucket(delta, true), bias->buckets);
    }
  }
  if (config.num_layers() > 8) return;  // so that counting does not take most of the time
  const ParameterCount count = CountParameters(config);
  ASSERT_GE(count.total, count.active);
  ASSERT_GE(count.active, count.active_without_embedding);
  ASSERT_GT(count.active, 0u);
}

TEST(ConfigFuzz, AnErrorOrAModel) {
  const std::vector<json> seeds = Seeds();
  Values values(20240607);
  int models = 0;
  int errors = 0;
  for (int i = 0; i < 100000; ++i) {
    json config = seeds[values.Below(seeds.size())];
    for (std::size_t changes = 1 + values.Below(3); changes > 0; --changes) Mutate(config, seeds, values);
    const std::string text = config.dump();
    const Result<ModelConfig> read = ParseModelConfig(text, "mine.json");
    if (read.ok()) {
      ASSERT_NO_FATAL_FAILURE(CheckModel(*read)) << text;
      ++models;
    } else {
      ASSERT_TRUE(read.status().message().starts_with("mine.json: ")) << read.status().message() << "\n" << text;
      ASSERT_EQ(read.status().code(), StatusCode::kInvalidArgument) << text;
      ++errors;
    }
  }
  // Neither side of the test is idle.
  EXPECT_GT(models, 15000);
  EXPECT_GT(errors, 15000);
}

}  // namespace
}  // namespace moe
