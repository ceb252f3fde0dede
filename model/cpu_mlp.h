// MLPs on the CPU, many at a time: the experts of a layer, or a dense layer's one.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/matrix.h"
#include "core/thread_pool.h"
#include "kernels/kernels.h"
#include "kernels/quantize.h"
#include "model/config.h"
#include "model/weights.h"

namespace moe {

/// Rows sorted by the MLP that they are for.
struct GroupedRows {
  std::span<const std::uint32_t> offsets;  // (MLPs + 1), exclusive: MLP m has rows [offsets[m], offsets[m + 1])
  MatrixView<const float> in;              // (rows, hidden)
  MatrixView<float> out;                   // (rows, hidden)
};

/// What a CpuMlp has room for.
struct CpuMlpLimits {
  std::size_t rows = 0;  // of one Run
  std::size_t mlps = 1;
  std::size_t hidden = 0;
  std::size_t intermediate = 0;
  WeightType type = WeightType::kF32;
};

class CpuMlp {
 public:
  /// `kernels` and `pool` must outlive it.
  CpuMlp(const Kernels& kernels, ThreadPool& pool, const CpuMlpLimits& limits);

  /// out = down(activation(gate in, up in)) of each row's MLP. All of `mlps` have the shape that `spec` says, and the
  /// type of the limits. A row's bits do not depend on the rows beside it.
  void Run(const MlpSpec& spec, std::span<const MlpWeights* const> mlps, const GroupedRows& rows);

 private:
  /// The Run under way.
  struct Job {
    const MlpSpec& spec;
    std::span<const MlpWeights* const> mlps;
    const GroupedRows& rows;
    std::size_t inner_tiles = 0;
    std::size_t outer_tiles = 0;
  };
  void OrderBySize(const GroupedRows& rows);
  void RunInner(const Job& job, std::size_t place, std::size_t tile, int thread);
  void RunOuter(const Job& job, std::size_t place, std::size_t tile);
  void Multiply(const GroupedRows& rows, std::size_t begin, std::size_t count, const PackedMatrix& w,
                std::span<const float> bias, std::size_t first_panel, MatrixView<float> y) const;

  const Kernels& kernels_;
  ThreadPool& pool_;
  const CpuMlpLimits limits_;
  const bool quantized_;
  QuantizedRows inputs_;                                   // (rows, hidden)
  QuantizedRows quantized_inner_;                          // (rows, intermediate)
  AlignedBuffer<float> inner_;                             // (rows, intermediate) where it is not quantized
  AlignedBuffer<float> scratch_;                           // (threads, 2, rows of a block, columns of a tile)
  std::vector<std::uint32_t> order_;                       // MLPs that have rows, those with the most first
  std::unique_ptr<std::atomic<std::uint32_t>[]> pending_;  // by place in order_: inner tiles that are not done yet
};

}  // namespace moe
