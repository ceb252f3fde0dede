#include "router/scheduler.h"

#include <algorithm>

#include "core/check.h"

namespace moe {

Scheduler::Scheduler(SchedulerLimits limits, KvCache& cache) : limits_(limits), cache_(cache) {
  MOE_CHECK(limits.max_sequences > 0 && limits.max_step_tokens > 1);
  running_.reserve(limits.max_sequences);
  chunks_.reserve(limits.max_sequences);
}

bool Scheduler::Fits(const SequenceRequest& request) const {
  return KvCache::PagesFor(request.kv_tokens()) <= cache_.num_pages();
}

void Scheduler::Enqueue(std::unique_ptr<Sequence> sequence) {
  MOE_CHECK(Fits(sequence->request));
  waiting_.push_back(std::move(sequence));
}

Sequence* Scheduler::AdmitOne() {
  if (waiting_.empty() || running_.size() == limits_.max_sequences) return nullptr;
  const std::size_t pages = KvCache::PagesFor(waiting_.front()->request.kv_tokens());
  if (pages > cache_.free_pages()) return nullptr;
  running_.push_back(std::move(waiting_.front()));
  waiting_.pop_front();
  Sequence& sequence = *running_.back();
  for (std::size_t i = 0; i < pages; ++i) sequence.pages.push_back(cache_.Allocate());
  return &sequence;
}

std::span<const Chunk> Scheduler::Schedule() {
  chunks_.clear();
  const std::size_t count = running_.size();
  if (count == 0) return chunks_;
  std::size_t budget = limits_.max_step_tokens;

  // One token is left for prefill, so that decodes that fill a step cannot keep a prompt waiting for ever.
  const bool prefilling = std::any_of(running_.begin(), running_.end(), [](const auto& s) { return s->prefilling(); });
  const std::size_t reserved = prefilling ? 1 : 0;
  decode_turn_ %= count;
  std::size_t decoded = 0;
  for (std::size_t i = 0; i < count && budget > reserved; ++i) {
    Sequence& sequence = *running_[(decode_turn_ + i) % count];
    if (sequence.prefilling()) continue;
    chunks_.push_back({&sequence, 1});
    --budget;
    decoded = i + 1;
  }
  // Only when decodes alone fill a step does it matter who comes first next time.
  if (budget == reserved) decode_turn_ += decoded;

  prefill_turn_ %= count;
  std::size_t next_turn = prefill_turn_;
  for (std::size_t i = 0; i < count && budget > 0; ++i) {
    const std::size_t index = (prefill_turn_ + i) % count;
    Sequence& sequence = *running_[index];
    if (!sequence.prefilling()) continue;
    const std::size_t most = limits_.prefill_chunk == 0 ? budget : std::min(budget, limits_.prefill_chunk);
    const std::size_t tokens = std::min(most, sequence.remaining());
    chunks_.push_back({&sequence, tokens});
    budget -= tokens;
    next_turn = index + 1;
  }
  prefill_turn_ = next_turn;
  return chunks_;
}

void Scheduler::ReleasePages(Sequence& sequence) {
  for (const PageId page : sequence.pages) cache_.Release(page);
  sequence.pages.clear();
}

}  // namespace moe
