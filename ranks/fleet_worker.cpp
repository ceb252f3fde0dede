#include "ranks/fleet_worker.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

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

/// "worker 1 of 3, generation 1": what two routers can disagree about.
std::string Words(const WorkerAssignment& a) {
  return Cat("worker ", a.worker, " of ", a.workers, ", generation ", a.generation);
}

Status CheckLayer(const WorkerAssignment::Layer& layer, int num_experts) {
  std::vector<bool> here(static_cast<std::size_t>(num_experts), false);
  for (const int expert : layer.slots) {
    if (expert < 0 || expert >= num_experts)
      return InvalidArgument("layer ", layer.layer, " of the assignment: expert ", expert, " is not in 0 … ",
                             num_experts - 1);
    if (here[static_cast<std::size_t>(expert)])
      return InvalidArgument("layer ", layer.layer, " of the assignment: expert ", expert, " is there twice");
    here[static_cast<std::size_t>(expert)] = true;
  }
  return Status::Ok();
}

}  // namespace

FleetWorker::FleetWorker(const RankSetup& setup, ThreadPool& pool, WorkerDescription description, Observers observers)
    : setup_(setup), pool_(pool), observers_(std::move(observers)), description_(std::move(description)) {}

FleetWorker::~FleetWorker() {
  if (loading_) loading_->thread.join();
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
    if (loading_ && loading_->done) MOE_RETURN_IF_ERROR(FinishLoad(endpoint));
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
    bytes = worker_->Answer(*kind, request.payload, reply);
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
  if (const Status status = MayHost(endpoint, request.router, *wanted); !status.ok())
    return WriteFailure(reply, status);
  if (host_ && hosted_ == *wanted) {
    if (std::ranges::find(holders_, request.router) == holders_.end()) holders_.push_back(request.router);
    return WriteDescription(reply, description());
  }
  if (!may_load) return WriteFailure(reply, Unavailable("the shard that the router expects is not loaded here"));
  if (!loading_) BeginLoad(*std::move(wanted));
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
    MOE_RETURN_IF_ERROR(CheckLayer(layer, setup_.config.num_experts()));
    bytes += layer.slots.size() * ExpertBytes(setup_.config, layer.layer, setup_.weight_types);
  }
  if (const std::uint64_t memory = MachineMemoryBytes(); bytes > memory)
    return ResourceExhausted("its shard would take ", bytes, " bytes, the machine has ", memory);
  return Status::Ok();
}

Status FleetWorker::MayHost(const WorkerEndpoint& endpoint, int router, const WorkerAssignment& wanted) {
  std::erase_if(holders_, [&](int holder) { return !endpoint.attached(holder); });
  if (loading_) {
    if (loading_->assignment == wanted) return Status::Ok();
    return Unavailable("it is loading its shard as ", Words(loading_->assignment), ", the router wants ", Words(wanted),
                       " or other experts");
  }
  if (!host_ || hosted_ == wanted) return Status::Ok();
  const bool others = std::ranges::any_of(holders_, [&](int holder) { return holder != router; });
  if (!others) return Status::Ok();
  return InvalidArgument("another router has made it ", Words(*hosted_), "; this router wants ", Words(wanted),
                         " or other experts");
}

void FleetWorker::BeginLoad(WorkerAssignment assignment) {
  worker_.reset();
  host_.reset();  // there may not be room for both
  holders_.clear();
  {
    const std::lock_guard lock(mutex_);
    hosted_.reset();
    description_.generation = description_.slots = description_.parameters = description_.weight_bytes = 0;
  }
  loading_ = std::make_unique<Loading>();
  loading_->assignment = std::move(assignment);
  loading_->thread = std::thread([this, &loading = *loading_] {
    const WorkerAssignment& a = loading.assignment;
    loading.host = ExpertHost::Load(setup_, PlacementOf(a, setup_.config.num_experts()),
                                    WorkerId(static_cast<int>(a.worker)), pool_);
    loading.done = true;
  });
}

Status FleetWorker::FinishLoad(WorkerEndpoint& endpoint) {
  loading_->thread.join();
  const std::unique_ptr<Loading> loaded = std::move(loading_);
  Status outcome = loaded->host.status();
  if (outcome.ok()) {
    host_ = *std::move(loaded->host);
    worker_ = host_->MakeWorker(totals_, observers_.on_dispatch);
    const std::lock_guard lock(mutex_);
    hosted_ = loaded->assignment;
    const WorkerDescription& figures = host_->description();
    description_.generation = figures.generation;
    description_.slots = figures.slots;
    description_.parameters = figures.parameters;
    description_.weight_bytes = figures.weight_bytes;
  }
  if (outcome.ok() && observers_.on_loaded) observers_.on_loaded(description());
  for (const IncomingRequest& request : loaded->waiting) {
    const std::span<std::byte> reply = endpoint.reply_buffer(request);
    const std::size_t bytes = outcome.ok() ? WriteDescription(reply, description()) : WriteFailure(reply, outcome);
    MOE_RETURN_IF_ERROR(endpoint.Reply(request, bytes));
    if (outcome.ok()) holders_.push_back(request.router);
  }
  return Status::Ok();
}

}  // namespace moe
