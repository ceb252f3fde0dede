#include "transport/grpc/worker_memory.h"

#include <utility>

namespace moe {
namespace {

// How it waits while what some routers send has to be looked for: briefly.
BackoffOptions WaitingForSomeRings() {
  using std::chrono::microseconds;
  return {.first_sleep = microseconds(50), .active_sleep = microseconds(200), .idle_sleep = microseconds(1000)};
}

std::optional<SharedBell> MakeBell(bool shared_memory) {
  if (!shared_memory) return std::nullopt;
  Result<SharedBell> bell = SharedBell::Create();
  return bell.ok() ? std::optional(*std::move(bell)) : std::nullopt;
}

Doorbell* BellOf(const std::optional<SharedBell>& bell) { return bell ? &bell->bell() : nullptr; }

}  // namespace

AttachedMemory::AttachedMemory(LaneMemory memory, SharedBell bell, const LaneTerms& terms, Rank peer)
    : memory_(std::move(memory)), bell_(std::move(bell)), lanes_(memory_.lanes(), terms, peer, bell_.bell()) {}

std::unique_ptr<AttachedMemory> AttachedMemory::Take(const std::string& offer, const LaneTerms& terms, Rank peer) {
  const Result<MemoryOffer> names = MemoryOffer::Parse(offer);
  if (!names.ok()) return nullptr;
  Result<LaneMemory> memory = LaneMemory::Open(names->lanes, terms.limits);
  Result<SharedBell> bell = SharedBell::Open(names->bell);
  if (!memory.ok() || !bell.ok()) return nullptr;
  return std::unique_ptr<AttachedMemory>(new AttachedMemory(*std::move(memory), *std::move(bell), terms, peer));
}

WorkerBell::WorkerBell(bool shared_memory)
    : bell_(MakeBell(shared_memory)),
      all_(WaitingForRings(), BellOf(bell_)),
      some_(WaitingForSomeRings(), BellOf(bell_)) {}

void WorkerBell::Ring() {
  if (bell_) bell_->bell().Ring();
}

bool WorkerBell::LookIsDue(Ringing who) {
  if (who == Ringing::kNone) return false;
  const TimePoint now = Clock::now();
  if (who == Ringing::kAll && now - looked_at_ < kLookInterval) return false;
  looked_at_ = now;
  return true;
}

void WorkerBell::Progress() {
  all_.Progress();
  some_.Progress();
}

}  // namespace moe
