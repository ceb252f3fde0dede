// A binary of its own: it counts every operator new, on every thread. A step that allocates waits for the allocator's
// locks, and for whoever else holds them.
#include <gtest/gtest.h>

#include <filesystem>

#include <utility>
#include <vector>

#include "tests/contract/allocation_count.h"
#include "tests/router/engine_harness.h"
#include "tests/router/identity.h"
#include "tests/temporary_folder.h"

namespace moe {
namespace {

// Notes the count of allocations, on the engine thread, when its sequence has so many tokens.
class CountingListener final : public OutputListener {
 public:
  CountingListener(const SequenceOutput& output, std::size_t first, std::size_t last)
      : output_(output), first_(first), last_(last) {}

  void OnOutput() override {
    if (output_.tokens() == first_) at_first_ = AllocationCount();
    if (output_.tokens() == last_) at_last_ = AllocationCount();
  }
  std::uint64_t allocations() const { return at_last_ - at_first_; }
  bool complete() const { return at_first_ > 0 && at_last_ > 0; }

 private:
  const SequenceOutput& output_;
  const std::size_t first_, last_;
  std::uint64_t at_first_ = 0;
  std::uint64_t at_last_ = 0;
};

// Recorded in `trace` unless that is empty: runs `others` beside a greedy sequence of 150 tokens; returns the
// allocations of all threads between its tokens 20 and 140, while none of the others comes or goes.
std::uint64_t SteadyAllocations(const HarnessOptions& options, std::vector<SequenceRequest> others,
                                const std::filesystem::path& trace = {}) {
  EngineHarness harness(options);
  std::unique_ptr<TraceRecorder> recorder;
  if (!trace.empty()) {
    Result<std::unique_ptr<TraceRecorder>> started =
        TraceRecorder::Start({.path = trace,
                              .existing = TraceRecorder::Existing::kReplace,
                              .limit_bytes = std::uint64_t{1} << 30,
                              .max_step_rows = options.max_step_tokens},
                             MakeTraceHeader(harness.config(), harness.placement()));
    EXPECT_TRUE(started.ok()) << started.status().message();
    recorder = *std::move(started);
    harness.engine().Record(recorder.get());
  }
  SequenceRequest request = ForModel(harness.config(), Greedy({1, 2, 3}, 150));
  auto output = std::make_shared<SequenceOutput>(request, harness.config());
  auto listener = std::make_shared<CountingListener>(*output, 20, 140);
  std::vector<std::unique_ptr<Sequence>> batch;
  batch.push_back(std::make_unique<Sequence>(std::move(request), output, listener, harness.config()));
  std::vector<Client> clients(others.size());
  for (std::size_t i = 0; i < others.size(); ++i)
    batch.push_back(harness.Make(ForModel(harness.config(), std::move(others[i])), clients[i]));
  EXPECT_TRUE(harness.router().Submit(std::move(batch)).ok());
  EXPECT_TRUE(harness.Drain().ok());
  EXPECT_TRUE(listener->complete());
  return listener->allocations();
}

HarnessOptions Options(int workers, int threads) {
  return {.workers = workers, .threads = threads, .max_step_tokens = 24, .prefill_chunk = 7, .kv_pages = 256};
}

TEST(StepAllocation, TheCountSeesWhatIsAllocated) {
  const std::uint64_t before = AllocationCount();
  const auto value = std::make_unique<int>(1);
  EXPECT_EQ(AllocationCount(), before + 1) << *value;
}

TEST(StepAllocation, DecodesOfEveryKindAllocateNothing) {
  SequenceRequest sampled = Greedy({4, 5}, 200);
  sampled.sampling = {.temperature = 0.8f,
                      .top_k = 40,
                      .top_p = 0.9f,
                      .min_p = 0.01f,
                      .repetition_penalty = 1.1f,
                      .presence_penalty = 0.1f,
                      .frequency_penalty = 0.1f,
                      .seed = 3};
  SequenceRequest detailed = Greedy({6}, 200);
  detailed.num_logprobs = 8;
  detailed.return_routing = true;
  detailed.stop_token_ids = {};
  EXPECT_EQ(SteadyAllocations(Options(3, 1), {sampled, detailed}), 0u);
  EXPECT_EQ(SteadyAllocations(Options(2, 2), {sampled, detailed}), 0u) << "with threads";
}

TEST(StepAllocation, PrefillChunksAllocateNothing) {
  // Both prompts need over 150 steps at 7 positions each.
  EXPECT_EQ(SteadyAllocations(Options(3, 1), {Greedy(RandomTokens(1, 1500, 200), 2)}), 0u);
  EXPECT_EQ(SteadyAllocations(Options(2, 2), {Scoring(RandomTokens(2, 1500, 200), ScoreLogits::kAll)}), 0u)
      << "with threads";
}

TEST(StepAllocation, MicroBatchesAllocateNothing) {
  for (const bool measure : {false, true}) {
    HarnessOptions options = Options(2, 2);
    options.micro_batches = {.most = 2, .measure = measure};
    EXPECT_EQ(SteadyAllocations(options, {Greedy({4, 5}, 200), Greedy({6}, 200)}), 0u) << "decodes";
    EXPECT_EQ(SteadyAllocations(options, {Greedy(RandomTokens(1, 1500, 200), 2)}), 0u) << "a prompt in chunks";
  }
}

TEST(StepAllocation, TracesAllocateNothing) {
  const TemporaryFolder folder;
  EXPECT_EQ(SteadyAllocations(Options(3, 1), {Greedy({4, 5}, 200), Greedy(RandomTokens(1, 1500, 200), 2)},
                              folder.path() / "some.moetrace"),
            0u);
}

TEST(StepAllocation, SyntheticRoutingAllocatesNothing) {
  HarnessOptions options = Options(2, 2);
  options.routing = "zipf:1";
  EXPECT_EQ(SteadyAllocations(options, {Greedy({4, 5}, 200)}), 0u);
}

TEST(StepAllocation, WaitingSequencesAllocateNothing) {
  HarnessOptions options = Options(2, 1);
  options.max_sequences = 1;
  EXPECT_EQ(SteadyAllocations(options, {Greedy({1}, 2), Greedy({2}, 2), Greedy({3}, 2)}), 0u);
}

TEST(StepAllocation, StepsOfEveryFamilyAllocateNothing) {
  for (const std::string& golden : CasesIn("tests/goldens")) {
    HarnessOptions options = Options(2, 2);
    options.model = golden;
    SequenceRequest detailed = Greedy({6}, 200);
    detailed.return_routing = true;
    const ModelConfig config = *ReadModelConfig(SourcePath(options.model));
    // An encoder takes its source in one step, before the count begins.
    const bool encoder = config.has_encoder();
    SequenceRequest prompt = Greedy(RandomTokens(1, encoder ? 20 : 1500, config.vocab_size), encoder ? 200 : 2);
    EXPECT_EQ(SteadyAllocations(options, {detailed, prompt}), 0u) << golden;
  }
}

TEST(StepAllocation, TheFiguresOverTheWindowAllocateNothing) {
  // The router publishes them by the clock, so that a test of its steps might see none.
  EngineHarness harness({.workers = 2});
  harness.RunAll({Greedy({1, 2, 3}, 20)});
  RoutingHealth health(harness.config().sparse_layers().size(), 6, 2);
  const std::uint64_t after_making = AllocationCount();
  health.Update(harness.engine().load_window());
  harness.metrics().OnWindow(harness.engine().load_window(), health);
  EXPECT_EQ(AllocationCount(), after_making);
}

}  // namespace
}  // namespace moe
