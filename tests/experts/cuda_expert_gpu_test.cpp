// The CUDA backend on a real device, under the contract of all expert backends. Skipped, with the reason, without one.
#include <memory>
#include <string>
#include <vector>

#include "tests/experts/cuda_backends.h"

namespace moe {
namespace {

const Result<std::unique_ptr<DeviceApi>>& Opened() {
  static const Result<std::unique_ptr<DeviceApi>> opened = OpenCudaDevice();
  return opened;
}

DeviceApi& Device() { return **Opened(); }

std::vector<ExpertBackendContractParam> RealBackends() {
  std::vector<ExpertBackendContractParam> params = CudaBackends("device", &Device);
  for (ExpertBackendContractParam& param : params) {
    if (!Opened().ok()) param.no_backend = Opened().status().message();
    param.counts_no_allocations = "CUDA's run time allocates as it likes";
    if (param.name == "device_exact_size") param.rows_depend = "cuBLAS chooses its order of summation by the sizes";
  }
  return params;
}

INSTANTIATE_TEST_SUITE_P(Gpu, ExpertBackendContract, ::testing::ValuesIn(RealBackends()),
                         [](const auto& test) { return test.param.name; });

TEST(CudaExpertsOnADevice, IntegersGiveTheBitsOfTheCpu) {
  if (!Opened().ok()) GTEST_SKIP() << Opened().status().message();
  constexpr std::size_t kRows = 200;
  ThreadPool pool(2);
  const std::vector<std::uint32_t> offsets = {0, 1, 60, 60, kRows};
  for (const ExpertLayerCase& c : EachKind({.hidden = 500, .slots = 4}, 300, WeightType::kBf16)) {
    if (!IsQuantized(c.type)) continue;
    const CpuMlpLimits limits{.rows = kRows, .mlps = 4, .hidden = 500, .intermediate = 300, .type = c.type};
    const ExpertShard::Layer layer = MakeExpertLayer(c);
    const std::vector<float> in = RandomValues(kRows * 500, 5);
    std::vector<float> expected(in.size());
    std::vector<float> out(in.size());
    const auto run = [&](ExpertBackend& backend, std::vector<float>& to) {
      return backend.Run(layer, {.offsets = offsets,
                                 .in = MatrixView<const float>(in.data(), kRows, 500),
                                 .out = MatrixView<float>(to.data(), kRows, 500)});
    };
    ASSERT_TRUE(run(*MakeCpuExpertBackend(SimdKernels(), pool, limits), expected).ok());
    const auto backend = *MakeCudaExpertBackend(Device(), CudaOptions(limits));
    ASSERT_TRUE(backend->Prepare(layer).ok() && run(*backend, out).ok());
    EXPECT_TRUE(SameBits(out, expected)) << Name(c.type);
  }
}

}  // namespace
}  // namespace moe
