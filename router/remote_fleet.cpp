#include "router/remote_fleet.h"

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "router/worker_fleet.h"

namespace moe {

RemoteFleet::RemoteFleet(Options options, Links links, std::vector<WorkerAssignment> assignments)
    : options_(std::move(options)),
      make_links_(std::move(links)),
      assignments_(std::move(assignments)),
      members_(assignments_.size()) {}

RemoteFleet::~RemoteFleet() {
  Stop();
  for (Member& member : members_)
    if (member.thread.joinable()) member.thread.join();
  if (watcher_.joinable()) watcher_.join();
  Unbind();
}

Status RemoteFleet::Start() {
  MOE_ASSIGN_OR_RETURN(links_, make_links_.steps());
  MOE_CHECK(static_cast<std::size_t>(links_->num_workers()) == members_.size());
  for (std::size_t w = 0; w < members_.size(); ++w) peers_.push_back(links_->Peer(WorkerId(static_cast<int>(w))));
  for (std::size_t w = 0; w < members_.size(); ++w) members_[w].thread = std::thread([this, w] { Search(w); });
  return Status::Ok();
}

Status RemoteFleet::AwaitWorkers() {
  const Deadline deadline = After(options_.load_timeout);
  {
    std::unique_lock lock(mutex_);
    const auto refuses = [](const Member& member) { return member.why.code() == StatusCode::kInvalidArgument; };
    const auto missing = [](const Member& member) { return member.presence == Presence::kLost; };
    changed_.wait_until(lock, deadline, [&] {
      return stopping_ || std::ranges::any_of(members_, refuses) || std::ranges::none_of(members_, missing);
    });
    if (std::ranges::any_of(members_, refuses)) {
      // Others refuse about as soon, and the lowest rank speaks for them, whichever came first.
      constexpr std::chrono::seconds kOthersToo{1};
      const auto settled = [&](const Member& member) { return refuses(member) || !missing(member); };
      changed_.wait_until(lock, std::min(deadline, After(kOthersToo)),
                          [&] { return stopping_ || std::ranges::all_of(members_, settled); });
    }
    if (stopping_) return Cancelled("the router stops before its workers are there");
    const auto refusing = std::ranges::find_if(members_, refuses);
    if (refusing != members_.end()) return refusing->why;
    const auto lost = std::ranges::find_if(members_, missing);
    if (lost != members_.end())
      return Unavailable(lost->why.message(), " (after ", options_.load_timeout.count() / 1000, " s, --load-timeout)");
  }
  news_ = false;
  Connect();
  const std::vector<WorkerState> workers = Workers();
  for (const WorkerState& worker : workers)
    if (!worker.up) return worker.why;
  return Status::Ok();
}

void RemoteFleet::Bind(ExpertExchange& exchange, Observers observers) {
  exchange_ = &exchange;
  exchange_->NameWorkers(peers_);
  observers_ = std::move(observers);
  {
    const std::lock_guard lock(mutex_);
    on_news_ = observers_.on_news;
  }
  watcher_ = std::thread([this] { Watch(); });
}

void RemoteFleet::Unbind() {
  if (exchange_ != nullptr) exchange_->Unbind();
  exchange_ = nullptr;
  observers_ = {};
}

void RemoteFleet::BeforeStep() {
  if (news_.exchange(false)) Connect();
}

Status RemoteFleet::Recover(const Status& failure) {
  const ExchangeBlame& blame = exchange_->blame();
  const WorkerMask up = AtLeast(Presence::kUp);
  for (std::size_t w = 0; w < up.size(); ++w) {
    if (up[w] == 0) continue;
    Status why = links_->failure(WorkerId(static_cast<int>(w)));
    if (why.ok() && blame.certain && blame.workers[w] != 0) why = failure;
    if (!why.ok()) Lose(w, std::move(why));
  }
  news_ = false;
  Connect();
  if (stopping()) return Cancelled("the router stops");
  return Status::Ok();
}

void RemoteFleet::OnPlacement(const Placement& placement) {
  const std::lock_guard lock(mutex_);
  for (std::size_t w = 0; w < assignments_.size(); ++w) {
    assignments_[w].generation = placement.generation;
    assignments_[w].layers.clear();
    for (const LayerPlacement& layer : placement.layers)
      assignments_[w].layers.push_back({.layer = layer.layer, .slots = layer.slots[w]});
  }
}

void RemoteFleet::OnHosted(std::span<const WorkerDescription> workers) {
  const std::lock_guard lock(mutex_);
  for (std::size_t w = 0; w < workers.size(); ++w)
    if (!workers[w].host.empty()) members_[w].description = workers[w];
}

std::vector<RemoteFleet::WorkerState> RemoteFleet::Workers() const {
  const std::lock_guard lock(mutex_);
  std::vector<WorkerState> states;
  for (const Member& member : members_)
    states.push_back({.up = member.presence == Presence::kUp, .description = member.description, .why = member.why});
  return states;
}

void RemoteFleet::Stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    on_news_ = nullptr;
  }
  changed_.notify_all();
}

bool RemoteFleet::stopping() const {
  const std::lock_guard lock(mutex_);
  return stopping_;
}

