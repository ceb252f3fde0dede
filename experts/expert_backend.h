// Where experts are computed: the grouped FFN over rows sorted by slot. CPU first; one contract suite for all.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "core/matrix.h"
#include "core/thread_pool.h"
#include "experts/expert_shard.h"
#include "kernels/kernels.h"

namespace moe {

/// Rows for the experts of one layer of a shard.
struct GroupedRows {
  std::span<const std::uint32_t> offsets;  // (slots + 1), exclusive: slot s has rows [offsets[s], offsets[s + 1])
  MatrixView<const float> in;              // (rows, hidden), sorted by slot
  MatrixView<float> out;                   // (rows, hidden)
};

class ExpertBackend {
 public:
  virtual ~ExpertBackend() = default;

  /// "cpu", or the name of the device.
  virtual std::string_view device() const = 0;

  /// out = down(activation(gate in, up in)) of each row's expert, as layer.mlp says. A row's bits do not depend on the
  /// rows beside it.
  virtual void Run(const ExpertShard::Layer& layer, const GroupedRows& rows) = 0;
};

/// `max_rows`: of one Run. `inner_width`: the widest expert's MlpSpec::inner_width. `kernels` and `pool` must outlive
/// the backend.
struct CpuExpertOptions {
  std::size_t max_rows = 0;
  std::size_t inner_width = 0;
};
std::unique_ptr<ExpertBackend> MakeCpuExpertBackend(const Kernels& kernels, ThreadPool& pool, CpuExpertOptions options);

}  // namespace moe
