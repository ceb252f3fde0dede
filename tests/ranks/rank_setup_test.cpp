// What a rank makes of the user's choices.
#include "ranks/rank_setup.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>

#include "tests/router/engine_harness.h"

namespace moe {
namespace {

constexpr Topology kEmbedded{.workers = 1, .embedded = true};
constexpr Topology kTwoWorkers{.workers = 2, .embedded = false};

RankSetup Prepare(const char* model, const Topology& topology, int micro_batches) {
  Result<RankSetup> setup = PrepareRank({.model = SourcePath(model), .threads = 1, .micro_batches = micro_batches},
                                        {.topology = topology, .node_local_size = topology.ranks()});
  MOE_CHECK(setup.ok(), setup.status().message());
  return *std::move(setup);
}

TEST(RankSetup, MicroBatchesAreMeasuredWhereRouterAndWorkersCanComputeAtATime) {
  const RankSetup apart = Prepare("tests/goldens/mixtral", kTwoWorkers, 0);
  EXPECT_EQ(apart.micro_batches.most, 2);
  EXPECT_TRUE(apart.micro_batches.measure);
  const RankSetup embedded = Prepare("tests/goldens/mixtral", kEmbedded, 0);
  EXPECT_EQ(embedded.micro_batches.most, 1);
  EXPECT_FALSE(embedded.micro_batches.measure);
  const RankSetup dense = Prepare("tests/goldens/mistral", kTwoWorkers, 0);
  EXPECT_EQ(dense.micro_batches.most, 1);
}

TEST(RankSetup, AsManyMicroBatchesAsAskedForFitTheTransport) {
  for (const Topology& topology : {kEmbedded, kTwoWorkers}) {
    for (int asked = 1; asked <= kMaxMicroBatches; ++asked) {
      const RankSetup setup = Prepare("tests/goldens/mixtral", topology, asked);
      EXPECT_EQ(setup.micro_batches.most, asked);
      EXPECT_FALSE(setup.micro_batches.measure);
      EXPECT_EQ(setup.exchange.max_micro_batches, static_cast<std::size_t>(asked));
      EXPECT_GE(setup.transport_limits.max_exchanges, asked);
    }
  }
}

TEST(RankSetup, PayloadsCarryChecksumsWhereTheUserWantsThem) {
  for (const bool wanted : {false, true}) {
    const Result<RankSetup> setup =
        PrepareRank({.model = SourcePath("tests/goldens/mixtral"), .threads = 1, .wire_checksum = wanted},
                    {.topology = kTwoWorkers, .node_local_size = kTwoWorkers.ranks()});
    ASSERT_TRUE(setup.ok()) << setup.status().message();
    EXPECT_EQ(setup->transport_limits.payload_checksums, wanted);
  }
}

Result<RankSetup> PrepareWith(RankOptions options, const Topology& topology) {
  options.model = SourcePath("tests/goldens/mixtral");
  options.threads = 1;
  return PrepareRank(options, {.topology = topology, .node_local_size = topology.ranks()});
}

TEST(RankSetup, PlacementsAreWeighedWithLoadsWhereThereAreAny) {
  const Result<RankSetup> plain = PrepareWith({.placement = "auto", .redundant_experts = 1}, kTwoWorkers);
  ASSERT_TRUE(plain.ok()) << plain.status().message();
  const std::size_t layers = plain->placement.layers.size();
  const int experts = plain->placement.num_experts;
  const std::filesystem::path file =
      std::filesystem::temp_directory_path() / ("moe-rank-setup-loads-" + std::to_string(getpid()) + ".json");
  std::string text;
  for (std::size_t i = 0; i < layers; ++i) {
    text += i == 0 ? "[" : ", [";
    for (int e = 0; e < experts; ++e) text += e == 0 ? "1" : e + 1 == experts ? ", 50" : ", 1";
    text += "]";
  }
  std::ofstream(file) << R"({"layers": [)" << text << "]}";
  const Result<RankSetup> weighed =
      PrepareWith({.placement = "auto", .loads = file, .redundant_experts = 1}, kTwoWorkers);
  const Result<RankSetup> useless = PrepareWith({.placement = "linear", .loads = file}, kTwoWorkers);
  std::filesystem::remove(file);
  ASSERT_TRUE(weighed.ok()) << weighed.status().message();
  for (const LayerPlacement& layer : weighed->placement.layers)
    for (const std::vector<int>& worker : layer.slots)
      EXPECT_THAT(worker, ::testing::Contains(experts - 1)) << "the hot expert is on both workers";
  EXPECT_EQ(useless.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(useless.status().message(), ::testing::HasSubstr("linear does not weigh loads"));
}

TEST(RankSetup, ReplicasThatDoNotFitAreRefusedWhateverPlacesThem) {
  for (const char* placement : {"linear", "round_robin", "eplb", "auto"}) {
    const Result<RankSetup> setup = PrepareWith({.placement = placement, .redundant_experts = 100}, kTwoWorkers);
    ASSERT_FALSE(setup.ok()) << placement;
    EXPECT_THAT(setup.status().message(),
                ::testing::StartsWith(Cat("--placement ", placement, " --redundant-experts 100: slots ")));
  }
}

TEST(RankSetup, EplbRefusesSlotsThatItCannotDivide) {
  const Result<RankSetup> setup = PrepareWith({.placement = "eplb", .redundant_experts = 1}, kTwoWorkers);
  ASSERT_FALSE(setup.ok());
  EXPECT_THAT(setup.status().message(), ::testing::HasSubstr("slots cannot be divided evenly by 2 workers"));
  EXPECT_TRUE(PrepareWith({.placement = "eplb", .redundant_experts = 2}, kTwoWorkers).ok());
}

/// The types that one process holds the weights of `golden` in; it must be able to.
WeightTypes TypesOf(const std::string& golden, std::optional<WeightType> type, std::optional<WeightType> attention) {
  const RankOptions options{
      .model = SourcePath("tests/goldens/" + golden),
      .weight_type = type,
      .attention_weight_type = attention,
      .threads = 1,
  };
  const Result<RankSetup> setup = PrepareRank(options, {.topology = {}, .rank = Topology().router()});
  EXPECT_TRUE(setup.ok()) << setup.status().message();
  return setup.ok() ? setup->weight_types : WeightTypes();
}

WeightTypes Types(WeightType mlps, WeightType attention) {
  WeightTypes types = mlps;
  types.attention = attention;
  return types;
}

TEST(PrepareRank, TakesTheStoredTypeWhereNoneIsChosen) {
  EXPECT_EQ(TypesOf("mixtral", {}, {}), Types(WeightType::kF32, WeightType::kF32));
  EXPECT_EQ(TypesOf("mixtral_bf16", {}, {}), Types(WeightType::kBf16, WeightType::kBf16));
}

TEST(PrepareRank, TakesOneTypeForAllButAttentionBesideInt4) {
  EXPECT_EQ(TypesOf("mixtral", WeightType::kInt8, {}), Types(WeightType::kInt8, WeightType::kInt8));
  EXPECT_EQ(TypesOf("mixtral", WeightType::kInt4, {}), Types(WeightType::kInt4, WeightType::kInt8));
  EXPECT_EQ(TypesOf("mixtral", WeightType::kBf16, {}), Types(WeightType::kBf16, WeightType::kBf16));
}

TEST(PrepareRank, TakesAttentionInATypeOfItsOwn) {
  EXPECT_EQ(TypesOf("mixtral", WeightType::kInt4, WeightType::kF32), Types(WeightType::kInt4, WeightType::kF32));
  EXPECT_EQ(TypesOf("mixtral", {}, WeightType::kInt8), Types(WeightType::kF32, WeightType::kInt8));
}

/// Where a rank keeps what is quantized; empty: nowhere.
std::string CacheOf(const RankOptions& options) {
  const Result<RankSetup> setup = PrepareRank(options, {.topology = {}, .rank = Topology().router()});
  EXPECT_TRUE(setup.ok()) << setup.status().message();
  if (!setup.ok() || !setup->weight_cache) return "";
  EXPECT_EQ(setup->weight_form().cache, setup->weight_cache.get());
  return setup->weight_cache->folder().string();
}

TEST(PrepareRank, KeepsWhatIsQuantizedBesideTheModelOrInTheFolderGiven) {
  RankOptions options{.model = SourcePath("tests/goldens/mixtral"), .weight_type = WeightType::kInt8, .threads = 1};
  EXPECT_EQ(CacheOf(options), (SourcePath("tests/goldens/mixtral") / "moe-cache").string());
  options.weight_cache = "/nonexistent/caches";
  EXPECT_EQ(CacheOf(options), "/nonexistent/caches/mixtral");
  options.model = SourcePath("tests/goldens/../goldens/mixtral/");
  EXPECT_EQ(CacheOf(options), "/nonexistent/caches/mixtral") << "however the model's folder is written";
}

TEST(PrepareRank, KeepsNothingWhereNothingIsQuantizedOrNothingShallBe) {
  RankOptions options{.model = SourcePath("tests/goldens/mixtral"), .weight_type = WeightType::kInt8, .threads = 1};
  options.weight_cache = "off";
  EXPECT_EQ(CacheOf(options), "");
  for (const char* choice : {"auto", "/nonexistent/caches"}) {
    options.weight_cache = choice;
    options.load_format = LoadFormat::kDummy;
    EXPECT_EQ(CacheOf(options), "") << "made-up weights are made up anew";
    options.load_format = LoadFormat::kAuto;
    options.weight_type = WeightType::kBf16;
    EXPECT_EQ(CacheOf(options), "");
    options.attention_weight_type = WeightType::kInt8;
    EXPECT_NE(CacheOf(options), "");
    options.attention_weight_type.reset();
    options.weight_type = WeightType::kInt8;
  }
}

TEST(CheckWeightCache, MakesTheFolderAndRefusesWhatCannotBeOne) {
  EXPECT_TRUE(CheckWeightCache("auto").ok());
  EXPECT_TRUE(CheckWeightCache("off").ok());
  std::string folder = ::testing::TempDir() + "/moe-cache-XXXXXX";
  ASSERT_NE(mkdtemp(folder.data()), nullptr);
  EXPECT_TRUE(CheckWeightCache(folder + "/a/b").ok());
  EXPECT_TRUE(std::filesystem::is_directory(folder + "/a/b"));
  std::ofstream(folder + "/file") << "x";
  for (const std::string& bad :
       {folder + "/file", folder + "/file/below", std::string("/proc/caches"), std::string()}) {
    const Status status = CheckWeightCache(bad);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(status.message(), ::testing::StartsWith("--weight-cache \"" + bad + "\" is not auto, off or a folder"));
  }
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace moe
