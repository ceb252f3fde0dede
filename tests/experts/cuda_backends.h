// The CUDA backend as an instance of the contract of expert backends, on any device.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "experts/cuda_expert_backend.h"
#include "tests/contract/expert_backend_contract.h"

namespace moe {

inline CudaExpertOptions CudaOptions(const CpuMlpLimits& limits,
                                     CudaExpertOptions::Path path = CudaExpertOptions::Path::kByRows) {
  return {.rows = limits.rows,
          .slots = limits.mlps,
          .hidden = limits.hidden,
          .intermediate = limits.intermediate,
          .type = limits.type,
          .path = path};
}

/// One of each path. `device` gives the device when a test begins.
inline std::vector<ExpertBackendContractParam> CudaBackends(const std::string& name, DeviceApi& (*device)()) {
  using Path = CudaExpertOptions::Path;
  std::vector<ExpertBackendContractParam> params;
  for (const auto& [path, path_name] :
       {std::pair{Path::kFixedCapacity, "fixed_capacity"}, {Path::kExactSize, "exact_size"}}) {
    params.push_back({.name = name + "_" + path_name,
                      .make =
                          [device, path = path](ThreadPool&, const CpuMlpLimits& limits) {
                            Result<std::unique_ptr<ExpertBackend>> backend =
                                MakeCudaExpertBackend(device(), CudaOptions(limits, path));
                            EXPECT_TRUE(backend.ok()) << backend.status().message();
                            return *std::move(backend);
                          },
                      .types = {WeightType::kBf16, WeightType::kF16, WeightType::kInt8, WeightType::kInt4},
                      // Exact sizes go through cuBLAS, whose results are 16 bits wide.
                      .roundings = {.inputs = true, .sums = path == Path::kExactSize},
                      .uses_no_threads = "a device computes with threads of its own"});
  }
  return params;
}

}  // namespace moe
