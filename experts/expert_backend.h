// Where experts are computed: the grouped FFN over rows sorted by slot. CPU first; one contract suite for all.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "core/matrix.h"
#include "core/status.h"
#include "core/thread_pool.h"
#include "experts/expert_shard.h"
#include "kernels/kernels.h"
#include "model/cpu_mlp.h"

namespace moe {

class ExpertBackend {
 public:
  virtual ~ExpertBackend() = default;

  /// "cpu", or the name of the device.
  virtual std::string_view device() const = 0;

  /// Brings a layer's weights to where they are computed with. Once for each layer, before its first Run; the layer
  /// stays where it is.
  virtual Status Prepare(const ExpertShard::Layer& layer) = 0;

  /// Whether layers of another placement may come beside those that run; else why not, in one sentence.
  virtual Status CheckMigration() const { return Status::Ok(); }

  /// out = down(activation(gate in, up in)) of each row's expert, as layer.mlp says; rows are grouped by slot. A row's
  /// bits do not depend on the rows beside it (on a device: docs/gpu.md). A failure is the device's, and terminal.
  virtual Status Run(const ExpertShard::Layer& layer, const GroupedRows& rows) = 0;
};

/// `kernels` and `pool` must outlive the backend.
std::unique_ptr<ExpertBackend> MakeCpuExpertBackend(const Kernels& kernels, ThreadPool& pool,
                                                    const CpuMlpLimits& limits);

}  // namespace moe
