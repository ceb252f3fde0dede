#include "bench/transport/exchange_bench.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "bench/transport/in_process_paths.h"
#include "transport/in_process.h"

namespace moe {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr ExchangeBenchOptions Tiny() { return {.rows = {}, .hidden = 8, .repetitions = 3, .exchanges = 2}; }

ExchangeBenchOptions TinyOf(std::vector<std::size_t> rows) {
  ExchangeBenchOptions options = Tiny();
  options.rows = std::move(rows);
  return options;
}

// What is asked of a baseline, a line each.
struct Record {
  std::vector<std::string> lines;
  void Note(const ExchangeBytes& bytes) { lines.push_back(Cat(bytes.request, " ", bytes.reply)); }
  void Note(const ExchangeBytes& bytes, int workers) {
    lines.push_back(Cat(bytes.request, " ", bytes.reply, " to ", workers));
  }
};

class RecordingRouter final : public RouterPath {
 public:
  explicit RecordingRouter(Record& record) : record_(record) {}
  std::string_view name() const override { return "recording"; }
  Status Exchange(const ExchangeBytes& bytes, int workers) override {
    record_.Note(bytes, workers);
    return Status::Ok();
  }

 private:
  Record& record_;
};

class RecordingWorker final : public WorkerPath {
 public:
  explicit RecordingWorker(Record& record) : record_(record) {}
  Status Answer(const ExchangeBytes& bytes) override {
    record_.Note(bytes);
    return Status::Ok();
  }

 private:
  Record& record_;
};

TEST(BytesOf, AreThoseOfADispatchWithOnePairARow) {
  const ExchangeBenchOptions options{.hidden = 2048, .type = ExchangeType::kBf16};
  // 40 bytes of header and 64 pairs of 12, up to a multiple of 64; 64 bytes of header.
  EXPECT_EQ(BytesOf(options, 64).request, 832u + 64 * 2048 * 2);
  EXPECT_EQ(BytesOf(options, 64).reply, 64u + 64 * 2048 * 2);
}

// A router and workers as threads, each with one recorded baseline; several transports are several of these.
class RecordedJob {
 public:
  RecordedJob(const ExchangeBenchOptions& options, std::size_t workers, std::size_t sides)
      : options_(options), records_(workers), ended_(workers) {
    for (std::size_t s = 0; s < sides; ++s)
      ends_.push_back(*MakeInProcess({.limits = LimitsOf(options), .num_workers = static_cast<int>(workers)}));
  }

  Result<std::vector<ExchangeResult>> Run() {
    std::vector<std::jthread> threads;
    for (std::size_t w = 0; w < records_.size(); ++w) threads.emplace_back([this, w] { Serve(w); });
    std::vector<RouterSide> sides;
    for (InProcessEnds& ends : ends_) {
      sides.push_back({.transport = ends.routers.front().get()});
      sides.back().baselines.push_back(std::make_unique<RecordingRouter>(router_));
    }
    auto results =
        RunExchangeBench(options_, sides, [this](const ExchangeTest& test) { started_.push_back(test.workers); });
    if (!results.ok()) ends_.front().routers.clear();
    return results;
  }

  const std::vector<std::string>& router() const { return router_.lines; }
  const std::vector<std::string>& worker(std::size_t w) const { return records_[w].lines; }
  const Status& ended(std::size_t w) const { return ended_[w]; }
  const std::vector<int>& started() const { return started_; }

 private:
  void Serve(std::size_t w) {
    std::vector<WorkerSide> sides;
    for (InProcessEnds& ends : ends_) {
      sides.push_back({.endpoint = ends.workers[w].get()});
      sides.back().baselines.push_back(std::make_unique<RecordingWorker>(records_[w]));
    }
    ended_[w] = ServeExchangeBench(sides);
  }

