#include "experts/expert_backend.h"
#include "model/cpu_mlp.h"

namespace moe {
namespace {

class CpuExpertBackend final : public ExpertBackend {
 public:
  CpuExpertBackend(const Kernels& kernels, ThreadPool& pool, const CpuMlpLimits& limits)
      : mlp_(kernels, pool, limits) {}

  std::string_view device() const override { return "cpu"; }
  Status Prepare(const ExpertShard::Layer& /*layer*/) override { return Status::Ok(); }
  Status Run(const ExpertShard::Layer& layer, const GroupedRows& rows) override {
    mlp_.Run(layer.mlp, layer.weights, rows);
    return Status::Ok();
  }

 private:
  CpuMlp mlp_;
};

}  // namespace

std::unique_ptr<ExpertBackend> MakeCpuExpertBackend(const Kernels& kernels, ThreadPool& pool,
                                                    const CpuMlpLimits& limits) {
  return std::make_unique<CpuExpertBackend>(kernels, pool, limits);
}

}  // namespace moe
