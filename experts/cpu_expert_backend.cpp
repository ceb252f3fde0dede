#include "experts/expert_backend.h"
#include "model/cpu_mlp.h"

namespace moe {
namespace {

class CpuExpertBackend final : public ExpertBackend {
 public:
  CpuExpertBackend(const Kernels& kernels, ThreadPool& pool, const CpuMlpLimits& limits) : mlp_(kernels, pool, limits) {
    experts_.reserve(limits.mlps);
  }

  std::string_view device() const override { return "cpu"; }
  Status Prepare(const ExpertShard::Layer& /*layer*/) override { return Status::Ok(); }
  Status Run(const ExpertShard::Layer& layer, const GroupedRows& rows) override {
    experts_.clear();
    for (const std::shared_ptr<const MlpWeights>& expert : layer.weights) experts_.push_back(expert.get());
    mlp_.Run(layer.mlp, experts_, rows);
    return Status::Ok();
  }

 private:
  CpuMlp mlp_;
  std::vector<const MlpWeights*> experts_;  // of the Run under way, by slot
};

}  // namespace

std::unique_ptr<ExpertBackend> MakeCpuExpertBackend(const Kernels& kernels, ThreadPool& pool,
                                                    const CpuMlpLimits& limits) {
  return std::make_unique<CpuExpertBackend>(kernels, pool, limits);
}

}  // namespace moe