  const ExchangeBenchOptions options_;
  std::vector<InProcessEnds> ends_;  // by side
  Record router_;
  std::vector<Record> records_;  // by worker
  std::vector<Status> ended_;
  std::vector<int> started_;
};

std::vector<std::string> Times(std::size_t times, const std::string& line) {
  return std::vector<std::string>(times, line);
}

std::vector<std::string> Joined(std::initializer_list<std::vector<std::string>> parts) {
  std::vector<std::string> all;
  for (const std::vector<std::string>& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

TEST(RunExchangeBench, TellsTheWorkersEveryTurnOfABaseline) {
  RecordedJob job(TinyOf({1, 3}), /*workers=*/2, /*sides=*/1);
  const auto results = job.Run();
  ASSERT_TRUE(results.ok()) << results.status().message();
  EXPECT_THAT(job.started(), ElementsAre(2, 2));
  // Three turns of two exchanges and one that is not counted.
  EXPECT_EQ(job.router(), Joined({Times(9, "96 96 to 2"), Times(9, "224 160 to 2")}));
  for (std::size_t w = 0; w < 2; ++w) {
    EXPECT_EQ(job.worker(w), Joined({Times(9, "96 96"), Times(9, "224 160")}));
    EXPECT_TRUE(job.ended(w).ok()) << job.ended(w).message();
  }
}

TEST(RunExchangeBench, LeavesWorkersOutOfTestsOfFewer) {
  ExchangeBenchOptions options = Tiny();
  options.bytes = {64, 128};
  options.workers = {2, 3};
  RecordedJob job(options, /*workers=*/3, /*sides=*/1);
  const auto results = job.Run();
  ASSERT_TRUE(results.ok()) << results.status().message();
  EXPECT_THAT(job.started(), ElementsAre(1, 2, 2, 3, 3)) << "the first is for the latency";
  EXPECT_EQ(job.router(), Joined({Times(9, "64 64 to 1"), Times(9, "64 64 to 2"), Times(9, "128 128 to 2"),
                                  Times(9, "64 64 to 3"), Times(9, "128 128 to 3")}));
  EXPECT_EQ(job.worker(0).size(), 5u * 9);
  EXPECT_EQ(job.worker(1).size(), 4u * 9);
  EXPECT_EQ(job.worker(2), Joined({Times(9, "64 64"), Times(9, "128 128")}));
  std::vector<bool> latency;
  for (const ExchangeResult& result : *results) latency.push_back(result.one_way_latency(0).has_value());
  EXPECT_THAT(latency, ElementsAre(true, false, false, false, false));
}

TEST(RunExchangeBench, TransportsTakeTurnsAndHaveResultsOfTheirOwn) {
  RecordedJob job(TinyOf({1, 3}), /*workers=*/2, /*sides=*/2);
  const auto results = job.Run();
  ASSERT_TRUE(results.ok()) << results.status().message();
  EXPECT_THAT(job.started(), ElementsAre(2, 2)) << "a test is one of all transports";
  EXPECT_EQ(job.router(), Joined({Times(18, "96 96 to 2"), Times(18, "224 160 to 2")}));
  ASSERT_EQ(results->size(), 4u);
  std::vector<std::size_t> rows;
  for (const ExchangeResult& result : *results) {
    rows.push_back(result.test.rows);
    ASSERT_EQ(result.paths.size(), 2u);
    EXPECT_EQ(result.paths[0].name, "inprocess");
    EXPECT_EQ(result.paths[1].name, "recording");
    EXPECT_EQ(result.paths[0].exchanges.size(), 6u);
  }
  EXPECT_THAT(rows, ElementsAre(1, 3, 1, 3));
}

std::vector<std::unique_ptr<LocalEnds>> InProcessOnly(const ExchangeBenchOptions& options, int workers) {
  std::vector<std::unique_ptr<LocalEnds>> ends;
  ends.push_back(*MakeInProcessEnds(options, workers));
  return ends;
}

TEST(RunExchangeBench, MeasuresEveryPathAsOften) {
  const ExchangeBenchOptions options = TinyOf({1, 64});
  const auto results =
      RunExchangeBenchInProcess(options, /*workers=*/3, InProcessOnly(options, 3), [](const ExchangeTest&) {});
  ASSERT_TRUE(results.ok()) << results.status().message();
  ASSERT_EQ(results->size(), 2u);
  for (const ExchangeResult& result : *results) {
    EXPECT_EQ(result.test.workers, 3);
    ASSERT_EQ(result.paths.size(), 2u);
    EXPECT_EQ(result.paths[0].name, "inprocess");
    EXPECT_EQ(result.paths[1].name, "memcpy");
    for (const PathSeconds& path : result.paths) {
      EXPECT_EQ(path.exchanges.size(), 6u);
      EXPECT_EQ(path.turn_medians.size(), 3u);
      EXPECT_TRUE(std::ranges::is_sorted(path.exchanges));
    }
    EXPECT_GT(result.paths[0].exchanges.front(), 0);
  }
}

TEST(RunExchangeBench, AFailureEndsItWithTheReason) {
  const ExchangeBenchOptions options = TinyOf({1});
  InProcessEnds ends = *MakeInProcess({.limits = LimitsOf(options), .num_workers = 1});
  Status ended;
  std::jthread worker([&, endpoint = std::move(ends.workers.front())]() mutable {
    const WorkerSide side{.endpoint = endpoint.get()};  // knows no baseline
    ended = ServeExchangeBench({&side, 1});
    endpoint.reset();
  });
  Record record;
  std::vector<RouterSide> sides(1);
  sides[0].transport = ends.routers.front().get();
  sides[0].baselines.push_back(std::make_unique<RecordingRouter>(record));
  const auto results = RunExchangeBench(options, sides, [](const ExchangeTest&) {});
  worker.join();
  EXPECT_THAT(ended.message(), HasSubstr("path 1 is unknown"));
  ASSERT_FALSE(results.ok());
  EXPECT_THAT(results.status().message(), HasSubstr("rank 1"));
}

TEST(TestsOf, OfBytesAreShorterWhereMessagesAreLarge) {
  ExchangeBenchOptions options{.bytes = {64, std::size_t{1} << 20, std::size_t{16} << 20}, .workers = {1, 4}};
  std::vector<std::string> tests;
  for (const ExchangeTest& test : TestsOf(options, 4))
    tests.push_back(Cat(test.workers, " ", test.bytes.request, " ", test.bytes.reply, " ", test.exchanges,
                        test.latency ? " latency" : ""));
  EXPECT_THAT(tests, ElementsAre("1 64 64 10 latency", "1 1048576 1048576 10", "1 16777216 16777216 2", "4 64 64 10",
                                 "4 1048576 1048576 8", "4 16777216 16777216 1"));
}

TEST(TestsOf, OfRowsTakeAllWorkersUnlessAskedOtherwise) {
  ExchangeBenchOptions options = TinyOf({4, 1});
  std::vector<std::string> tests;
  const auto list = [&] {
    tests.clear();
    for (const ExchangeTest& test : TestsOf(options, 3))
      tests.push_back(Cat(test.workers, " ", test.rows, " ", test.exchanges, test.latency ? " latency" : ""));
    return tests;
  };
  EXPECT_THAT(list(), ElementsAre("3 4 2", "3 1 2"));
  options.workers = {1, 2};
  EXPECT_THAT(list(), ElementsAre("1 4 2", "1 1 2 latency", "2 4 2", "2 1 2"));
}

TEST(CheckExchangeBench, NamesTheFlag) {
  const std::pair<ExchangeBenchOptions, const char*> cases[] = {
      {{.rows = {}}, "--rows is empty"},
      {{.rows = {1, 0}}, "--rows 0"},
      {{.rows = {200'000}, .hidden = 2048}, "--rows 200000: a message holds 1 to 131072 rows of 2048 f32"},
      {{.hidden = 0}, "--hidden is 0, a row has 1 to"},
      {{.hidden = std::size_t{1} << 40}, "--hidden is 1099511627776, a row has 1 to 268435456"},
      {{.repetitions = 0}, "--repetitions is 0"},
      {{.exchanges = 0}, "--exchanges is 0"},
      {{.bytes = {64, 0}}, "--bytes 0: a message holds 1 to 1073741824 bytes"},
      {{.bytes = {std::size_t{1} << 31}}, "--bytes 2147483648"},
      {{.workers = {4, 5}}, "--workers 5: 1 to 4 can take part"},
      {{.workers = {0}}, "--workers 0"},
  };
  for (const auto& [options, expected] : cases) {
    const Status status = CheckExchangeBench(options, /*workers=*/4);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << expected;
    EXPECT_THAT(status.message(), HasSubstr(expected));
  }
  EXPECT_TRUE(CheckExchangeBench({}, 1).ok());
}

ExchangeResult SomeResult() {
  return {.test = {.workers = 7, .rows = 4, .bytes = {.request = 100, .reply = 90}},
          .paths = {{.name = "mpi", .exchanges = {2, 3, 4}, .turn_medians = {4, 3}},
                    {.name = "raw_mpi", .exchanges = {1, 2, 5}, .turn_medians = {1, 6}}}};
}

ExchangeResult LatencyResult() {
  ExchangeResult result = SomeResult();
  result.test = {.workers = 1, .bytes = {.request = 64, .reply = 64}, .latency = true};
  return result;
}

const ExchangeBenchContext kContext{.ranks = 8, .hidden = 2048, .type = "bf16"};

void ExpectSpread(const json& spread, double p10, double p50, double p90) {
  EXPECT_DOUBLE_EQ(spread["p10"], p10);
  EXPECT_DOUBLE_EQ(spread["p50"], p50);
  EXPECT_DOUBLE_EQ(spread["p90"], p90);
}

TEST(ExchangeResult, HasTheBandwidthsOfAScatterAndAGather) {
  // Eight ranks' parts of 190 bytes in 3 s, of which seven pass the router's link.
  EXPECT_DOUBLE_EQ(SomeResult().algorithm_bandwidth(0), 8 * 190 / 3.0);
  EXPECT_DOUBLE_EQ(SomeResult().bus_bandwidth(0), 7 * 190 / 3.0);
  EXPECT_DOUBLE_EQ(SomeResult().bus_bandwidth(1), 7 * 190 / 2.0);
}

TEST(ExchangeResult, HasHalfARoundTripOfTheTestForTheLatency) {
  EXPECT_EQ(LatencyResult().one_way_latency(0), 1.5);
  EXPECT_EQ(LatencyResult().one_way_latency(1), 1);
  EXPECT_FALSE(SomeResult().one_way_latency(0));
}

TEST(ExchangeResultsJson, HasMediansSpreadsAndRatios) {
  const json results = json::parse(ExchangeResultsJson({SomeResult()}, kContext));
  ASSERT_EQ(results.size(), 1u);
  json result = results[0];
  ExpectSpread(result["seconds"], 2.2, 3, 3.8);
  EXPECT_DOUBLE_EQ(result["seconds"]["p99"], 3.98);
  EXPECT_DOUBLE_EQ(result["algbw_bytes_per_s"], 8 * 190 / 3.0);
  EXPECT_DOUBLE_EQ(result["busbw_bytes_per_s"], 7 * 190 / 3.0);
  ASSERT_EQ(result["baselines"].size(), 1u);
  const json& baseline = result["baselines"][0];
  EXPECT_EQ(baseline["name"], "raw_mpi");
  EXPECT_EQ(baseline["ratio"], 1.5);
  ExpectSpread(baseline["seconds"], 1.2, 2, 4.4);
  ExpectSpread(baseline["turn_ratio"], 0.85, 2.25, 3.65);  // of 4 and 0.5
  EXPECT_DOUBLE_EQ(baseline["busbw_bytes_per_s"], 7 * 190 / 2.0);
  EXPECT_TRUE(baseline["one_way_latency_seconds"].is_null());
  for (const char* key : {"seconds", "baselines", "algbw_bytes_per_s", "busbw_bytes_per_s"}) result.erase(key);
  const json others = {{"transport", "mpi"}, {"ranks", 8},
                       {"workers", 7},       {"rows", 4},
                       {"hidden", 2048},     {"exchange_type", "bf16"},
                       {"exchanges", 3},     {"request_bytes", 100},
                       {"reply_bytes", 90},  {"one_way_latency_seconds", nullptr}};
  EXPECT_EQ(result, others);
}

TEST(ExchangeResultsJson, OfBytesHasNoRowsAndALatency) {
  const json result = json::parse(ExchangeResultsJson({LatencyResult()}, kContext))[0];
  for (const char* key : {"rows", "hidden", "exchange_type"}) EXPECT_TRUE(result[key].is_null()) << key;
  EXPECT_EQ(result["one_way_latency_seconds"], 1.5);
  EXPECT_EQ(result["baselines"][0]["one_way_latency_seconds"], 1.0);
}

TEST(ExchangeTable, HasALineForEachTest) {
  const std::string table = ExchangeTable({SomeResult()}, kContext);
  EXPECT_THAT(table, HasSubstr("8 rank(s), messages to each worker and back, of rows of 2048 bf16; us: "));
  EXPECT_THAT(table,
              HasSubstr("\nmpi              7     4    100  3000000.0 [2200000.0 3800000.0]  3980000.0  0.000  "));
  EXPECT_THAT(table, HasSubstr("1.50 [0.85 3.65]\n"));
}

TEST(ExchangeTable, OfBytesEndsWithTheLatency) {
  const std::string table = ExchangeTable({LatencyResult()}, kContext);
  EXPECT_THAT(table, testing::Not(HasSubstr("rows")));
  EXPECT_THAT(table, HasSubstr("\none way of 64 bytes to one worker: mpi 1500000.00 us, raw_mpi 1000000.00 us\n"));
}

}  // namespace
}  // namespace moe
