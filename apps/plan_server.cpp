#include "apps/plan_server.h"

#include <grpcpp/grpcpp.h>
#include <moe/v1/cluster.grpc.pb.h>

#include <memory>
#include <optional>

#include "rpc/status_mapping.h"

namespace moe {
namespace {

constexpr int kMaxReceiveBytes = 256 << 20;

Status Told(const grpc::Status& status, const std::string& address) {
  return FromGrpc(status).WithContext(Cat("--server ", address));
}

std::vector<LayerLoad> LoadsOf(const v1::ClusterState& state) {
  std::vector<LayerLoad> loads;
  for (const v1::LayerLoad& layer : state.layers()) {
    LayerLoad& load = loads.emplace_back(LayerLoad{.layer = static_cast<int>(layer.layer())});
    load.mean.assign(layer.expert_tokens().begin(), layer.expert_tokens().end());
    for (const v1::ExpertTokens& part : layer.parts())
      load.samples.emplace_back(part.tokens().begin(), part.tokens().end());
  }
  return loads;
}

Placement PlacementOf(const v1::Placement& message) {
  Placement placement{.generation = message.generation(),
                      .num_experts = static_cast<int>(message.num_experts()),
                      .workers = static_cast<int>(message.workers())};
  for (const v1::PlacementLayer& placed : message.layers()) {
    LayerPlacement& layer = placement.layers.emplace_back(LayerPlacement{.layer = static_cast<int>(placed.layer())});
    for (const v1::WorkerSlots& slots : placed.workers())
      layer.slots.emplace_back(slots.experts().begin(), slots.experts().end());
  }
  return placement;
}

}  // namespace

Result<ServerLoads> AskServer(const std::string& address, std::chrono::milliseconds timeout) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxReceiveBytes);
  const auto stub =
      v1::Cluster::NewStub(grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
  const auto deadline = std::chrono::system_clock::now() + timeout;
  v1::ClusterState state;
  v1::Placement placement;
  {
    grpc::ClientContext context;
    context.set_deadline(deadline);
    context.set_wait_for_ready(true);
    v1::GetClusterRequest request;
    request.set_parts(true);
    if (const grpc::Status status = stub->GetCluster(&context, request, &state); !status.ok())
      return Told(status, address);
  }
  {
    grpc::ClientContext context;
    context.set_deadline(deadline);
    if (const grpc::Status status = stub->GetPlacement(&context, {}, &placement); !status.ok())
      return Told(status, address);
  }
  if (state.layers_size() == 0) return InvalidArgument("--server ", address, " serves a model without experts");
  for (const v1::RankState& rank : state.ranks())
    if (!rank.up())
      return FailedPrecondition("--server ", address, ": rank ", rank.rank(),
                                " is lost, and experts move only while every worker is there");
  const v1::StepCost& cost = state.cost();
  return ServerLoads{
      .loads = LoadsOf(state),
      .window_steps = static_cast<double>(state.window_steps()),
      .placement = PlacementOf(placement),
      .cost = {.steps = cost.steps(),
               .step_seconds = cost.step_seconds(),
               .exposed_seconds = cost.exposed_seconds(),
               .worker_seconds = cost.worker_seconds(),
               .row_seconds = cost.row_seconds(),
               .migration_slowdown =
                   cost.has_migration_slowdown() ? std::optional(cost.migration_slowdown()) : std::nullopt},
      .bytes_per_expert = state.expert_bytes()};
}

}  // namespace moe
