#include "experts/expert_shard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "core/text.h"
#include "model/parameter_count.h"
#include "model/tensor_specs.h"
#include "model/weight_cache.h"
#include "placement/placement.h"
#include "test_folders.h"
#include "tests/temporary_folder.h"

namespace moe {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::filesystem::path Folder(const std::string& relative) { return std::filesystem::path(MOE_SOURCE_DIR) / relative; }
const std::filesystem::path kMixtral = Folder("tests/goldens/mixtral");            // 6 experts, 3 layers, three files
const std::filesystem::path kEightExperts = Folder("models/eight-languages-moe");  // 8 experts, 4 layers

struct Loaded {
  ExpertShard shard;
  std::uint64_t mapped_bytes = 0;  // of the checkpoint, which is this worker's own
};

class ExpertShardTest : public ::testing::Test {
 protected:
  explicit ExpertShardTest(std::filesystem::path folder = kMixtral)
      : folder_(std::move(folder)), config_(*ReadModelConfig(folder_)) {}

  PlacementShape Shape(int workers, int redundant = 0) const {
    return {.num_experts = config_.num_experts(),
            .workers = workers,
            .layers = config_.sparse_layers(),
            .redundant_experts = redundant};
  }
  Loaded Load(const Placement& placement, int worker, int threads = 2) const {
    const Result<Checkpoint> checkpoint = Checkpoint::Open(folder_);
    ThreadPool pool(threads);
    Result<ExpertShard> shard =
        ExpertShard::Load(config_, *checkpoint, placement, WorkerId(worker), config_.stored_type, pool);
    EXPECT_TRUE(shard.ok()) << shard.status().message();
    return {*std::move(shard), checkpoint->mapped_bytes()};
  }
  Status LoadFailure(const Placement& placement, int worker) const {
    const Result<Checkpoint> checkpoint = Checkpoint::Open(folder_);
    ThreadPool pool(3);
    return ExpertShard::Load(config_, *checkpoint, placement, WorkerId(worker), config_.stored_type, pool).status();
  }
  /// As the files store one expert.
  std::uint64_t StoredBytes(int layer, int expert) const {
    const Result<Checkpoint> checkpoint = Checkpoint::Open(folder_);
    std::uint64_t bytes = 0;
    for (const TensorSpec& spec : ExpertTensors(config_, layer, expert)) bytes += (*checkpoint->Find(spec.name))->bytes;
    return bytes;
  }

