#include "router/migration.h"

#include <utility>

#include "core/check.h"

namespace moe {

std::string_view Name(MigrationPhase phase) {
  switch (phase) {
    case MigrationPhase::kIdle: return "idle";
    case MigrationPhase::kPrepare: return "preparing";
    case MigrationPhase::kLoad: return "loading";
    case MigrationPhase::kSwitch: return "ready";
    case MigrationPhase::kDropOld: return "dropping the old placement";
    case MigrationPhase::kDropNew: return "abandoning";
  }
  return "unknown";
}

void Migration::Begin(Placement to, MigrationPlan plan, std::vector<std::string> names, TimePoint now) {
  MOE_CHECK(phase_ == MigrationPhase::kIdle);
  to_ = std::move(to);
  plan_ = std::move(plan);
  names_ = std::move(names);
  workers_.assign(plan_.workers.size(), {});
  descriptions_.clear();
  failure_ = Status::Ok();
  deadline_ = now + options_.timeout;
  due_ = now;
  phase_ = MigrationPhase::kPrepare;
}

TimePoint Migration::due() const {
  const bool asks = phase_ != MigrationPhase::kIdle && phase_ != MigrationPhase::kSwitch;
  return asks ? due_ : kNoDeadline;
}

bool Migration::Complete(std::size_t worker) const {
  return workers_[worker].ready && workers_[worker].checksums.size() == plan_.checksums[worker];
}

Result<std::size_t> Migration::Write(WorkerId worker, std::span<std::byte> request) const {
  const std::size_t w = worker.index();
  const WorkerPreparation& wanted = plan_.workers[w];
  switch (phase_) {
    case MigrationPhase::kPrepare: return WritePreparation(request, wanted);
    case MigrationPhase::kLoad:
      if (Complete(w)) return std::size_t{0};
      return WritePreparationQuery(request,
                                   {.generation = wanted.generation, .first_checksum = workers_[w].checksums.size()});
    case MigrationPhase::kDropOld: return WriteControl(request, MessageKind::kDrop, wanted.from);
    case MigrationPhase::kDropNew: return WriteControl(request, MessageKind::kDrop, wanted.generation);
    case MigrationPhase::kIdle:
    case MigrationPhase::kSwitch: break;
  }
  return std::size_t{0};
}

void Migration::Note(std::size_t worker, Status status) {
  if (failure_.ok() && !status.ok()) failure_ = status.WithContext(names_[worker]);
}

void Migration::Read(WorkerId worker, std::span<const std::byte> reply) {
  const std::size_t w = worker.index();
  switch (phase_) {
    case MigrationPhase::kPrepare: return Note(w, ParseControlReply(reply));
    case MigrationPhase::kLoad: return Note(w, ReadStatus(w, reply));
    case MigrationPhase::kDropOld: {
      // One that does not say what it has now has dropped it all the same.
      Result<WorkerDescription> description = ParseDescription(reply);
      descriptions_.resize(workers_.size());
      if (description.ok()) descriptions_[w] = *std::move(description);
      return;
    }
    case MigrationPhase::kDropNew:
    case MigrationPhase::kIdle:
    case MigrationPhase::kSwitch: return;
  }
}

Status Migration::ReadStatus(std::size_t worker, std::span<const std::byte> reply) {
  MOE_ASSIGN_OR_RETURN(const PreparationStatus status, ParsePreparationStatus(reply));
  WorkerState& state = workers_[worker];
  state.loaded_bytes = status.loaded_bytes;
  if (status.state == PreparationState::kFailed) return status.failure;
  if (status.state != PreparationState::kReady) return Status::Ok();
  state.ready = true;
  state.checksums.insert(state.checksums.end(), status.checksums.begin(), status.checksums.end());
  const std::size_t expected = plan_.checksums[worker];
  if (state.checksums.size() > expected || (status.checksums.empty() && state.checksums.size() < expected))
    return Internal("it tells ", state.checksums.size(), " checksums, ", expected, " were asked for");
  return Status::Ok();
}

void Migration::EndRound(TimePoint now) {
  due_ = now;
  switch (phase_) {
    case MigrationPhase::kPrepare: phase_ = failure_.ok() ? MigrationPhase::kLoad : MigrationPhase::kDropNew; return;
    case MigrationPhase::kLoad: {
      bool complete = true;
      bool more_to_tell = false;  // its checksums took more than one reply
      for (std::size_t w = 0; w < workers_.size(); ++w) {
        complete = complete && Complete(w);
        more_to_tell = more_to_tell || (workers_[w].ready && !Complete(w));
      }
      if (failure_.ok() && complete) failure_ = CompareChecksums();
      if (failure_.ok() && !complete && now >= deadline_)
        failure_ = DeadlineExceeded("not every worker had its experts after ", options_.timeout.count() / 1000, " s");
      if (!failure_.ok()) {
        phase_ = MigrationPhase::kDropNew;
      } else if (complete) {
        phase_ = MigrationPhase::kSwitch;
      } else if (!more_to_tell) {
        due_ = now + options_.interval;
      }
      return;
    }
    case MigrationPhase::kDropOld:
    case MigrationPhase::kDropNew: phase_ = MigrationPhase::kIdle; return;
    case MigrationPhase::kIdle:
    case MigrationPhase::kSwitch: return;
  }
}

Status Migration::CompareChecksums() const {
  for (const MigrationPlan::Comparison& c : plan_.comparisons) {
    if (workers_[c.known_worker].checksums[c.known_index] == workers_[c.new_worker].checksums[c.new_index]) continue;
    return Internal("layer ", c.layer, ", expert ", c.expert, ": the copy of ", names_[c.new_worker],
                    " is not that of ", names_[c.known_worker]);
  }
  return Status::Ok();
}

void Migration::Switched(TimePoint now) {
  MOE_CHECK(phase_ == MigrationPhase::kSwitch);
  phase_ = MigrationPhase::kDropOld;
  due_ = now;
}

void Migration::Fail(Status why, bool workers_forget) {
  switch (phase_) {
    case MigrationPhase::kIdle: return;
    case MigrationPhase::kDropOld:  // it has happened
    case MigrationPhase::kDropNew:
      if (workers_forget) phase_ = MigrationPhase::kIdle;
      return;
    case MigrationPhase::kPrepare:
    case MigrationPhase::kLoad:
    case MigrationPhase::kSwitch:
      if (failure_.ok()) failure_ = std::move(why);
      phase_ = workers_forget ? MigrationPhase::kIdle : MigrationPhase::kDropNew;
      return;
  }
}

std::uint64_t Migration::loaded_bytes() const {
  std::uint64_t bytes = 0;
  for (const WorkerState& worker : workers_) bytes += worker.loaded_bytes;
  return bytes;
}

}  // namespace moe
