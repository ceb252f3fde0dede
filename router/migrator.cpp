#include "router/migrator.h"

#include <utility>

namespace moe {
namespace {

// Between two looks at replies that have not come yet, of a router that has no steps to do.
constexpr std::chrono::milliseconds kReplyPause{1};

PlacementShape ShapeOf(const ModelConfig& config, const ExpertExchange* exchange) {
  return {.num_experts = config.num_experts(),
          .workers = exchange == nullptr ? 0 : exchange->placement().workers,
          .layers = config.sparse_layers()};
}

}  // namespace

Migrator::Migrator(Options options, const ModelConfig& config, ExpertExchange* exchange, StepRecovery* recovery)
    : options_(std::move(options)),
      shape_(ShapeOf(config, exchange)),
      exchange_(exchange),
      recovery_(recovery),
      migration_({.timeout = options_.timeout, .interval = options_.interval}) {
  if (exchange_ == nullptr) return;
  placement_ = std::make_shared<const Placement>(exchange_->placement());
  last_generation_ = placement_->generation;
}

Result<std::uint64_t> Migrator::Begin(Placement placement, std::optional<double> expected_gain) {
  if (exchange_ == nullptr) return Unimplemented("the model has no experts to move");
  MOE_RETURN_IF_ERROR(CheckPlacement(placement, shape_));
  const std::lock_guard lock(mutex_);
  if (begun_) return FailedPrecondition("a migration to placement generation ", last_generation_, " is under way");
  placement.generation = ++last_generation_;
  next_ = std::move(placement);
  next_gain_ = expected_gain;
  begun_ = handed_over_ = true;
  return last_generation_;
}

MigrationProgress Migrator::progress() const {
  const std::lock_guard lock(mutex_);
  return progress_;
}

std::shared_ptr<const Placement> Migrator::placement() const {
  const std::lock_guard lock(mutex_);
  return placement_;
}

std::vector<WorkerDescription> Migrator::workers() const {
  const std::lock_guard lock(mutex_);
  return workers_;
}

TimePoint Migrator::due() const {
  if (migration_.phase() == MigrationPhase::kIdle) return under_way() ? TimePoint() : kNoDeadline;
  return exchange_->aside_under_way() ? After(kReplyPause) : migration_.due();
}

Status Migrator::Advance(TimePoint now) {
  if (migration_.phase() == MigrationPhase::kIdle) TakeIn(now);
  if (migration_.phase() == MigrationPhase::kIdle) return Status::Ok();
  if (exchange_->bindings() != bindings_) {
    bindings_ = exchange_->bindings();
    // The workers know this router by another connection now, and have forgotten what it only prepared.
    Fail(Unavailable("a worker was lost or came back meanwhile"), /*workers_forget=*/true);
    return Status::Ok();
  }
  if (exchange_->aside_under_way()) {
    const Result<bool> done = exchange_->PollAside();
    if (!done.ok()) Fail(done.status(), /*workers_forget=*/true);
    MOE_RETURN_IF_ERROR(done.status());
    if (!*done) return Status::Ok();
    EndRound(now);
  }
  if (now < migration_.due()) return Status::Ok();
  const Status status = StartRound();
  if (!status.ok()) Fail(status, /*workers_forget=*/true);
  return status;
}

void Migrator::TakeIn(TimePoint now) {
  if (!handed_over_) return;
  Placement next;
  {
    const std::lock_guard lock(mutex_);
    handed_over_ = false;
    next = std::move(next_);
    expected_gain_ = next_gain_;
  }
  bindings_ = exchange_->bindings();
  MigrationPlan plan = PlanMigration(exchange_->placement(), next, options_.bytes_per_s);
  migration_.Begin(std::move(next), std::move(plan), exchange_->names(), now);
  for (std::size_t w = 0; w < exchange_->attached().size(); ++w)
    if (exchange_->attached()[w] == 0)
      return Fail(Unavailable(exchange_->names()[w], " is lost, and every worker must take part"),
                  /*workers_forget=*/true);
  Show();
}

Status Migrator::StartRound() {
  std::vector<std::size_t> bytes;
  for (std::size_t w = 0; w < exchange_->attached().size(); ++w) {
    const WorkerId worker(static_cast<int>(w));
    const Result<std::size_t> written = migration_.Write(worker, exchange_->AsideRequest(worker));
    if (!written.ok()) {
      // Nobody has heard of it yet.
      Fail(written.status(), /*workers_forget=*/true);
      return Status::Ok();
    }
    bytes.push_back(*written);
  }
  return exchange_->StartAside(bytes);
}

void Migrator::EndRound(TimePoint now) {
  for (std::size_t w = 0; w < exchange_->attached().size(); ++w) {
    const WorkerId worker(static_cast<int>(w));
    if (const std::span<const std::byte> reply = exchange_->AsideReply(worker); !reply.empty())
      migration_.Read(worker, reply);
  }
  migration_.EndRound(now);
  if (migration_.phase() == MigrationPhase::kSwitch) Switch(now);
  Show();
}

void Migrator::Switch(TimePoint now) {
  Show();
  exchange_->SwitchTo(migration_.to());
  if (recovery_ != nullptr) recovery_->OnPlacement(migration_.to());
  {
    const std::lock_guard lock(mutex_);
    placement_ = std::make_shared<const Placement>(migration_.to());
  }
  migration_.Switched(now);
}

void Migrator::Fail(Status why, bool workers_forget) {
  migration_.Fail(std::move(why), workers_forget);
  Show();
}

void Migrator::Show() {
  const MigrationPhase phase = migration_.phase();
  if (phase == MigrationPhase::kIdle && !migration_.workers().empty() && recovery_ != nullptr)
    recovery_->OnHosted(migration_.workers());
  MigrationProgress now;
  {
    const std::lock_guard lock(mutex_);
    progress_.phase = phase;
    progress_.generation = migration_.to().generation;
    progress_.moved_experts = migration_.moved_experts();
    progress_.loaded_bytes = migration_.loaded_bytes();
    if (phase == MigrationPhase::kIdle) {
      begun_ = false;
      const Status& failure = migration_.failure();
      ++(failure.ok() ? progress_.finished : progress_.failed);
      progress_.succeeded = failure.ok();
      if (!failure.ok()) progress_.last_failure = failure.message();
      if (!migration_.workers().empty()) workers_ = migration_.workers();
    }
    now = progress_;
  }
  if (phase == shown_ && phase != MigrationPhase::kIdle) return;
  shown_ = phase;
  if (options_.on_change) options_.on_change(now);
}

}  // namespace moe
