#include "router/cluster_service.h"

#include <grpcpp/grpcpp.h>
#include <moe/v1/cluster.grpc.pb.h>

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "model/json.h"
#include "router/cluster_messages.h"
#include "rpc/status_mapping.h"

namespace moe {
namespace {

// A client may have a file made on this machine: only one that is new, and that nobody takes for anything else.
Status CheckTracePath(const std::string& path) {
  constexpr std::string_view kSuffix = ".moetrace";
  if (path.size() > kSuffix.size() && path.ends_with(kSuffix) && path.find('\0') == std::string::npos)
    return Status::Ok();
  return InvalidArgument("path \"", Printable(path), "\" does not end in ", kSuffix);
}

/// For what is answered later, by another thread: writes what there is and finishes, or finishes with the failure.
template <typename Value>
std::function<void(const Result<Value>&)> AnswerLater(grpc::ServerUnaryReactor* reactor,
                                                      std::function<void(const Value&)> write) {
  return [reactor, write = std::move(write)](const Result<Value>& value) {
    if (value.ok()) write(*value);
    reactor->Finish(ToGrpc(value.status()));
  };
}

}  // namespace

class ClusterService::Impl final : public v1::Cluster::CallbackService {
 public:
  Impl(ClusterSetup setup, const ModelConfig& config, Router& router)
      : setup_(std::move(setup)), config_(config), router_(router) {}

  grpc::ServerUnaryReactor* GetCluster(grpc::CallbackServerContext* context, const v1::GetClusterRequest* request,
                                       v1::ClusterState* response) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    *response = State();
    if (const MigrationProgress progress = router_.migration(); progress.generation > 0)
      WriteMigration(progress, *response->mutable_migration());
    response->set_draining(router_.draining());
    if (setup_.trace != nullptr)
      if (const auto progress = setup_.trace->progress()) WriteTrace(*progress, *response->mutable_trace());
    if (setup_.balancer != nullptr)
      if (const auto advice = setup_.balancer->last()) WriteVerdict(*advice, *response->mutable_verdict());
    // The load belongs to the engine thread, which fills it in between two steps.
    const bool running = router_.OnEngineThread([this, reactor, response, parts = request->parts()] {
      WriteLoad(config_, router_.engine().load_window(), router_.health(), *response);
      if (parts) WriteParts(config_, router_.engine().load_window(), *response);
      WriteCost(router_.cost(), *response->mutable_cost());
      if (const auto& outcome = router_.moves().outcome()) WriteMove(*outcome, *response->mutable_last_move());
      WriteTotals(*response);
      reactor->Finish(grpc::Status::OK);
    });
    if (!running) reactor->Finish(ToGrpc(Unavailable("the router has stopped")));
    return reactor;
  }

  grpc::ServerUnaryReactor* GetPlacement(grpc::CallbackServerContext* context, const v1::GetPlacementRequest*,
                                         v1::Placement* response) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    WritePlacement(PlacementInForce(), *response);
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

  grpc::ServerUnaryReactor* Rebalance(grpc::CallbackServerContext* context, const v1::RebalanceRequest* request,
                                      v1::RebalanceResponse* response) override {
    if (setup_.balancer == nullptr) return v1::Cluster::CallbackService::Rebalance(context, request, response);
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    setup_.balancer->Ask(AnswerLater<BalanceAdvice>(reactor, [response](const BalanceAdvice& advice) {
      WriteVerdict(advice, *response->mutable_verdict());
      if (!advice.placement.layers.empty()) WritePlacement(advice.placement, *response->mutable_placement());
    }));
    return reactor;
  }

  grpc::ServerUnaryReactor* SetPlacement(grpc::CallbackServerContext* context, const v1::SetPlacementRequest* request,
                                         v1::SetPlacementResponse* response) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    Placement placement = ReadPlacement(request->placement());
    std::optional<double> expected;
    if (setup_.balancer != nullptr) expected = setup_.balancer->ExpectedGain(PlacementInForce().generation, placement);
    const Result<std::uint64_t> generation = router_.BeginMigration(std::move(placement), expected);
    if (generation.ok()) response->set_generation(*generation);
    reactor->Finish(ToGrpc(generation.status()));
    return reactor;
  }

  grpc::ServerUnaryReactor* StartTrace(grpc::CallbackServerContext* context, const v1::StartTraceRequest* request,
                                       v1::StartTraceResponse* response) override {
    if (setup_.trace == nullptr) return v1::Cluster::CallbackService::StartTrace(context, request, response);
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    Status status = CheckTracePath(request->path());
    if (status.ok()) status = setup_.trace->Begin({.path = request->path(), .limit_bytes = request->limit_bytes()});
    reactor->Finish(ToGrpc(status));
    return reactor;
  }

  grpc::ServerUnaryReactor* StopTrace(grpc::CallbackServerContext* context, const v1::StopTraceRequest* request,
                                      v1::StopTraceResponse* response) override {
    if (setup_.trace == nullptr) return v1::Cluster::CallbackService::StopTrace(context, request, response);
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    setup_.trace->End(AnswerLater<TraceProgress>(
        reactor, [response](const TraceProgress& ended) { WriteTrace(ended, *response->mutable_trace()); }));
    return reactor;
  }

  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context, const v1::DrainRequest*,
                                  v1::DrainResponse*) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    setup_.drain();
    return reactor;
  }

 private:
  Placement PlacementInForce() const {
    const std::shared_ptr<const Placement> placement = router_.placement();
    return placement == nullptr ? Placement{.workers = setup_.topology.workers} : *placement;
  }

  v1::ClusterState State() const {
    std::vector<WorkerDescription> workers = setup_.workers;
    if (setup_.presence) {
      const std::vector<WorkerPresence> presence = setup_.presence();
      for (std::size_t w = 0; w < presence.size(); ++w) workers[w] = presence[w].description;
      v1::ClusterState state = StateOf(setup_, PlacementInForce(), workers);
      for (std::size_t w = 0; w < presence.size(); ++w)
        state.mutable_ranks(static_cast<int>(w) + 1)->set_up(presence[w].up);
      return state;
    }
    const std::vector<WorkerDescription> migrated = router_.migrated_workers();
    for (std::size_t w = 0; w < migrated.size(); ++w)
      if (!migrated[w].host.empty()) workers[w] = migrated[w];
    return StateOf(setup_, PlacementInForce(), workers);
  }

  void WriteTotals(v1::ClusterState& state) const {
    const EngineTotals& totals = router_.engine().totals();
    state.set_steps(totals.steps);
    if (totals.steps > 0) {
      state.set_mean_touched_parameters(static_cast<double>(totals.touched_parameters) /
                                        static_cast<double>(totals.steps));
    }
    for (std::size_t w = 0; w < totals.workers.size(); ++w) {
      // Embedded, the one rank is router and worker; otherwise the router is the first of the ranks.
      v1::RankState& rank = *state.mutable_ranks(static_cast<int>(setup_.topology.embedded ? 0 : w + 1));
      rank.set_rows(totals.workers[w].rows);
      rank.set_busy_seconds(totals.workers[w].busy_seconds);
    }
  }

  const ClusterSetup setup_;
  const ModelConfig& config_;
  Router& router_;
};

ClusterService::ClusterService(ClusterSetup setup, const ModelConfig& config, Router& router)
    : impl_(std::make_unique<Impl>(std::move(setup), config, router)) {}

ClusterService::~ClusterService() = default;

grpc::Service* ClusterService::service() { return impl_.get(); }

}  // namespace moe
