// A scheduler, its cache, and a stand-in for the engine that only counts positions.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "router/scheduler.h"

namespace moe {

class SilentListener final : public OutputListener {
 public:
  void OnOutput() override {}
};

/// The smallest model that has a cache: one layer, one head of one element.
inline ModelConfig TinyConfig() {
  ModelConfig config;
  config.vocab_size = 4;
  config.layers.push_back({.attention = {.num_heads = 1, .num_kv_heads = 1, .head_dim = 1}});
  return config;
}

constexpr std::size_t kPage = kPageTokens;

struct Want {
  std::size_t prompt = 1;
  std::uint32_t new_tokens = 1;  // 0: a score
  std::size_t source = 0;        // of an encoder
};

class SchedulerTest : public testing::Test {
 protected:
  explicit SchedulerTest(ModelConfig config = TinyConfig()) : config_(std::move(config)) {}

  void Make(SchedulerLimits limits, std::size_t pages) {
    scheduler_.reset();
    limits_ = limits;
    cache_ = std::make_unique<KvCache>(NewCache(pages));
    scheduler_ = std::make_unique<Scheduler>(limits, *cache_);
  }
  /// The cache of a server with these limits whose --kv-tokens are `pages` pages.
  KvCache NewCache(std::size_t pages) const {
    const std::size_t chunk = limits_.prefill_chunk == 0 ? limits_.max_step_tokens : limits_.prefill_chunk;
    return KvCache(config_, PlanKv(config_, {.tokens = pages * kPage,
                                             .max_sequences = limits_.max_sequences,
                                             .max_step_tokens = limits_.max_step_tokens,
                                             .max_chunk = std::min(chunk, limits_.max_step_tokens)}));
  }

  static SequenceRequest Request(Want want) {
    return {.kind = want.new_tokens == 0 ? SequenceKind::kScore : SequenceKind::kGenerate,
            .source = std::vector<std::uint32_t>(want.source, 0),
            .prompt = std::vector<std::uint32_t>(want.prompt, 0),
            .max_new_tokens = want.new_tokens};
  }

  /// Queues a sequence; the pointer is good until it retires.
  Sequence* Enqueue(Want want) {
    SequenceRequest request = Request(want);
    auto output = std::make_shared<SequenceOutput>(request, config_);
    auto sequence = std::make_unique<Sequence>(std::move(request), std::move(output), listener_, config_);
    Sequence* const pointer = sequence.get();
    scheduler_->Enqueue(std::move(sequence));
    return pointer;
  }

  std::vector<Sequence*> Admit() {
    std::vector<Sequence*> admitted;
    scheduler_->Admit([&](Sequence& sequence) { admitted.push_back(&sequence); });
    return admitted;
  }

  /// What the engine does to sequences, without computing. Returns the decoder's tokens by sequence; the sources that
  /// were encoded are in `encoded_`, in their order.
  std::map<Sequence*, std::size_t> Step() {
    std::map<Sequence*, std::size_t> served;
    encoded_.clear();
    std::size_t source_rows = 0;
    std::size_t rows = 0;
    for (const Chunk& chunk : scheduler_->Schedule()) {
      Sequence& sequence = *chunk.sequence;
      if (chunk.encode) {
        EXPECT_TRUE(served.empty()) << "an encoder's chunk after a decoder's";
        EXPECT_EQ(chunk.tokens, sequence.request.source.size()) << "a source is encoded whole";
        EXPECT_FALSE(std::exchange(sequence.encoded, true)) << "encoded twice";
        encoded_.push_back(&sequence);
        source_rows += chunk.tokens;
        cache_->ReleaseTransient(sequence.kv);
      } else {
        rows += Decode(chunk);
        EXPECT_TRUE(served.emplace(&sequence, chunk.tokens).second) << "one sequence in two chunks";
      }
    }
    EXPECT_LE(rows, limits_.max_step_tokens);
    EXPECT_LE(source_rows, limits_.max_step_tokens);
    EXPECT_EQ(served.empty() && encoded_.empty(), scheduler_->running() == 0) << "an idle step while sequences run";
    return served;
  }

  /// False when one of them is not through its prompt after many steps.
  bool StepUntilDecoding(const std::vector<Sequence*>& sequences) {
    for (int step = 0; step < 1000; ++step) {
      if (std::none_of(sequences.begin(), sequences.end(), [](Sequence* s) { return s->prefilling(); })) return true;
      Step();
    }
    return false;
  }

  static bool Complete(const Sequence& sequence) {
    return sequence.request.kind == SequenceKind::kScore ? sequence.computed == sequence.request.prompt.size()
                                                         : sequence.generated() == sequence.request.max_new_tokens;
  }
  void RetireComplete() {
    scheduler_->Retire([](const Sequence& sequence) { return Complete(sequence); });
  }

  static std::size_t Reserved(const Sequence& sequence, std::size_t group) {
    return sequence.kv.groups[group].reserved;
  }
  /// Pages that the sequence holds of a group.
  static std::size_t Held(const Sequence& sequence, std::size_t group) {
    return sequence.kv.groups[group].pages.size() - sequence.kv.groups[group].first;
  }

  const ModelConfig config_;
  const std::shared_ptr<OutputListener> listener_ = std::make_shared<SilentListener>();
  SchedulerLimits limits_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<Scheduler> scheduler_;
  std::vector<Sequence*> encoded_;  // of the last step

 private:
  std::size_t Decode(const Chunk& chunk) {
    Sequence& sequence = *chunk.sequence;
    EXPECT_TRUE(sequence.encoded);
    EXPECT_GT(chunk.tokens, 0u);
    EXPECT_LE(chunk.tokens, sequence.remaining());
    if (sequence.generated() > 0) {
      EXPECT_EQ(chunk.tokens, 1u);
    }
    if (limits_.prefill_chunk > 0) {
      EXPECT_LE(chunk.tokens, limits_.prefill_chunk);
    }
    for (const KvPages::Group& held : sequence.kv.groups) {
      if (&held == &sequence.kv.groups.front() || sequence.request.source.empty()) {
        EXPECT_GE(held.pages.size() * kPage, sequence.computed + chunk.tokens) << "rows without a page";
      }
    }
    sequence.computed += chunk.tokens;
    if (sequence.request.kind == SequenceKind::kGenerate && sequence.remaining() == 0) sequence.tokens.push_back(0);
    return chunk.tokens;
  }
};

}  // namespace moe