  const std::filesystem::path folder_;
  const ModelConfig config_;
};

class EightExperts : public ExpertShardTest {
 protected:
  EightExperts() : ExpertShardTest(kEightExperts) {}
};

/// The weights of one matrix as they lie in memory.
std::vector<std::byte> BytesOf(const PackedMatrix& matrix) {
  return {matrix.storage().begin(), matrix.storage().end()};
}

TEST_F(ExpertShardTest, HasTheExpertsOfItsSlotsInTheirOrder) {
  const Placement placement = *RoundRobinPlacement(Shape(4, 3));
  const Result<Checkpoint> checkpoint = Checkpoint::Open(folder_);
  for (int worker = 0; worker < 4; ++worker) {
    const Loaded loaded = Load(placement, worker);
    ASSERT_EQ(loaded.shard.layers().size(), placement.layers.size());
    for (std::size_t i = 0; i < placement.layers.size(); ++i) {
      const ExpertShard::Layer& layer = loaded.shard.layers()[i];
      EXPECT_EQ(layer.layer, placement.layers[i].layer);
      EXPECT_EQ(layer.experts, placement.layers[i].slots[static_cast<std::size_t>(worker)]);
      ASSERT_EQ(layer.weights.size(), layer.experts.size());
      for (std::size_t slot = 0; slot < layer.experts.size(); ++slot) {
        const Result<MlpWeights> expected =
            LoadExpertWeights(config_, *checkpoint, layer.layer, layer.experts[slot], config_.stored_type);
        EXPECT_EQ(BytesOf(layer.weights[slot]->gate), BytesOf(expected->gate));
        EXPECT_EQ(BytesOf(layer.weights[slot]->up), BytesOf(expected->up));
        EXPECT_EQ(BytesOf(layer.weights[slot]->down), BytesOf(expected->down));
      }
    }
  }
}

TEST_F(ExpertShardTest, MapsItsOwnExpertsAndNothingElse) {
  for (const int workers : {1, 2, 4, 6}) {
    const Placement placement = *LinearPlacement(Shape(workers));
    std::uint64_t all = 0;
    for (int worker = 0; worker < workers; ++worker) {
      std::uint64_t own = 0;
      for (const LayerPlacement& layer : placement.layers)
        for (const int expert : layer.slots[static_cast<std::size_t>(worker)]) own += StoredBytes(layer.layer, expert);
      const Loaded loaded = Load(placement, worker);
      EXPECT_EQ(loaded.mapped_bytes, own) << "worker " << worker << " of " << workers;
      all += loaded.mapped_bytes;
    }
    EXPECT_EQ(all, StoredBytes(0, 0) * 6 * 3) << "together every expert, once";
  }
}

TEST_F(ExpertShardTest, CountsItsParametersAndBytes) {
  const std::uint64_t per_expert = 3 * 56 * 44;  // gate, up and down of hidden 56, intermediate 44
  for (const int workers : {1, 4}) {
    const Placement placement = *LinearPlacement(Shape(workers));
    std::uint64_t parameters = 0;
    for (int worker = 0; worker < workers; ++worker) {
      const Loaded loaded = Load(placement, worker);
      std::uint64_t slots = 0;
      std::uint64_t bytes = 0;
      for (const ExpertShard::Layer& layer : loaded.shard.layers()) {
        slots += layer.experts.size();
        for (const std::shared_ptr<const MlpWeights>& weights : layer.weights)
          bytes += weights->gate.bytes() + weights->up.bytes() + weights->down.bytes();
      }
      EXPECT_EQ(loaded.shard.parameters(), slots * per_expert);
      EXPECT_EQ(loaded.shard.bytes(), bytes);
      parameters += loaded.shard.parameters();
    }
    EXPECT_EQ(parameters, 6 * 3 * per_expert);
  }
}

TEST_F(EightExperts, OnSevenWorkersGiveOneOfThemTwo) {
  const Placement placement = *LinearPlacement(Shape(7));
  const std::uint64_t expert = StoredBytes(0, 0);
  std::set<int> hosted;
  for (int worker = 0; worker < 7; ++worker) {
    const Loaded loaded = Load(placement, worker);
    const std::size_t slots = worker == 0 ? 2 : 1;
    for (const ExpertShard::Layer& layer : loaded.shard.layers()) {
      EXPECT_EQ(layer.experts.size(), slots);
      hosted.insert(layer.experts.begin(), layer.experts.end());
    }
    EXPECT_EQ(loaded.mapped_bytes, 4 * slots * expert);
    EXPECT_EQ(loaded.shard.parameters(), 4 * slots * 3 * 128 * 256);
  }
  EXPECT_EQ(hosted.size(), 8u);
}

TEST_F(EightExperts, OnTenWorkersLeaveTwoIdle) {
  const Placement placement = *RoundRobinPlacement(Shape(10));
  for (const int worker : {8, 9}) {
    const Loaded idle = Load(placement, worker);
    EXPECT_EQ(idle.mapped_bytes, 0u);
    EXPECT_EQ(idle.shard.parameters(), 0u);
    EXPECT_EQ(idle.shard.bytes(), 0u);
    ASSERT_EQ(idle.shard.layers().size(), 4u) << "layers are known though nothing of them is here";
    ASSERT_NE(idle.shard.Find(2), nullptr);
    EXPECT_TRUE(idle.shard.Find(2)->experts.empty());
  }
  EXPECT_GT(Load(placement, 7).mapped_bytes, 0u);
}

TEST_F(ExpertShardTest, ReplicasAreLoadedWhereTheyArePlaced) {
  const Placement placement = *LinearPlacement(Shape(3, 6));  // every expert on two workers
  std::uint64_t parameters = 0;
  for (int worker = 0; worker < 3; ++worker) {
    const Loaded loaded = Load(placement, worker);
    std::size_t slots = 0;
    for (const LayerPlacement& layer : placement.layers) slots += layer.slots[static_cast<std::size_t>(worker)].size();
    EXPECT_EQ(loaded.mapped_bytes, StoredBytes(0, 0) * slots);
    parameters += loaded.shard.parameters();
  }
  EXPECT_EQ(parameters, 2 * CountParameters(config_).by_part[static_cast<std::size_t>(ModelPart::kExperts)]);
}

/// Checkpoints that hold all experts of a layer in one tensor. `expert_bytes`: of one expert's parts of them; gate and
/// up map the part that they share one after the other.
struct FusedCase {
  const char* golden;
  std::uint64_t expert_bytes;
};

class FusedExperts : public ExpertShardTest, public ::testing::WithParamInterface<FusedCase> {
 protected:
  FusedExperts() : ExpertShardTest(Folder(Cat("tests/goldens/", GetParam().golden))) {}
};

TEST_P(FusedExperts, AreMappedByTheWorkersThatHostThem) {
  for (const int workers : {1, 3}) {
    const Placement placement = *LinearPlacement(Shape(workers));
    for (int worker = 0; worker < workers; ++worker) {
      std::uint64_t experts = 0;
      for (const LayerPlacement& layer : placement.layers)
        experts += layer.slots[static_cast<std::size_t>(worker)].size();
      EXPECT_EQ(Load(placement, worker).mapped_bytes, experts * GetParam().expert_bytes)
          << "worker " << worker << " of " << workers;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Goldens, FusedExperts,
    ::testing::Values(FusedCase{"granitemoe", 4 * (2 * 72 * 64 + 64 * 36)},
                      FusedCase{"llama4_text", 4 * (2 * 64 * 80 + 40 * 64)},
                      // Blocks of 16 bytes and a scale for each 32 weights, and the biases in bf16.
                      FusedCase{"gpt_oss", 17 * (2 * 128 * 3 + 96 * 2) + 2 * (2 * 128 + 96)}),
    [](const auto& test) { return test.param.golden; });

TEST(ExpertShard, SaysWhatItsExpertsCompute) {
  const auto load = [](const std::string& golden) {
    const std::filesystem::path folder = Folder("tests/goldens/" + golden);
    const ModelConfig config = *ReadModelConfig(folder);
    const Result<Checkpoint> checkpoint = Checkpoint::Open(folder);
    const Placement placement =
        *LinearPlacement({.num_experts = config.num_experts(), .workers = 1, .layers = config.sparse_layers()});
    ThreadPool pool(1);
    return ExpertShard::Load(config, *checkpoint, placement, WorkerId(0), WeightType::kF32, pool);
  };
  const Result<ExpertShard> gpt_oss_shard = load("gpt_oss");
  const ExpertShard::Layer& gpt_oss = gpt_oss_shard->layers().front();
  EXPECT_EQ(gpt_oss.mlp.activation, Activation::kClampedSwiGlu);
  EXPECT_GT(gpt_oss.mlp.limit, 0);
  EXPECT_EQ(gpt_oss.weights[0]->gate_bias.size() + gpt_oss.weights[0]->up_bias.size(), 128u);
  EXPECT_EQ(gpt_oss.weights[0]->down_bias.size(), 96u);
  const Result<ExpertShard> switch_base_shard = load("switch_base");
  const ExpertShard::Layer& switch_base = switch_base_shard->layers().front();
  EXPECT_EQ(switch_base.mlp.activation, Activation::kRelu);
  EXPECT_TRUE(switch_base.weights[0]->gate.empty());
  EXPECT_EQ(switch_base.weights[0]->up.rows(), 44u);
  EXPECT_TRUE(load("llama4_text")->layers().front().scales_input);
  const Result<ExpertShard> mixtral_shard = load("mixtral");
  const ExpertShard::Layer& mixtral = mixtral_shard->layers().front();
  EXPECT_FALSE(mixtral.scales_input);
  EXPECT_EQ(mixtral.mlp.activation, Activation::kSiluGated);
  EXPECT_TRUE(mixtral.weights[0]->gate_bias.empty());
  EXPECT_TRUE(mixtral.weights[0]->up_bias.empty());
}

TEST_F(ExpertShardTest, LayersMayBePlacedDifferently) {
  const Placement placement{
      .generation = 9,
      .num_experts = 6,
      .workers = 2,
      .layers = {{0, {{5, 0}, {1, 2, 3, 4}}}, {1, {{}, {0, 1, 2, 3, 4, 5}}}, {2, {{3}, {0, 1, 2, 4, 5}}}}};
  ASSERT_TRUE(CheckPlacement(placement, Shape(2)).ok());
  const Loaded loaded = Load(placement, 0);
  EXPECT_EQ(loaded.shard.generation(), 9u);
  EXPECT_EQ(loaded.shard.Find(0)->experts, (std::vector<int>{5, 0}));
  EXPECT_TRUE(loaded.shard.Find(1)->experts.empty());
  EXPECT_EQ(loaded.shard.Find(2)->experts, (std::vector<int>{3}));
  EXPECT_EQ(loaded.mapped_bytes, StoredBytes(0, 5) + StoredBytes(0, 0) + StoredBytes(2, 3));
}

TEST_F(ExpertShardTest, FindsLayersByTheirAbsoluteIndex) {
  const Placement placement{.num_experts = 6, .workers = 1, .layers = {{0, {{1}}}, {2, {{4}}}}};
  const Loaded loaded = Load(placement, 0);
  EXPECT_EQ(loaded.shard.Find(0)->layer, 0);
  EXPECT_EQ(loaded.shard.Find(2)->layer, 2);
  EXPECT_EQ(loaded.shard.Find(1), nullptr) << "not sparse";
  EXPECT_EQ(loaded.shard.Find(3), nullptr);
  EXPECT_EQ(loaded.shard.Find(0xffffffff), nullptr);
}

TEST_F(ExpertShardTest, ThreadsDoNotChangeTheWeights) {
  const Placement placement = *LinearPlacement(Shape(1));
  const Loaded one = Load(placement, 0, 1);
  const Loaded four = Load(placement, 0, 4);
  EXPECT_EQ(one.mapped_bytes, four.mapped_bytes);
  for (std::size_t i = 0; i < one.shard.layers().size(); ++i) {
    for (std::size_t slot = 0; slot < 6; ++slot) {
      const MlpWeights& first = *one.shard.layers()[i].weights[slot];
      const MlpWeights& second = *four.shard.layers()[i].weights[slot];
      EXPECT_EQ(BytesOf(first.gate), BytesOf(second.gate));
      EXPECT_EQ(BytesOf(first.up), BytesOf(second.up));
      EXPECT_EQ(BytesOf(first.down), BytesOf(second.down));
    }
  }
}

// What few workers have kept, many find, and what is kept already is not written again.
TEST_F(ExpertShardTest, AnotherTopologyReadsWhatWasKept) {
  const Result<Checkpoint> checkpoint = Checkpoint::Open(folder_);
  const TemporaryFolder kept_in;
  ThreadPool pool(2);
  const auto load = [&](const Placement& placement, int worker, WeightCache* cache) {
    const WeightForm form(WeightTypes(WeightType::kInt4), cache);
    Result<ExpertShard> shard = ExpertShard::Load(config_, *checkpoint, placement, WorkerId(worker), form, pool);
    EXPECT_TRUE(shard.ok()) << shard.status().message();
    return *std::move(shard);
  };
  for (const int worker : {0, 1}) {
    WeightCache cache(kept_in.path(), *checkpoint);
    load(*LinearPlacement(Shape(2)), worker, &cache);
    EXPECT_EQ(cache.report().files_written, 3u * 3) << "its own experts";
  }
  const Placement placement = *RoundRobinPlacement(Shape(4, 3));
  for (int worker = 0; worker < 4; ++worker) {
    const std::uint64_t before = checkpoint->mapped_bytes();
    WeightCache cache(kept_in.path(), *checkpoint);
    const ExpertShard kept = load(placement, worker, &cache);
    EXPECT_EQ(checkpoint->mapped_bytes(), before) << "the checkpoint is left alone";
    EXPECT_EQ(cache.report().files_written, 0u);
    EXPECT_THAT(cache.report().Warnings(), ::testing::IsEmpty());
    const ExpertShard made = load(placement, worker, nullptr);
    EXPECT_EQ(kept.bytes(), made.bytes());
    EXPECT_EQ(kept.parameters(), made.parameters());
    for (std::size_t i = 0; i < made.layers().size(); ++i) {
      for (std::size_t slot = 0; slot < made.layers()[i].weights.size(); ++slot) {
        const MlpWeights& first = *kept.layers()[i].weights[slot];
        const MlpWeights& second = *made.layers()[i].weights[slot];
        EXPECT_EQ(BytesOf(first.gate), BytesOf(second.gate));
        EXPECT_EQ(BytesOf(first.up), BytesOf(second.up));
        EXPECT_EQ(BytesOf(first.down), BytesOf(second.down));
      }
    }
  }
}

TEST_F(ExpertShardTest, TheFirstSlotThatFailsIsTheError) {
  const Placement placement{.num_experts = 6, .workers = 1, .layers = {{0, {{0, 71, 1, 72}}}, {1, {{73}}}}};
  for (int i = 0; i < 20; ++i) {
    const Status status = LoadFailure(placement, 0);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(), AllOf(HasSubstr("expert 71"), HasSubstr("layer 0")));
  }
}

}  // namespace
}  // namespace moe
