#include "bench/transport/exchange_bench.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>

#include "bench/statistics.h"
#include "bench/transport/transport_path.h"
#include "core/clock.h"

namespace moe {
namespace {

// Far below what MPI can count, and far above any step.
constexpr std::size_t kMostBytes = std::size_t{1} << 30;

// Of a turn whose sizes are given in bytes: a turn of the largest messages would take seconds otherwise, and the
// machine would be another one before the next path's turn comes.
constexpr std::size_t kTurnBytes = std::size_t{64} << 20;

// What the workers are told before a turn. Both sides are one build on one kind of machine.
struct Turn {
  static constexpr std::uint64_t kEnd = std::numeric_limits<std::uint64_t>::max();

  std::uint64_t path = 0;       // counted over all sides: a transport, its baselines, the next transport
  std::uint64_t exchanges = 0;  // 0: this worker has no part in it
  std::uint64_t request_bytes = 0;
  std::uint64_t reply_bytes = 0;
};

std::span<const std::byte> BytesOfTurn(const Turn& turn) { return std::as_bytes(std::span(&turn, 1)); }

// Of one path in one test; the first exchange is not counted: it finds the other path's data in the caches and workers
// on their way here.
Result<std::vector<double>> TakeTurn(TransportRouterPath& control, RouterPath& path, const Turn& turn, int workers) {
  MOE_RETURN_IF_ERROR(control.Tell(BytesOfTurn(turn), workers, BytesOfTurn(Turn{})));
  const ExchangeBytes bytes{.request = turn.request_bytes, .reply = turn.reply_bytes};
  std::vector<double> seconds;
  for (std::uint64_t i = 0; i < turn.exchanges; ++i) {
    const TimePoint begin = Clock::now();
    MOE_RETURN_IF_ERROR(path.Exchange(bytes, workers));
    if (i > 0) seconds.push_back(Seconds(Clock::now() - begin));
  }
  std::ranges::sort(seconds);
  return seconds;
}

Status CheckSizes(const ExchangeBenchOptions& options) {
  if (!options.bytes.empty()) {
    for (const std::size_t bytes : options.bytes)
      if (bytes == 0 || bytes > kMostBytes)
        return InvalidArgument("--bytes ", bytes, ": a message holds 1 to ", kMostBytes, " bytes");
    return Status::Ok();
  }
  if (options.rows.empty()) return InvalidArgument("--rows is empty, at least one number of rows is needed");
  const std::size_t widest = kMostBytes / BytesPerElement(options.type);
  if (options.hidden == 0 || options.hidden > widest)
    return InvalidArgument("--hidden is ", options.hidden, ", a row has 1 to ", widest, " elements");
  const std::size_t most = widest / options.hidden;
  for (const std::size_t rows : options.rows)
    if (rows == 0 || rows > most)
      return InvalidArgument("--rows ", rows, ": a message holds 1 to ", most, " rows of ", options.hidden, " ",
                             Name(options.type));
  return Status::Ok();
}

}  // namespace

Status CheckExchangeBench(const ExchangeBenchOptions& options, int workers) {
  MOE_RETURN_IF_ERROR(CheckSizes(options));
  for (const int count : options.workers)
    if (count < 1 || count > workers) return InvalidArgument("--workers ", count, ": 1 to ", workers, " can take part");
  if (options.repetitions == 0) return InvalidArgument("--repetitions is 0, at least 1 is needed");
  if (options.exchanges == 0) return InvalidArgument("--exchanges is 0, at least 1 is needed");
  return Status::Ok();
}

std::vector<ExchangeTest> TestsOf(const ExchangeBenchOptions& options, int workers) {
  const std::vector<int> counts = options.workers.empty() ? std::vector<int>{workers} : options.workers;
  std::vector<ExchangeTest> tests;
  const auto add_bytes = [&](int count, std::size_t bytes) {
    const std::size_t moved = 2 * bytes * static_cast<std::size_t>(count);
    tests.push_back({.workers = count,
                     .bytes = {.request = bytes, .reply = bytes},
                     .exchanges = std::clamp<std::size_t>(kTurnBytes / moved, 1, options.exchanges)});
  };
  if (!options.bytes.empty() && std::ranges::find(counts, 1) == counts.end())
    add_bytes(1, std::ranges::min(options.bytes));
  for (const int count : counts) {
    for (const std::size_t bytes : options.bytes) add_bytes(count, bytes);
    if (!options.bytes.empty()) continue;
    for (const std::size_t rows : options.rows)
      tests.push_back(
          {.workers = count, .rows = rows, .bytes = BytesOf(options, rows), .exchanges = options.exchanges});
  }
  const auto request = [](const ExchangeTest& test) { return test.bytes.request; };
  const std::size_t smallest = request(*std::ranges::min_element(tests, {}, request));
  for (ExchangeTest& test : tests) test.latency = test.workers == 1 && test.bytes.request == smallest;
  return tests;
}

ExchangeBytes BytesOf(const ExchangeBenchOptions& options, std::size_t rows) {
  const DispatchShape shape{.rows = static_cast<std::uint32_t>(rows),
                            .pairs = static_cast<std::uint32_t>(rows),
                            .hidden = static_cast<std::uint32_t>(options.hidden),
                            .type = options.type};
  return {.request = DispatchBytes(shape), .reply = DispatchReplyBytes(shape)};
}

ExchangeBytes LargestBytes(const ExchangeBenchOptions& options) {
  if (options.bytes.empty()) return BytesOf(options, std::ranges::max(options.rows));
  const std::size_t largest = std::ranges::max(options.bytes);
  return {.request = largest, .reply = largest};
}

TransportLimits LimitsOf(const ExchangeBenchOptions& options) {
  const ExchangeBytes largest = LargestBytes(options);
  return {.max_request_bytes = std::max(largest.request, sizeof(Turn)), .max_reply_bytes = largest.reply};
}

Status Meet(Transport& transport) {
  TransportRouterPath path(transport);
  const Turn nothing;
  return path.Tell(BytesOfTurn(nothing), path.num_workers(), {});
}

Status Meet(WorkerEndpoint& endpoint) {
  Turn nothing;
  return TransportWorkerPath(endpoint).Hear(std::as_writable_bytes(std::span(&nothing, 1)));
}

namespace {

// One test on all paths of all sides.
class Contest {
 public:
  explicit Contest(std::span<const RouterSide> sides) {
    for (const RouterSide& side : sides) {
      own_.push_back(std::make_unique<TransportRouterPath>(*side.transport));
      first_paths_.push_back(paths_.size());
      paths_.push_back(own_.back().get());
      for (const std::unique_ptr<RouterPath>& baseline : side.baselines) paths_.push_back(baseline.get());
    }
    first_paths_.push_back(paths_.size());
  }