// With links of its own: the engine thread's may be in use.
Result<WorkerDescription> RemoteFleet::Attach(std::size_t worker) const {
  MOE_ASSIGN_OR_RETURN(const std::unique_ptr<WorkerLinks> links, make_links_.search());
  WorkerAssignment wanted;
  {
    const std::lock_guard lock(mutex_);
    wanted = assignments_[worker];
  }
  return AttachWorker(*links, wanted,
                      {.answer_timeout = options_.exchange_timeout,
                       .load_timeout = options_.load_timeout,
                       .stopping = [this] { return stopping(); }});
}

// By the thread of a lost worker.
void RemoteFleet::Search(std::size_t worker) {
  std::minstd_rand random(std::random_device{}());
  std::chrono::milliseconds pause = options_.first_pause;
  std::string obstacle;
  while (!stopping()) {
    Result<WorkerDescription> attached = Attach(worker);
    if (!attached.ok() && attached.status().message() != obstacle) {
      obstacle = attached.status().message();
      if (options_.on_obstacle && !stopping()) options_.on_obstacle(attached.status());
    }
    std::unique_lock lock(mutex_);
    Member& member = members_[worker];
    member.why = attached.status();
    if (attached.ok()) {
      member.description = *std::move(attached);
      member.presence = Presence::kReady;
      news_ = true;
      changed_.notify_all();
      if (on_news_) on_news_();
      return;
    }
    changed_.notify_all();
    std::uniform_int_distribution<long> chance(pause.count() / 2, pause.count());
    changed_.wait_for(lock, std::chrono::milliseconds(chance(random)), [this] { return stopping_; });
    pause = std::min(2 * pause, options_.last_pause);
  }
}

// A worker whose connection is gone is lost as soon as the engine thread makes a new transport.
void RemoteFleet::Watch() {
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, options_.watch_interval, [this] { return stopping_; })) {
    bool suspicious = false;
    for (std::size_t w = 0; w < members_.size(); ++w) {
      const bool up = members_[w].presence == Presence::kUp;
      suspicious = suspicious || (up && !links_->connected(WorkerId(static_cast<int>(w))));
    }
    if (!suspicious) continue;
    news_ = true;
    if (on_news_) on_news_();
  }
}

void RemoteFleet::Lose(std::size_t worker, Status why) {
  Member& member = members_[worker];
  // Whoever was looking for it has found it and is about to return, if it has not.
  if (member.thread.joinable()) member.thread.join();
  const std::lock_guard lock(mutex_);
  member.presence = Presence::kLost;
  member.why = std::move(why);
  if (!stopping_) member.thread = std::thread([this, worker] { Search(worker); });
}

WorkerMask RemoteFleet::AtLeast(Presence presence) const {
  const std::lock_guard lock(mutex_);
  WorkerMask workers(members_.size(), 0);
  for (std::size_t w = 0; w < members_.size(); ++w) workers[w] = members_[w].presence >= presence ? 1 : 0;
  return workers;
}

void RemoteFleet::Connect() {
  if (exchange_ != nullptr) exchange_->Unbind();
  transport_.reset();
  WorkerMask attached;
  // Every round but the last loses somebody.
  for (std::size_t round = 0; round <= members_.size(); ++round) {
    attached = AtLeast(Presence::kReady);
    if (CountWorkers(attached) == 0) break;
    std::vector<LostWorker> lost;
    const Status status = TryConnect(attached, lost);
    if (status.ok() && lost.empty()) break;
    transport_.reset();
    const bool nobody = lost.empty();
    for (std::size_t w = 0; nobody && w < attached.size(); ++w)
      if (attached[w] != 0) lost.push_back({WorkerId(static_cast<int>(w)), status});
    for (LostWorker& worker : lost) Lose(worker.worker.index(), std::move(worker.why));
  }
  {
    // Only now: one that has been attached may have been given to another router before it was reached again.
    const std::lock_guard lock(mutex_);
    for (std::size_t w = 0; w < attached.size(); ++w)
      if (attached[w] != 0 && members_[w].presence == Presence::kReady) members_[w].presence = Presence::kUp;
  }
  const WorkerMask now = AtLeast(Presence::kUp);
  const std::vector<WorkerState> states = Workers();
  if (exchange_ != nullptr) {
    exchange_->Rebind(transport_.get(), now);
    // One that comes back may run elsewhere.
    std::vector<WorkerDescription> workers;
    for (const WorkerState& state : states) workers.push_back(state.description);
    exchange_->SetLocal(WorkersOn(options_.host, workers));
  }
  for (std::size_t w = 0; w < now.size(); ++w)
    if (observers_.on_worker && now[w] != reported_[w]) observers_.on_worker(WorkerId(static_cast<int>(w)), states[w]);
  reported_ = now;
}

Status RemoteFleet::TryConnect(const WorkerMask& attached, std::vector<LostWorker>& lost) {
  Status status;
  Result<std::unique_ptr<Transport>> made = links_->Connect(attached, options_.exchange_timeout);
  status = made.status();
  if (made.ok()) {
    transport_ = *std::move(made);
    status = ConfirmWorkers(*transport_, attached, assignments_, After(options_.exchange_timeout), lost);
  }
  if (status.ok() || !lost.empty()) return status;
  for (std::size_t w = 0; w < attached.size(); ++w) {
    const WorkerId worker(static_cast<int>(w));
    Status why = attached[w] != 0 ? links_->failure(worker) : Status::Ok();
    if (!why.ok()) lost.push_back({worker, std::move(why)});
  }
  return status;
}

}  // namespace moe
