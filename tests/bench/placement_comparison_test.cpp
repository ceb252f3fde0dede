// The figures that `moe_bench placement` prints over a thousand cases, held to over the first hundred.
#include "bench/plan/placement_comparison.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "bench/plan/placement_bench.h"
#include "bench/plan/recorded_loads.h"
#include "placement/loads_file.h"

namespace moe {
namespace {

TEST(PlacementComparison, OursIsNeverWorseThanEplbAndNearTheBound) {
  double near = 0;
  int roomy = 0;
  for (std::uint64_t i = 0; i < 100; ++i) {
    const ComparisonCase made = MakeComparisonCase(1, i);
    const Result<ComparedCase> compared = CompareCase(made);
    ASSERT_TRUE(compared.ok()) << "case " << i << ": " << compared.status().message();
    EXPECT_LE(compared->ours, compared->eplb * (1 + 1e-9)) << "case " << i;
    EXPECT_LE(compared->bound, compared->ours * (1 + 1e-9)) << "case " << i;
    if (made.problem.slots < made.problem.num_experts + made.problem.workers) continue;
    ++roomy;
    near += compared->bound / compared->ours;
  }
  ASSERT_GT(roomy, 50);
  EXPECT_GE(near / roomy, 0.99);
}

TEST(PlacementComparison, ADriftMovesAQuarterOfWhatEplbMovesAtMost) {
  std::uint64_t ours = 0;
  std::uint64_t eplb = 0;
  for (std::uint64_t i = 0; i < 50; ++i) {
    const Result<ComparedCase> compared = CompareCase(MakeComparisonCase(2, i));
    ASSERT_TRUE(compared.ok()) << compared.status().message();
    ours += compared->ours_moved;
    eplb += compared->eplb_moved;
  }
  EXPECT_LE(4 * ours, eplb);
}

TEST(PlacementComparison, CasesCoverTheKindsOfLoadsAndSizes) {
  int equal = 0;
  int uniform = 0;
  int zipf = 0;
  int recorded = 0;
  for (std::uint64_t i = 0; i < 200; ++i) {
    const ComparisonCase made = MakeComparisonCase(1, i);
    equal += made.loads == "equal";
    uniform += made.loads == "uniform";
    zipf += made.loads == "zipf" && made.exponent >= 0.6 && made.exponent <= 1.4;
    recorded += made.loads == "recorded" && made.problem.num_experts == 8;
    EXPECT_GE(made.problem.num_experts, 8);
    EXPECT_LE(made.problem.num_experts, 512);
    EXPECT_GE(made.problem.workers, 2);
    EXPECT_LE(made.problem.workers, 64);
    EXPECT_EQ(made.problem.slots % made.problem.workers, 0);
    EXPECT_TRUE(CheckProblem(made.problem).ok()) << i;
  }
  EXPECT_EQ(equal + uniform + zipf + recorded, 200);
  EXPECT_GT(equal, 20);
  EXPECT_GT(uniform, 20);
  EXPECT_GT(zipf, 60);
  EXPECT_GT(recorded, 20);
}

TEST(PlacementComparison, TheBundledModelsHaveRecordedLoads) {
  ASSERT_EQ(AllRecordedLoads().size(), 2u);
  for (const RecordedLoads& recorded : AllRecordedLoads()) {
    const Result<std::vector<LayerLoad>> layers = ParseLoads(recorded.json);
    ASSERT_TRUE(layers.ok()) << recorded.model << ": " << layers.status().message();
    EXPECT_EQ(layers->size(), 4u) << recorded.model;
    for (const LayerLoad& layer : *layers) {
      EXPECT_EQ(layer.mean.size(), 8u) << recorded.model;
      EXPECT_EQ(layer.samples.size(), 8u) << recorded.model << ": one a language";
    }
  }
}

TEST(PlacementBench, CountsItsCases) {
  const PlacementBenchOptions options{
      .cases = 5, .layers = 2, .experts = 16, .workers = 4, .slots = 20, .repetitions = 1};
  const Result<PlacementBenchResult> result = RunPlacementBench(options);
  ASSERT_TRUE(result.ok()) << result.status().message();
  EXPECT_EQ(result->cases, 5u);
  EXPECT_GT(result->seconds, 0);
  const nlohmann::json json = nlohmann::json::parse(PlacementBenchJson(*result));
  EXPECT_EQ(json["cases"], 5);
  EXPECT_GT(json["of_lower_bound"]["auto"], 0.5);
  EXPECT_EQ(RunPlacementBench({.cases = 1, .experts = 16, .workers = 4, .slots = 19}).status().code(),
            StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace moe
