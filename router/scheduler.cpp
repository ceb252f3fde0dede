#include "router/scheduler.h"

#include <algorithm>

#include "core/check.h"

namespace moe {

Scheduler::Scheduler(SchedulerLimits limits, KvCache& cache) : limits_(limits), cache_(cache) {
  MOE_CHECK(limits.max_sequences > 0 && limits.max_step_tokens > 1);
  running_.reserve(limits.max_sequences);
  decodes_.reserve(limits.max_sequences);
  prefills_.reserve(limits.max_sequences);
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
  sequence.turn = ++last_turn_;
  for (std::size_t i = 0; i < pages; ++i) sequence.pages.push_back(cache_.Allocate());
  return &sequence;
}

std::span<const Chunk> Scheduler::Schedule() {
  chunks_.clear();
  decodes_.clear();
  prefills_.clear();
  for (const auto& sequence : running_) (sequence->prefilling() ? prefills_ : decodes_).push_back(sequence.get());
  const auto earlier = [](const Sequence* a, const Sequence* b) { return a->turn < b->turn; };
  std::size_t budget = limits_.max_step_tokens;

  // One token is left for prefill, so that decodes that fill a step cannot keep a prompt waiting for ever.
  const std::size_t reserved = prefills_.empty() ? 0 : 1;
  if (decodes_.size() > budget - reserved) std::sort(decodes_.begin(), decodes_.end(), earlier);
  for (Sequence* sequence : decodes_) {
    if (budget == reserved) break;
    Take(*sequence, 1, budget);
  }

  std::sort(prefills_.begin(), prefills_.end(), earlier);
  for (Sequence* sequence : prefills_) {
    if (budget == 0) break;
    const std::size_t most = limits_.prefill_chunk == 0 ? budget : std::min(budget, limits_.prefill_chunk);
    Take(*sequence, std::min(most, sequence->remaining()), budget);
  }
  return chunks_;
}

void Scheduler::Take(Sequence& sequence, std::size_t tokens, std::size_t& budget) {
  chunks_.push_back({&sequence, tokens});
  sequence.turn = ++last_turn_;
  budget -= tokens;
}

void Scheduler::ReleasePages(Sequence& sequence) {
  for (const PageId page : sequence.pages) cache_.Release(page);
  sequence.pages.clear();
}

}  // namespace moe