  /// A result for each side.
  Result<std::vector<ExchangeResult>> Run(const ExchangeTest& test, std::size_t repetitions) {
    std::vector<PathSeconds> measured;
    for (const RouterPath* path : paths_) measured.push_back({.name = std::string(path->name())});
    for (std::size_t repetition = 0; repetition < repetitions; ++repetition) {
      for (std::size_t p = 0; p < paths_.size(); ++p) {
        MOE_ASSIGN_OR_RETURN(const std::vector<double> seconds, TakeTurn(control(), *paths_[p],
                                                                         {.path = p,
                                                                          .exchanges = test.exchanges + 1,
                                                                          .request_bytes = test.bytes.request,
                                                                          .reply_bytes = test.bytes.reply},
                                                                         test.workers));
        measured[p].turn_medians.push_back(Percentile(seconds, 50));
        measured[p].exchanges.insert(measured[p].exchanges.end(), seconds.begin(), seconds.end());
      }
    }
    for (PathSeconds& path : measured) std::ranges::sort(path.exchanges);
    std::vector<ExchangeResult> results;
    for (std::size_t side = 0; side + 1 < first_paths_.size(); ++side) {
      const auto begin = measured.begin() + static_cast<std::ptrdiff_t>(first_paths_[side]);
      const auto end = measured.begin() + static_cast<std::ptrdiff_t>(first_paths_[side + 1]);
      results.push_back({.test = test, .paths = std::vector<PathSeconds>(begin, end)});
    }
    return results;
  }

  Status End() {
    const Turn end{.path = Turn::kEnd};
    return control().Tell(BytesOfTurn(end), control().num_workers(), {});
  }

 private:
  TransportRouterPath& control() { return *own_.front(); }

  std::vector<std::unique_ptr<TransportRouterPath>> own_;  // by side
  std::vector<RouterPath*> paths_;
  std::vector<std::size_t> first_paths_;  // by side, and behind the last one
};

}  // namespace

Result<std::vector<ExchangeResult>> RunExchangeBench(const ExchangeBenchOptions& options,
                                                     std::span<const RouterSide> sides,
                                                     const std::function<void(const ExchangeTest&)>& starting) {
  Contest contest(sides);
  std::vector<std::vector<ExchangeResult>> by_side(sides.size());
  for (const ExchangeTest& test : TestsOf(options, sides.front().transport->num_workers())) {
    starting(test);
    MOE_ASSIGN_OR_RETURN(std::vector<ExchangeResult> of_test, contest.Run(test, options.repetitions));
    for (std::size_t side = 0; side < sides.size(); ++side) by_side[side].push_back(std::move(of_test[side]));
  }
  MOE_RETURN_IF_ERROR(contest.End());
  std::vector<ExchangeResult> results;
  for (std::vector<ExchangeResult>& of_side : by_side) std::ranges::move(of_side, std::back_inserter(results));
  return results;
}

Status ServeExchangeBench(std::span<const WorkerSide> sides) {
  std::vector<std::unique_ptr<TransportWorkerPath>> own;
  std::vector<WorkerPath*> paths;
  for (const WorkerSide& side : sides) {
    paths.push_back(own.emplace_back(std::make_unique<TransportWorkerPath>(*side.endpoint)).get());
    for (const std::unique_ptr<WorkerPath>& baseline : side.baselines) paths.push_back(baseline.get());
  }
  while (true) {
    Turn turn;
    const Status heard = own.front()->Hear(std::as_writable_bytes(std::span(&turn, 1)));
    // The router has left, as it does when something failed.
    if (heard.code() == StatusCode::kUnavailable) return Status::Ok();
    MOE_RETURN_IF_ERROR(heard);
    if (turn.path == Turn::kEnd) return Status::Ok();
    if (turn.path >= paths.size()) return Internal("path ", turn.path, " is unknown here (", paths.size(), " of them)");
    for (std::uint64_t i = 0; i < turn.exchanges; ++i)
      MOE_RETURN_IF_ERROR(paths[turn.path]->Answer({.request = turn.request_bytes, .reply = turn.reply_bytes}));
  }
}

}  // namespace moe
