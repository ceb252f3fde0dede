// Which sequences run, and how many tokens of each, in the next step: continuous batching with chunked prefill.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "model/kv_cache.h"
#include "router/sequence.h"

namespace moe {

struct SchedulerLimits {
  std::size_t max_sequences = 0;    // running at a time
  std::size_t max_step_tokens = 0;  // rows of a step, at least 2
  std::size_t prefill_chunk = 0;    // prompt tokens of a sequence in a step; 0 = as many as fit
};

/// `tokens` next positions of a sequence, or its whole source for the encoder.
struct Chunk {
  Sequence* sequence = nullptr;
  std::size_t tokens = 0;
  bool encode = false;
};

/// Sequences are admitted in the order of arrival, each with all the KV pages that it can ever need: what runs can
/// always finish, so admission never deadlocks on KV, and nobody overtakes a large request for ever. A step takes the
/// running decodes first, one token each, then prefill chunks. An encoder takes whole sources, as many as fit its own
/// rows of the step; its chunks come before the decoder's. Where any do not all fit, those served longest ago
/// come first, so that under any limits a running sequence advances at least once in max_sequences steps. Used by the
/// engine thread alone; Schedule and Retire allocate nothing.
class Scheduler {
 public:
  Scheduler(SchedulerLimits limits, KvCache& cache);

  /// The sequence must fit the cache (Fits).
  void Enqueue(std::unique_ptr<Sequence> sequence);
  bool Fits(const SequenceRequest& request) const;

  /// Admits waiting sequences while there is room; calls `admitted(sequence)` for each.
  template <typename Admitted>
  void Admit(Admitted&& admitted) {
    while (Sequence* sequence = AdmitOne()) admitted(*sequence);
  }

  /// The next step's chunks, the encoder's first, in the order of its rows; empty only when nothing runs. Pages for
  /// them are there.
  std::span<const Chunk> Schedule();

  /// Takes out every sequence for which `done(sequence)` is true, running or waiting; its pages are free again.
  template <typename Done>
  void Retire(Done&& done) {
    std::erase_if(running_, [&](std::unique_ptr<Sequence>& sequence) {
      if (!done(*sequence)) return false;
      cache_.Release(sequence->kv);
      return true;
    });
    std::erase_if(waiting_, [&](std::unique_ptr<Sequence>& sequence) { return done(*sequence); });
  }

  std::size_t running() const { return running_.size(); }
  std::size_t waiting() const { return waiting_.size(); }

 private:
  Sequence* AdmitOne();
  /// Gives the sequence a place in the step, and the last one in its line.
  void Take(const Chunk& chunk, std::size_t& budget);
  void ScheduleEncoder();

  const SchedulerLimits limits_;
  KvCache& cache_;
  std::deque<std::unique_ptr<Sequence>> waiting_;
  std::vector<std::unique_ptr<Sequence>> running_;  // in the order of admission
  std::vector<Sequence*> encodes_;                  // of the running, for Schedule
  std::vector<Sequence*> decodes_;
  std::vector<Sequence*> prefills_;
  std::vector<Chunk> chunks_;
  std::uint64_t last_turn_ = 0;
};

}  // namespace moe
