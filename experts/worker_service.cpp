#include "experts/worker_service.h"

#include <grpcpp/grpcpp.h>
#include <moe/v1/worker.grpc.pb.h>

namespace moe {

class WorkerService::Impl final : public v1::ExpertWorker::CallbackService {
 public:
  Impl(Rank rank, const WorkerDescription& description, const ExpertShard& shard, const WorkerTotals& totals)
      : rank_(rank), description_(description), shard_(shard), totals_(totals) {}

  grpc::ServerUnaryReactor* GetShard(grpc::CallbackServerContext* context, const v1::GetShardRequest*,
                                     v1::ShardDescription* response) override {
    response->set_rank(static_cast<std::uint32_t>(rank_.value()));
    response->set_model_hash(description_.fingerprint);
    response->set_weight_type(description_.weight_type);
    response->set_backend(description_.device);
    response->set_kernel_target(description_.kernel_target);
    response->set_parameters(shard_.parameters());
    response->set_weight_bytes(shard_.bytes());
    for (const ExpertShard::Layer& layer : shard_.layers()) {
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

  const Rank rank_;
  const WorkerDescription& description_;
  const ExpertShard& shard_;
  const WorkerTotals& totals_;
};

WorkerService::WorkerService(Rank rank, const WorkerDescription& description, const ExpertShard& shard,
                             const WorkerTotals& totals)
    : impl_(std::make_unique<Impl>(rank, description, shard, totals)) {}

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
