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
};

class RecordingRouter final : public RouterPath {
 public:
  explicit RecordingRouter(Record& record) : record_(record) {}
  std::string_view name() const override { return "recording"; }
  Status Exchange(const ExchangeBytes& bytes) override {
    record_.Note(bytes);
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

TEST(RunExchangeBench, TellsTheWorkersEveryTurnOfABaseline) {
  const ExchangeBenchOptions options = TinyOf({1, 3});
  InProcessEnds ends = *MakeInProcess({.limits = LimitsOf(options), .num_workers = 2});
  std::vector<Record> records(2);
  std::vector<Status> ended(2);
  std::vector<std::jthread> threads;
  for (std::size_t w = 0; w < 2; ++w) {
    threads.emplace_back([&, w, endpoint = ends.workers[w].get()] {
      std::vector<std::unique_ptr<WorkerPath>> baselines;
      baselines.push_back(std::make_unique<RecordingWorker>(records[w]));
      ended[w] = ServeExchangeBench(*endpoint, baselines);
    });
  }
  Record router;
  std::vector<std::unique_ptr<RouterPath>> baselines;
  baselines.push_back(std::make_unique<RecordingRouter>(router));
  std::vector<std::size_t> started;
  const auto results =
      RunExchangeBench(options, *ends.routers.front(), baselines, [&](std::size_t rows) { started.push_back(rows); });
  ends.routers.clear();
  threads.clear();
  ASSERT_TRUE(results.ok()) << results.status().message();
  EXPECT_THAT(started, ElementsAre(1, 3));
  // Three turns of two exchanges and one that is not counted.
  std::vector<std::string> expected(9, "96 96");
  expected.insert(expected.end(), 9, "224 160");
  EXPECT_EQ(router.lines, expected);
  for (const Record& record : records) EXPECT_EQ(record.lines, expected);
  for (const Status& status : ended) EXPECT_TRUE(status.ok()) << status.message();
}

TEST(RunExchangeBench, MeasuresEveryPathAsOften) {
  const auto results = RunExchangeBenchInProcess(TinyOf({1, 64}), /*workers=*/3, [](std::size_t) {});
  ASSERT_TRUE(results.ok()) << results.status().message();
  ASSERT_EQ(results->size(), 2u);
  for (const ExchangeResult& result : *results) {
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
    ended = ServeExchangeBench(*endpoint, {});  // knows no baseline
    endpoint.reset();
  });
  Record record;
  std::vector<std::unique_ptr<RouterPath>> baselines;
  baselines.push_back(std::make_unique<RecordingRouter>(record));
  const auto results = RunExchangeBench(options, *ends.routers.front(), baselines, [](std::size_t) {});
  worker.join();
  EXPECT_THAT(ended.message(), HasSubstr("baseline 1 is unknown"));
  ASSERT_FALSE(results.ok());
  EXPECT_THAT(results.status().message(), HasSubstr("rank 1"));
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
  };
  for (const auto& [options, expected] : cases) {
    const Status status = CheckExchangeBench(options);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << expected;
    EXPECT_THAT(status.message(), HasSubstr(expected));
  }
  EXPECT_TRUE(CheckExchangeBench({}).ok());
}

ExchangeResult SomeResult() {
  return {.rows = 4,
          .bytes = {.request = 100, .reply = 90},
          .paths = {{.name = "mpi", .exchanges = {2, 3, 4}, .turn_medians = {4, 3}},
                    {.name = "raw_mpi", .exchanges = {1, 2, 5}, .turn_medians = {1, 6}}}};
}

void ExpectSpread(const json& spread, double p10, double p50, double p90) {
  EXPECT_EQ(spread.size(), 3u);
  EXPECT_DOUBLE_EQ(spread["p10"], p10);
  EXPECT_DOUBLE_EQ(spread["p50"], p50);
  EXPECT_DOUBLE_EQ(spread["p90"], p90);
}

TEST(ExchangeResultsJson, HasMediansSpreadsAndRatios) {
  const json results =
      json::parse(ExchangeResultsJson({SomeResult()}, {.ranks = 8, .workers = 7, .hidden = 2048, .type = "bf16"}));
  ASSERT_EQ(results.size(), 1u);
  json result = results[0];
  ExpectSpread(result["seconds"], 2.2, 3, 3.8);
  ASSERT_EQ(result["baselines"].size(), 1u);
  const json& baseline = result["baselines"][0];
  EXPECT_EQ(baseline["name"], "raw_mpi");
  EXPECT_EQ(baseline["ratio"], 1.5);
  ExpectSpread(baseline["seconds"], 1.2, 2, 4.4);
  ExpectSpread(baseline["turn_ratio"], 0.85, 2.25, 3.65);  // of 4 and 0.5
  result.erase("seconds");
  result.erase("baselines");
  const json others = {{"transport", "mpi"}, {"ranks", 8},           {"workers", 7},
                       {"rows", 4},          {"hidden", 2048},       {"exchange_type", "bf16"},
                       {"exchanges", 3},     {"request_bytes", 100}, {"reply_bytes", 90}};
  EXPECT_EQ(result, others);
}

TEST(ExchangeTable, HasALineForEachTest) {
  const std::string table = ExchangeTable({SomeResult()}, {.ranks = 8, .workers = 7, .hidden = 2048, .type = "bf16"});
  EXPECT_THAT(table, HasSubstr("7 worker(s), 8 rank(s), rows of 2048 bf16"));
  EXPECT_THAT(table, HasSubstr("1.50 [0.85 3.65]\n"));
}

}  // namespace
}  // namespace moe
