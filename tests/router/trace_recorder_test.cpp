#include "router/trace_recorder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <future>
#include <string>

#include "placement/trace_loads.h"
#include "router/trace_control.h"
#include "tests/router/engine_harness.h"
#include "tests/temporary_folder.h"

namespace moe {
namespace {

using testing::HasSubstr;

constexpr std::uint64_t kAmple = std::uint64_t{1} << 30;

class TraceTest : public testing::Test {
 protected:
  std::filesystem::path Path(const std::string& name) const { return folder_.path() / name; }

  static TraceControl::Setup SetupOf(const EngineHarness& harness, std::uint64_t limit = kAmple) {
    return {.header = MakeTraceHeader(harness.config(), harness.placement()),
            .max_step_rows = harness.options().max_step_tokens,
            .limit_bytes = limit};
  }

  const TemporaryFolder folder_;
};

std::vector<SequenceRequest> SomeRequests(const ModelConfig& config) {
  std::vector<SequenceRequest> requests;
  for (std::uint32_t i = 0; i < 4; ++i)
    requests.push_back(ForModel(config, Greedy(RandomTokens(i, 3 + 7 * i, config.vocab_size), 6 + i)));
  for (SequenceRequest& request : requests) request.return_routing = true;
  return requests;
}

// How the trace ended, and its loads.
TraceProgress EndOf(TraceControl& control) {
  std::promise<Result<TraceProgress>> ended;
  control.End([&](Result<TraceProgress> result) { ended.set_value(std::move(result)); });
  Result<TraceProgress> result = ended.get_future().get();
  EXPECT_TRUE(result.ok()) << result.status().message();
  return *result;
}

// The loads that the clients saw themselves.
LayerLoads LoadsOf(const std::vector<Client>& clients, const ModelConfig& config) {
  LayerLoads loads(config.sparse_layers().size(),
                   std::vector<std::uint64_t>(static_cast<std::size_t>(config.num_experts())));
  const auto k = static_cast<std::size_t>(config.experts_per_token());
  for (const Client& client : clients) {
    const SequenceOutput& output = *client.output;
    for (std::size_t layer = 0; layer < loads.size(); ++layer) {
      const std::size_t begin = output.routing_shape.begin(layer);
      // A generated sequence's last token is not computed.
      const std::size_t positions = output.routing_shape.positions(layer);
      for (std::size_t i = begin; i < begin + positions * k; ++i)
        if (output.routing_weights[i] != 0) ++loads[layer][static_cast<std::size_t>(output.routing_ids[i])];
    }
  }
  return loads;
}

TEST_F(TraceTest, HoldsWhatTheClientsSawAndChangesNothing) {
  for (const char* model : {"tests/goldens/mixtral", "tests/goldens/deepseek_v3", "tests/goldens/switch_base"}) {
    SCOPED_TRACE(model);
    EngineHarness plain({.model = model, .workers = 2, .max_step_tokens = 32});
    const std::vector<Client> expected = plain.RunAll(SomeRequests(plain.config()));

    EngineHarness traced({.model = model, .workers = 2, .micro_batches = {.most = 2}, .max_step_tokens = 32});
    TraceControl control(SetupOf(traced), traced.engine(), traced.router());
    const std::filesystem::path path = Path("whole.moetrace");
    ASSERT_TRUE(control.Begin({.path = path, .existing = TraceRecorder::Existing::kReplace}).ok());
    const std::vector<Client> clients = traced.RunAll(SomeRequests(traced.config()));
    for (std::size_t i = 0; i < clients.size(); ++i) ExpectSameBits(*clients[i].output, *expected[i].output);

    const TraceProgress end = EndOf(control);
    EXPECT_FALSE(end.recording);
    EXPECT_EQ(end.steps, traced.engine().totals().steps);
    EXPECT_EQ(end.dropped, 0u);
    EXPECT_EQ(end.bytes, std::filesystem::file_size(path));
    const Result<TraceLoads> loads = ReadTraceLoads(path);
    ASSERT_TRUE(loads.ok()) << loads.status().message();
    EXPECT_EQ(loads->trace.steps, end.steps);
    EXPECT_EQ(loads->trace.end, TraceEnd::kStopped);
    EXPECT_EQ(loads->trace.header.placement.workers, 2);
    EXPECT_EQ(loads->total, LoadsOf(clients, traced.config()));
  }
}

TEST_F(TraceTest, EndsAtItsLimitWithWholeSteps) {
  EngineHarness harness({.workers = 1});
  constexpr std::uint64_t kLimit = 4000;
  TraceControl control(SetupOf(harness, kLimit), harness.engine(), harness.router());
  const std::filesystem::path path = Path("short.moetrace");
  ASSERT_TRUE(control.Begin({.path = path}).ok());
  harness.RunAll({Greedy({1, 2, 3}, 100)});
  const TraceProgress end = EndOf(control);
  EXPECT_EQ(end.end, TraceEnd::kLimit);
  EXPECT_GT(end.steps, 10u);
  EXPECT_LT(end.steps, 100u);
  EXPECT_LE(std::filesystem::file_size(path), kLimit);
  const Result<TraceLoads> loads = ReadTraceLoads(path);
  ASSERT_TRUE(loads.ok()) << loads.status().message();
  EXPECT_EQ(loads->trace.steps, end.steps);
  EXPECT_EQ(loads->trace.end, TraceEnd::kLimit);
}

TEST_F(TraceTest, OneAtATimeAndOneAfterAnother) {
  EngineHarness harness({.workers = 2, .threads = 2});
  TraceControl control(SetupOf(harness), harness.engine(), harness.router());
  EXPECT_FALSE(control.progress().has_value());
  std::promise<Status> none;
  control.End([&](const Result<TraceProgress>& result) { none.set_value(result.status()); });
  EXPECT_EQ(none.get_future().get().code(), StatusCode::kNotFound);

  harness.Start();
  std::uint64_t steps = 0;
  for (int i = 0; i < 3; ++i) {
    const std::filesystem::path path = Path(Cat(i, ".moetrace"));
    ASSERT_TRUE(control.Begin({.path = path}).ok());
    EXPECT_TRUE(control.progress()->recording);
    const Status second = control.Begin({.path = Path("other.moetrace")});
    EXPECT_EQ(second.code(), StatusCode::kResourceExhausted);
    EXPECT_THAT(second.message(), HasSubstr(path.string()));
    harness.Submit(Greedy({1, 2, 3}, 20)).watcher->WaitFinished();
    const TraceProgress end = EndOf(control);
    EXPECT_EQ(end.steps, 20u);
    EXPECT_EQ(ReadTraceLoads(path)->trace.steps, 20u);
    harness.Submit(Greedy({1}, 5)).watcher->WaitFinished();  // nobody records it
    steps += end.steps;
  }
  EXPECT_EQ(steps, 60u);
  EXPECT_FALSE(std::filesystem::exists(Path("other.moetrace")));
  // What is under way while a trace begins and ends goes on.
  const Client running = harness.Submit(Greedy({1, 2, 3}, 400));
  ASSERT_TRUE(control.Begin({.path = Path("meanwhile.moetrace")}).ok());
  EndOf(control);
  running.watcher->WaitFinished();
  EXPECT_EQ(running.output->tokens(), 400u);
  EXPECT_TRUE(harness.Stop().ok());
  EXPECT_EQ(control.Begin({.path = Path("late.moetrace")}).code(), StatusCode::kUnavailable);
}

TEST_F(TraceTest, RefusesWhatCannotBe) {
  EngineHarness harness({.workers = 1});
  TraceControl control(SetupOf(harness), harness.engine(), harness.router());
  EXPECT_THAT(control.Begin({.path = "/nonexistent/a.moetrace"}).message(), HasSubstr("/nonexistent/a.moetrace"));
  EXPECT_THAT(control.Begin({.path = Path("a.moetrace"), .limit_bytes = 10}).message(), HasSubstr("no room"));
  ASSERT_TRUE(control.Begin({.path = Path("a.moetrace")}).ok());
  harness.RunAll({Greedy({1}, 2)});
  EndOf(control);
  TraceControl again(SetupOf(harness), harness.engine(), harness.router());
  EXPECT_THAT(again.Begin({.path = Path("a.moetrace")}).message(), HasSubstr("File exists"));

  EngineHarness dense({.model = "tests/goldens/llama"});
  TraceControl none(SetupOf(dense), dense.engine(), dense.router());
  EXPECT_THAT(none.Begin({.path = Path("b.moetrace")}).message(), HasSubstr("model with experts"));
}

TEST_F(TraceTest, AFullDiskEndsTheTraceAndNothingElse) {
  EngineHarness harness({.workers = 1});
  TraceControl control(SetupOf(harness), harness.engine(), harness.router());
  ASSERT_TRUE(control.Begin({.path = "/dev/full", .existing = TraceRecorder::Existing::kReplace}).ok());
  harness.Start();
  harness.Submit(Greedy({1, 2}, 50)).watcher->WaitFinished();
  std::promise<Status> ended;
  control.End([&](const Result<TraceProgress>& result) { ended.set_value(result.status()); });
  EXPECT_THAT(ended.get_future().get().message(), HasSubstr("No space left"));
  harness.Submit(Greedy({1, 2}, 5)).watcher->WaitFinished();
  EXPECT_TRUE(harness.Stop().ok());
}

TEST_F(TraceTest, DropsAndCountsWhatFindsNoRoom) {
  TraceHeader header;
  header.num_experts = 4;
  header.experts_per_token = 2;
  header.layers = {0};
  header.placement = {.num_experts = 4, .workers = 1, .layers = {{.layer = 0, .slots = {{0, 1, 2, 3}}}}};
  constexpr std::size_t kRows = 50'000;  // of a ring of 4 MiB, a step takes 0.6 MB
  Result<std::unique_ptr<TraceRecorder>> started = TraceRecorder::Start(
      {.path = Path("dropped.moetrace"), .limit_bytes = std::uint64_t{1} << 40, .max_step_rows = 1}, header);
  ASSERT_TRUE(started.ok()) << started.status().message();
  TraceRecorder& recorder = **started;
  const std::vector<std::int32_t> ids(2 * kRows, 1);
  const std::vector<float> weights(2 * kRows, 0.5f);
  constexpr std::uint64_t kSteps = 100;  // far faster than anything is written
  for (std::uint64_t step = 0; step < kSteps; ++step) {
    recorder.BeginStep(0, kRows);
    recorder.NoteLayer(0, {ids.data(), kRows, 2}, {weights.data(), kRows, 2});
    if (step % 10 == 0) recorder.BeginStep(0, kRows);  // the first attempt failed
    recorder.NoteLayer(0, {ids.data(), kRows, 2}, {weights.data(), kRows, 2});
    recorder.EndStep(step, 1, Clock::now());
  }
  recorder.BeginStep(0, 1'000'000);  // larger than half of the ring, whatever is free
  recorder.EndStep(kSteps, 1, Clock::now());
  std::promise<TraceProgress> ended;
  recorder.Finish([&](const TraceProgress& end) { ended.set_value(end); });
  const TraceProgress end = ended.get_future().get();
  EXPECT_GE(end.dropped, 1u);
  EXPECT_EQ(end.steps + end.dropped, kSteps + 1);
  const Result<TraceLoads> loads = ReadTraceLoads(Path("dropped.moetrace"));
  ASSERT_TRUE(loads.ok()) << loads.status().message();
  EXPECT_EQ(loads->trace.steps, end.steps);
  EXPECT_EQ(loads->trace.dropped, end.dropped);
  EXPECT_EQ(loads->total[0][1], end.steps * 2 * kRows);
}

// Of a whole run by layer.
LayerLoads ForcedLoads(const HarnessOptions& options, std::vector<Client>* clients = nullptr) {
  EngineHarness harness(options);
  std::vector<Client> all = harness.RunAll(SomeRequests(harness.config()));
  LayerLoads loads = LoadsOf(all, harness.config());
  if (clients != nullptr) *clients = std::move(all);
  return loads;
}

TEST(SyntheticRouting, GivesTheSameTokensOnEveryTopology) {
  for (const char* model : {"tests/goldens/olmoe", "tests/goldens/deepseek_v3", "tests/goldens/switch_base"}) {
    for (const char* routing : {"uniform", "zipf:1.2"}) {
      SCOPED_TRACE(Cat(model, " ", routing));
      std::vector<Client> expected;
      std::vector<Client> gate;
      const LayerLoads loads = ForcedLoads({.model = model, .embedded = true, .routing = routing}, &expected);
      EXPECT_NE(loads, ForcedLoads({.model = model, .embedded = true}, &gate));
      std::vector<Client> clients;
      EXPECT_EQ(loads, ForcedLoads({.model = model,
                                    .workers = 3,
                                    .placement = PlacementRule::kRoundRobin,
                                    .redundant_experts = 2,
                                    .threads = 2,
                                    .micro_batches = {.most = 2},
                                    .max_step_tokens = 32,
                                    .prefill_chunk = 5,
                                    .routing = routing},
                                   &clients));
      for (std::size_t i = 0; i < clients.size(); ++i) ExpectSameBits(*clients[i].output, *expected[i].output);
    }
  }
}

TEST_F(TraceTest, IsRoutedByAgain) {
  EngineHarness harness({.workers = 2});
  TraceControl control(SetupOf(harness), harness.engine(), harness.router());
  const std::filesystem::path path = Path("replayed.moetrace");
  ASSERT_TRUE(control.Begin({.path = path}).ok());
  harness.RunAll({Greedy({7}, 2)});  // one row a layer
  EndOf(control);
  const LayerLoads recorded = ReadTraceLoads(path)->total;
  std::vector<Client> clients;
  const LayerLoads forced = ForcedLoads({.routing = "trace:" + path.string()}, &clients);
  for (std::size_t layer = 0; layer < recorded.size(); ++layer)
    for (std::size_t e = 0; e < recorded[layer].size(); ++e)
      EXPECT_EQ(forced[layer][e] > 0, recorded[layer][e] > 0) << "only that row's experts are used";
}

}  // namespace
}  // namespace moe
