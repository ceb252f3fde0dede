// `moe_bench kernels`: every kernel on the shapes that matter, beside what the machine could do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "bench/engine/roofs.h"
#include "core/status.h"
#include "kernels/kernels.h"
#include "kernels/weight_type.h"

namespace moe {

/// A weight matrix of a published model.
struct MatrixShape {
  std::string model;   // "olmoe-1b-7b"
  std::string matrix;  // "expert gate and up"
  std::size_t outputs = 0;
  std::size_t inputs = 0;
};

/// The heads of a published model's attention.
struct HeadsShape {
  std::string model;
  std::size_t heads = 0;
  std::size_t kv_heads = 0;
  std::size_t head_dim = 0;
};

/// Experts and attention of OLMoE-1B-7B, Mixtral 8x7B and Qwen3-30B-A3B.
std::vector<MatrixShape> MatrixShapes();
std::vector<HeadsShape> HeadsShapes();

struct KernelBenchOptions {
  std::vector<std::size_t> rows = {1, 2, 4, 8, 16, 32, 64, 512};
  std::vector<std::size_t> contexts = {128, 2048};
  std::vector<WeightType> weight_types = {WeightType::kF32, WeightType::kBf16, WeightType::kInt8, WeightType::kInt4};
  std::vector<KvType> kv_types = {KvType::kF32, KvType::kBf16};
  std::vector<std::string> models;  // a part of the shapes; empty: all
  int threads = 0;                  // 0: every processor that this process may use
  double seconds = 0.2;             // for each figure, about
  std::size_t cold_bytes = 0;       // of weights that a pass goes through; 0: eight times the last-level cache
};

/// INVALID_ARGUMENT naming a list that is empty or a value out of range.
Status CheckKernelBench(const KernelBenchOptions& options);

/// One figure: medians over the passes of a kernel, before each of which the roofs are measured.
struct KernelResult {
  std::string kernel;  // "matmul", "attention"
  std::string model;
  std::string shape;  // "expert gate and up 2048x2048", "16 heads of 128, 2048 positions"
  std::string type;   // of the weights; attention: of the cache
  std::size_t rows = 0;
  double largest_error = 0;  // |difference from the reference| / what rounding allows; at most 1

  double bytes_per_s = 0;         // of weights, or of keys and values, read from memory
  double read_bytes_per_s = 0;    // of the same memory, when it is only read
  double share_of_bandwidth = 0;  // of a pass's rate in that of the reading before it
  double operations_per_s = 0;    // a multiplication and an addition are two

  /// What the instruction that the kernel multiplies with does when it does nothing else.
  struct Peak {
    std::string instruction;  // "int8 avx512_vnni"
    double operations_per_s = 0;
    double share = 0;
  };
  std::optional<Peak> peak;  // none where there is no loop for it
};

/// Checks each kernel against the reference before it is timed: INTERNAL naming kernel and shape when they differ by
/// more than rounding allows. `starting` is told of each shape.
Result<std::vector<KernelResult>> RunKernelBench(const KernelBenchOptions& options, const Kernels& kernels,
                                                 const std::function<void(const std::string&)>& starting);

struct KernelBenchContext {
  std::vector<DotRoof> dot_roofs;
  std::string kernels;  // Kernels::name
  int threads = 0;
};

std::string KernelResultsJson(const std::vector<KernelResult>& results, const KernelBenchContext& context);
std::string KernelTable(const std::vector<KernelResult>& results, const KernelBenchContext& context);

}  // namespace moe
