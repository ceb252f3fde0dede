#include "router/scheduler.h"

#include <algorithm>

#include "core/check.h"

namespace moe {
namespace {

bool Earlier(const Sequence* a, const Sequence* b) { return a->turn < b->turn; }

}  // namespace

Scheduler::Scheduler(SchedulerLimits limits, KvCache& cache) : limits_(limits), cache_(cache) {
  MOE_CHECK(limits.max_sequences > 0 && limits.max_step_tokens > 1);
  running_.reserve(limits.max_sequences);
  encodes_.reserve(limits.max_sequences);
  decodes_.reserve(limits.max_sequences);
  prefills_.reserve(limits.max_sequences);
  chunks_.reserve(limits.max_sequences);
}

bool Scheduler::Fits(const SequenceRequest& request) const {
  return cache_.Fits(request.kv_demand()) && request.source.size() <= limits_.max_step_tokens;
}

void Scheduler::Enqueue(std::unique_ptr<Sequence> sequence) {
  MOE_CHECK(Fits(sequence->request));
  waiting_.push_back(std::move(sequence));
}

Sequence* Scheduler::AdmitOne() {
  if (waiting_.empty() || running_.size() == limits_.max_sequences) return nullptr;
  if (!cache_.Reserve(waiting_.front()->request.kv_demand(), waiting_.front()->kv)) return nullptr;
  running_.push_back(std::move(waiting_.front()));
  waiting_.pop_front();
  Sequence& sequence = *running_.back();
  sequence.turn = ++last_turn_;
  return &sequence;
}

std::span<const Chunk> Scheduler::Schedule() {
  chunks_.clear();
  encodes_.clear();
  decodes_.clear();
  prefills_.clear();
  for (const auto& sequence : running_) {
    (!sequence->encoded ? encodes_ : sequence->prefilling() ? prefills_ : decodes_).push_back(sequence.get());
  }
  ScheduleEncoder();
  std::size_t budget = limits_.max_step_tokens;

  // One token is left for prefill, so that decodes that fill a step cannot keep a prompt waiting for ever.
  const std::size_t reserved = prefills_.empty() ? 0 : 1;
  if (decodes_.size() > budget - reserved) std::sort(decodes_.begin(), decodes_.end(), Earlier);
  for (Sequence* sequence : decodes_) {
    if (budget == reserved) break;
    Take({.sequence = sequence, .tokens = 1}, budget);
  }

  std::sort(prefills_.begin(), prefills_.end(), Earlier);
  for (Sequence* sequence : prefills_) {
    if (budget == 0) break;
    const std::size_t most = limits_.prefill_chunk == 0 ? budget : std::min(budget, limits_.prefill_chunk);
    Take({.sequence = sequence, .tokens = std::min(most, sequence->remaining())}, budget);
  }
  return chunks_;
}

void Scheduler::ScheduleEncoder() {
  std::sort(encodes_.begin(), encodes_.end(), Earlier);
  std::size_t budget = limits_.max_step_tokens;
  for (Sequence* sequence : encodes_) {
    // Nobody overtakes a source that does not fit any more: it would wait as long as small ones come.
    if (sequence->request.source.size() > budget) break;
    Take({.sequence = sequence, .tokens = sequence->request.source.size(), .encode = true}, budget);
  }
}

void Scheduler::Take(const Chunk& chunk, std::size_t& budget) {
  Sequence& sequence = *chunk.sequence;
  if (chunk.encode) {
    cache_.ExtendSource(chunk.tokens, sequence.kv);
  } else {
    cache_.ExtendTokens(sequence.computed, sequence.computed + chunk.tokens, sequence.kv);
  }
  chunks_.push_back(chunk);
  sequence.turn = ++last_turn_;
  budget -= chunk.tokens;
}

}  // namespace moe
