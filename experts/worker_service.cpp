#include "experts/worker_service.h"

#include <grpcpp/grpcpp.h>
#include <moe/v1/worker.grpc.pb.h>

#include <utility>

namespace moe {

class WorkerService::Impl final : public v1::ExpertWorker::CallbackService {
 public:
  Impl(std::function<HostedShard()> hosted, const WorkerTotals& totals) : hosted_(std::move(hosted)), totals_(totals) {}

  grpc::ServerUnaryReactor* GetShard(grpc::CallbackServerContext* context, const v1::GetShardRequest*,
                                     v1::ShardDescription* response) override {
    const HostedShard hosted = hosted_();
    response->set_rank(static_cast<std::uint32_t>(hosted.rank.value()));
    response->set_model_hash(hosted.description.fingerprint);
    response->set_weight_type(hosted.description.weight_type);
    response->set_backend(hosted.description.device);
    response->set_kernel_target(hosted.description.kernel_target);
    response->set_parameters(hosted.description.parameters);
    response->set_weight_bytes(hosted.description.weight_bytes);
    for (const HostedExperts::Layer& layer : hosted.layers) {
      v1::ShardLayer& message = *response->add_layers();
      message.set_layer(static_cast<std::uint32_t>(layer.layer));
      for (const int expert : layer.experts) message.add_experts(static_cast<std::uint32_t>(expert));
    }
    return Ok(context);
  }

  grpc::ServerUnaryReactor* GetStatistics(grpc::CallbackServerContext* context, const v1::GetStatisticsRequest*,
                                          v1::WorkerStatistics* response) override {
    response->set_exchanges(totals_.exchanges.load(std::memory_order_relaxed));  // counts, as WorkerTotals says
    response->set_rows(totals_.rows.load(std::memory_order_relaxed));
    response->set_busy_seconds(static_cast<double>(totals_.busy_ns.load(std::memory_order_relaxed)) * 1e-9);
    response->set_received_bytes(totals_.received_bytes.load(std::memory_order_relaxed));
    response->set_sent_bytes(totals_.sent_bytes.load(std::memory_order_relaxed));
    return Ok(context);
  }

 private:
  static grpc::ServerUnaryReactor* Ok(grpc::CallbackServerContext* context) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

  const std::function<HostedShard()> hosted_;
  const WorkerTotals& totals_;
};

WorkerService::WorkerService(std::function<HostedShard()> hosted, const WorkerTotals& totals)
    : impl_(std::make_unique<Impl>(std::move(hosted), totals)) {}

WorkerService::~WorkerService() = default;

grpc::Service* WorkerService::service() { return impl_.get(); }

WorkerMetrics::WorkerMetrics(MetricsRegistry& registry)
    : rows_(registry.AddCounter("moe_worker_rows_total", "Expert rows computed by this worker.")),
      busy_seconds_(
          registry.AddCounter("moe_worker_busy_seconds_total", "Time from a dispatch's arrival here to its answer.")),
      ffn_seconds_(registry.AddHistogram("moe_expert_ffn_seconds", "Time of the experts of one dispatch.",
                                         ExponentialBuckets(5e-6, 2, 20))) {}  // 5 µs … 2.6 s

void WorkerMetrics::OnDispatch(const DispatchFigures& figures) const {
  rows_.Add(static_cast<double>(figures.rows));
  busy_seconds_.Add(figures.busy_seconds);
  ffn_seconds_.Observe(figures.ffn_seconds);
}

}  // namespace moe
