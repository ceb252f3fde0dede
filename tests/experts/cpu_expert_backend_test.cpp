#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "experts/expert_backend.h"
#include "tests/contract/expert_backend_contract.h"

namespace moe {
namespace {

std::vector<ExpertBackendContractParam> CpuBackends() {
  std::vector<const Kernels*> all = AvailableSimdKernels();
  all.push_back(&ReferenceKernels());
  std::vector<ExpertBackendContractParam> params;
  for (const Kernels* kernels : all) {
    params.push_back({"cpu_" + std::string(kernels->name()), [kernels](ThreadPool& pool, const CpuMlpLimits& limits) {
                        return MakeCpuExpertBackend(*kernels, pool, limits);
                      }});
  }
  return params;
}

INSTANTIATE_TEST_SUITE_P(Cpu, ExpertBackendContract, ::testing::ValuesIn(CpuBackends()),
                         [](const auto& test) { return test.param.name; });

/// 23 rows on three slots.
struct Rows {
  static constexpr std::size_t kHidden = 60;
  const std::vector<std::uint32_t> offsets = {0, 3, 3, 23};
  const std::vector<float> in = RandomValues(23 * kHidden, 1);
  std::vector<float> out = std::vector<float>(23 * kHidden);

  GroupedRows grouped() {
    return {.offsets = offsets,
            .in = MatrixView<const float>(in.data(), 23, kHidden),
            .out = MatrixView<float>(out.data(), 23, kHidden)};
  }
};

TEST(CpuExpertBackend, InstructionSetsGiveTheSameBits) {
  for (const WeightType type : kWeightTypes) {
    for (const MlpSpec& mlp : ExpertKinds(100)) {
      const ExpertShard::Layer layer = MakeExpertLayer({.hidden = Rows::kHidden, .slots = 3, .mlp = mlp, .type = type});
      ThreadPool pool(1);
      std::vector<float> expected;
      for (const Kernels* kernels : AvailableSimdKernels()) {
        Rows rows;
        ASSERT_TRUE(MakeCpuExpertBackend(*kernels, pool, Limits(23, 100, type))->Run(layer, rows.grouped()).ok());
        if (expected.empty()) expected = rows.out;
        EXPECT_TRUE(SameBits(rows.out, expected)) << kernels->name();
      }
    }
  }
}

TEST(CpuExpertBackend, IsCalledCpu) {
  ThreadPool pool(1);
  EXPECT_EQ(MakeCpuExpertBackend(SimdKernels(), pool, Limits(1, 1))->device(), "cpu");
}

TEST(CpuExpertBackendDeathTest, RefusesRowsThatDoNotFit) {
  const ExpertShard::Layer layer = MakeExpertLayer({.hidden = Rows::kHidden, .slots = 3, .mlp = {.intermediate = 44}});
  ThreadPool pool(1);
  Rows rows;
  const auto small = MakeCpuExpertBackend(SimdKernels(), pool, Limits(22, 44));
  EXPECT_DEATH((void)small->Run(layer, rows.grouped()), "broken invariant") << "a row more than the limit";
  const auto narrow = MakeCpuExpertBackend(SimdKernels(), pool, Limits(23, 43));
  EXPECT_DEATH((void)narrow->Run(layer, rows.grouped()), "broken invariant") << "an expert wider than the limit";
}

TEST(CpuExpertBackendDeathTest, RefusesOffsetsOfAnotherLayer) {
  const ExpertShard::Layer layer = MakeExpertLayer({.hidden = Rows::kHidden, .slots = 2, .mlp = {.intermediate = 44}});
  ThreadPool pool(1);
  Rows rows;
  const auto backend = MakeCpuExpertBackend(SimdKernels(), pool, Limits(23, 44));
  EXPECT_DEATH((void)backend->Run(layer, rows.grouped()), "broken invariant") << "three slots for a layer of two";
}

}  // namespace
}  // namespace moe
