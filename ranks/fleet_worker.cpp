#include "ranks/fleet_worker.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

#include "core/clock.h"
#include "core/machine.h"
#include "model/weight_bytes.h"

namespace moe {
namespace {

// How long the loop sleeps at most when nothing comes: until it notices that a load has ended, or that it is to stop.
constexpr std::chrono::milliseconds kLoadingPause{5};
constexpr std::chrono::milliseconds kIdlePause{100};

/// The assignment as a placement in which the other workers host nothing that this one needs to know.
Placement PlacementOf(const WorkerAssignment& assignment, int num_experts) {
  Placement placement{
      .generation = assignment.generation, .num_experts = num_experts, .workers = static_cast<int>(assignment.workers)};
  for (const WorkerAssignment::Layer& layer : assignment.layers) {
    LayerPlacement& placed = placement.layers.emplace_back(LayerPlacement{.layer = layer.layer, .slots = {}});
    placed.slots.resize(assignment.workers);
    placed.slots[assignment.worker] = layer.slots;
  }
  return placement;
}

/// Whether two routers mean the same by this worker.
bool SameWorker(const WorkerAssignment& a, const WorkerAssignment& b) {
  return a.worker == b.worker && a.workers == b.workers;
}

/// "worker 1 of 3, generation 1": what two routers can disagree about.
std::string Words(const WorkerAssignment& a) {
  return Cat("worker ", a.worker, " of ", a.workers, ", generation ", a.generation);
}

bool IsAttached(const WorkerEndpoint& endpoint, int router) {
  return router != ExpertViews::kNobody && endpoint.attached(router);
}
std::function<bool(int)> Attached(const WorkerEndpoint& endpoint) {
  return [&endpoint](int router) { return IsAttached(endpoint, router); };
}

// How long what a router held stays when it is gone and another is there: it may only have lost its connections, and
// makes new ones as soon as it knows which workers are left.
constexpr std::chrono::seconds kKeepForReturn{60};

/// The placement that a router starts with.
constexpr std::uint64_t kFirstGeneration = 1;

}  // namespace

FleetWorker::FleetWorker(const RankSetup& setup, ThreadPool& pool, WorkerDescription description, Observers observers)
    : setup_(setup), pool_(pool), observers_(std::move(observers)), description_(std::move(description)) {}

FleetWorker::~FleetWorker() {
  if (loading_ && loading_->thread.joinable()) loading_->thread.join();
}

WorkerDescription FleetWorker::description() const {
  const std::lock_guard lock(mutex_);
  WorkerDescription description = description_;
  description.free_memory_bytes = FreeMemoryBytes();
  return description;
}

std::optional<WorkerAssignment> FleetWorker::assignment() const {
  const std::lock_guard lock(mutex_);
  return hosted_;
}

Status FleetWorker::Run(WorkerEndpoint& endpoint) {
  while (true) {
    if (loading_ && loading_->done()) MOE_RETURN_IF_ERROR(FinishLoad(endpoint));
    const bool stop = stop_;
    const Deadline deadline = stop ? TimePoint() : After(loading_ ? kLoadingPause : kIdlePause);
    const Result<std::optional<IncomingRequest>> received = endpoint.Receive(deadline);
    if (!received.ok()) {
      if (received.status().code() == StatusCode::kUnavailable) return Status::Ok();
      // One wrong frame: its router has been told, the others are served on.
      if (received.status().code() == StatusCode::kInternal) continue;
      return received.status();
    }
    const std::optional<IncomingRequest>& request = *received;
    if (!request && stop) return Status::Ok();
    if (!request && host_) host_->views().DropDetached(Attached(endpoint), Clock::now(), kKeepForReturn);
    if (request) MOE_RETURN_IF_ERROR(Answer(endpoint, *request).status());
  }
}

Result<bool> FleetWorker::Answer(WorkerEndpoint& endpoint, const IncomingRequest& request) {
  const std::span<std::byte> reply = endpoint.reply_buffer(request);
  const Result<MessageKind> kind = ParseKind(request.payload);
  std::size_t bytes = 0;
  if (!kind.ok()) {
    bytes = WriteFailure(reply, kind.status());
  } else if (*kind == MessageKind::kDescribe) {
    bytes = WriteDescription(reply, description());
  } else if (*kind == MessageKind::kShutdown) {
    bytes = WriteFailure(reply, InvalidArgument("this worker serves any router and ends by SIGTERM"));
  } else if (*kind == MessageKind::kAssign) {
    const std::optional<std::size_t> answer = Assign(endpoint, request, reply);
    if (!answer) return false;
    bytes = *answer;
  } else if (worker_) {
    // What the gone have left makes room.
    if (*kind == MessageKind::kPrepare) host_->views().DropDetached(Attached(endpoint), Clock::now(), {});
    bytes = worker_->Answer(*kind, request, reply);
  } else {
    bytes = WriteFailure(reply, Unavailable("no shard is loaded here"));
  }
  MOE_RETURN_IF_ERROR(endpoint.Reply(request, bytes));
  return true;
}

std::optional<std::size_t> FleetWorker::Assign(WorkerEndpoint& endpoint, const IncomingRequest& request,
                                               std::span<std::byte> reply) {
  Result<WorkerAssignment> wanted = ParseAssignment(request.payload);
  if (!wanted.ok()) return WriteFailure(reply, wanted.status());
  const bool may_load = std::exchange(wanted->load, true);
  if (const Status status = Check(*wanted); !status.ok()) return WriteFailure(reply, status);
  // It comes before all else over a connection, whose number may have been another router's.
  if (host_) host_->views().Leave(request.router);
  if (host_ && SameWorker(*hosted_, *wanted)) {
    if (const ExpertViews::Shard shard = host_->views().FindSame(wanted->layers)) {
      Host(request.router, *wanted, shard);
      return WriteDescription(reply, description());
    }
  }
  if (const Status status = MayHost(endpoint, request.router, *wanted); !status.ok())
    return WriteFailure(reply, status);
  if (!may_load) return WriteFailure(reply, Unavailable("the shard that the router expects is not loaded here"));
  if (!loading_) {
    const Status status = BeginLoad(endpoint, request.router, *std::move(wanted));
    if (!status.ok()) return WriteFailure(reply, status);
  }
  loading_->waiting.push_back(request);
  return std::nullopt;
}

Status FleetWorker::Check(const WorkerAssignment& wanted) const {
  const std::string weight_type(Name(setup_.weight_types.mlps));
  if (wanted.fingerprint != setup_.checkpoint->fingerprint())
    return InvalidArgument("it serves the checkpoint ", setup_.checkpoint->fingerprint(), ", the router ",
                           wanted.fingerprint);
  if (wanted.weight_type != weight_type)
    return InvalidArgument("its weight type is ", weight_type, ", the router's ", wanted.weight_type);
  const std::uint64_t max_pairs = setup_.exchange.max_tokens * setup_.exchange.experts_per_token;
  if (wanted.max_pairs > max_pairs)
    return InvalidArgument("it takes up to ", max_pairs, " rows of experts at a time, the router sends up to ",
                           wanted.max_pairs, " (--max-step-tokens)");
  if (wanted.worker >= wanted.workers || wanted.workers > 1'000'000 || wanted.generation == 0)
    return InvalidArgument("it cannot be ", Words(wanted));
  const std::vector<int> sparse = setup_.config.sparse_layers();
  const auto same = [](const WorkerAssignment::Layer& layer, int index) { return layer.layer == index; };
  if (!std::ranges::equal(wanted.layers, sparse, same))
    return InvalidArgument("the assignment's layers are not the ", sparse.size(), " sparse ones of the model");
  std::uint64_t bytes = 0;
  for (const WorkerAssignment::Layer& layer : wanted.layers) {
    if (const Status status = CheckSlots(layer, setup_.config.num_experts()); !status.ok())
      return status.WithContext("the assignment");
    bytes += layer.slots.size() * ExpertBytes(setup_.config, layer.layer, setup_.weight_types);
  }
  if (const std::uint64_t memory = MachineMemoryBytes(); bytes > memory)
    return ResourceExhausted("its shard would take ", bytes, " bytes, the machine has ", memory);
  return Status::Ok();
}

bool FleetWorker::OthersAttached(const WorkerEndpoint& endpoint, int router) const {
  if (!host_) return false;
  return std::ranges::any_of(host_->views().holdings(), [&](const ExpertViews::Holding& holding) {
    return holding.router != router && IsAttached(endpoint, holding.router);
  });
}

Status FleetWorker::MayHost(const WorkerEndpoint& endpoint, int router, const WorkerAssignment& wanted) const {
  if (loading_) {
    if (loading_->assignment == wanted) return Status::Ok();
    return Unavailable("it is loading its shard as ", Words(loading_->assignment), ", the router wants ", Words(wanted),
                       " or other experts");
  }
  if (!OthersAttached(endpoint, router)) return Status::Ok();
  const auto moved = [&](const ExpertViews::Holding& holding) {
    return IsAttached(endpoint, holding.router) && holding.generation > kFirstGeneration;
  };
  const bool may_differ = wanted.generation > kFirstGeneration || std::ranges::any_of(host_->views().holdings(), moved);
  if (SameWorker(*hosted_, wanted) && may_differ) return Status::Ok();
  return InvalidArgument("another router has made it ", Words(*hosted_), "; this router wants ", Words(wanted),
                         " or other experts");
}

Status FleetWorker::BeginLoad(const WorkerEndpoint& endpoint, int router, WorkerAssignment assignment) {
  if (OthersAttached(endpoint, router)) return BeginLoadBeside(endpoint, std::move(assignment));
  LoadInstead(std::move(assignment));
  return Status::Ok();
}

Status FleetWorker::BeginLoadBeside(const WorkerEndpoint& endpoint, WorkerAssignment assignment) {
  MOE_RETURN_IF_ERROR(host_->backend().CheckMigration());
  ExpertViews& views = host_->views();
  views.DropDetached(Attached(endpoint), Clock::now(), {});
  ExpertShard shard = ExpertShard::Unloaded(setup_.config, PlacementOf(assignment, setup_.config.num_experts()),
                                            WorkerId(static_cast<int>(assignment.worker)));
  views.Share(shard);
  MOE_RETURN_IF_ERROR(views.CheckMemory(shard));
  loading_ = std::make_unique<Loading>();
  loading_->assignment = std::move(assignment);
  loading_->beside = std::make_unique<ShardLoading>(
      ShardLoading::Options{.shard = std::move(shard), .load = views.loader(), .bytes_per_s = 0, .checks = {}});
  return Status::Ok();
}

void FleetWorker::LoadInstead(WorkerAssignment assignment) {
  worker_.reset();
  host_.reset();  // there may not be room for both
  {
    const std::lock_guard lock(mutex_);
    hosted_.reset();
    description_ = WithHosted(description_, {});
  }
  loading_ = std::make_unique<Loading>();
  loading_->assignment = std::move(assignment);
  loading_->thread = std::thread([this, &loading = *loading_] {
    const WorkerAssignment& a = loading.assignment;
    loading.host = ExpertHost::Load(setup_, PlacementOf(a, setup_.config.num_experts()),
                                    WorkerId(static_cast<int>(a.worker)), pool_);
    loading.loaded = true;
  });
}

Result<ExpertViews::Shard> FleetWorker::TakeLoaded(Loading& loaded) {
  if (loaded.beside) {
    MOE_RETURN_IF_ERROR(loaded.beside->outcome());
    return ExpertViews::Shard(std::make_shared<const ExpertShard>(loaded.beside->TakeShard()));
  }
  MOE_RETURN_IF_ERROR(loaded.host.status());
  host_ = *std::move(loaded.host);
  host_->OnHosted([this](const HostedExperts& hosted) { ShowHosted(hosted); });
  const auto describe = [this] { return description(); };
  worker_ = host_->MakeWorker(totals_, describe, observers_.on_dispatch);
  return host_->TakeFirstShard();
}

Status FleetWorker::FinishLoad(WorkerEndpoint& endpoint) {
  const std::unique_ptr<Loading> loaded = std::move(loading_);
  if (loaded->thread.joinable()) loaded->thread.join();
  const Result<ExpertViews::Shard> shard = TakeLoaded(*loaded);
  for (const IncomingRequest& request : loaded->waiting)
    if (shard.ok()) Host(request.router, loaded->assignment, *shard);
  if (shard.ok() && observers_.on_loaded) observers_.on_loaded(description());
  for (const IncomingRequest& request : loaded->waiting) {
    const std::span<std::byte> reply = endpoint.reply_buffer(request);
    const std::size_t bytes = shard.ok() ? WriteDescription(reply, description()) : WriteFailure(reply, shard.status());
    MOE_RETURN_IF_ERROR(endpoint.Reply(request, bytes));
  }
  return Status::Ok();
}

void FleetWorker::Host(int router, const WorkerAssignment& assignment, ExpertViews::Shard shard) {
  {
    const std::lock_guard lock(mutex_);
    hosted_ = assignment;
  }
  host_->views().Hold(router, assignment.generation, std::move(shard));
}

void FleetWorker::ShowHosted(const HostedExperts& hosted) {
  {
    const std::lock_guard lock(mutex_);
    description_ = WithHosted(description_, hosted);
    hosted_->generation = hosted.generation;
    hosted_->layers.clear();
    for (const HostedExperts::Layer& layer : hosted.layers)
      hosted_->layers.push_back({.layer = layer.layer, .slots = layer.experts});
  }
  if (observers_.on_hosted) observers_.on_hosted(description());
}

}  // namespace moe
