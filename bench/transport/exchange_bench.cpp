#include "bench/transport/exchange_bench.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <utility>

#include "bench/statistics.h"
#include "bench/transport/transport_path.h"
#include "core/clock.h"

namespace moe {
namespace {

// Far below what MPI can count, and far above any step.
constexpr std::size_t kMostBytes = std::size_t{1} << 30;

// What the workers are told before a turn. Both sides are one build on one kind of machine.
struct Turn {
  std::uint64_t path = 0;  // 0: the transport; b: its baseline b
  std::uint64_t exchanges = 0;
  std::uint64_t request_bytes = 0;
  std::uint64_t reply_bytes = 0;
};

// Of one path in one test; the first exchange is not counted: it finds the other path's data in the caches and workers
// on their way here.
Result<std::vector<double>> TakeTurn(TransportRouterPath& transport, RouterPath& path, const Turn& turn) {
  MOE_RETURN_IF_ERROR(transport.Tell(std::as_bytes(std::span(&turn, 1))));
  std::vector<double> seconds;
  for (std::uint64_t i = 0; i < turn.exchanges; ++i) {
    const TimePoint begin = Clock::now();
    MOE_RETURN_IF_ERROR(path.Exchange({.request = turn.request_bytes, .reply = turn.reply_bytes}));
    if (i > 0) seconds.push_back(Seconds(Clock::now() - begin));
  }
  std::ranges::sort(seconds);
  return seconds;
}

}  // namespace

Status CheckExchangeBench(const ExchangeBenchOptions& options) {
  if (options.rows.empty()) return InvalidArgument("--rows is empty, at least one number of rows is needed");
  const std::size_t widest = kMostBytes / BytesPerElement(options.type);
  if (options.hidden == 0 || options.hidden > widest)
    return InvalidArgument("--hidden is ", options.hidden, ", a row has 1 to ", widest, " elements");
  if (options.repetitions == 0) return InvalidArgument("--repetitions is 0, at least 1 is needed");
  if (options.exchanges == 0) return InvalidArgument("--exchanges is 0, at least 1 is needed");
  const std::size_t most = widest / options.hidden;
  for (const std::size_t rows : options.rows)
    if (rows == 0 || rows > most)
      return InvalidArgument("--rows ", rows, ": a message holds 1 to ", most, " rows of ", options.hidden, " ",
                             Name(options.type));
  return Status::Ok();
}

ExchangeBytes BytesOf(const ExchangeBenchOptions& options, std::size_t rows) {
  const DispatchShape shape{.rows = static_cast<std::uint32_t>(rows),
                            .pairs = static_cast<std::uint32_t>(rows),
                            .hidden = static_cast<std::uint32_t>(options.hidden),
                            .type = options.type};
  return {.request = DispatchBytes(shape), .reply = DispatchReplyBytes(shape)};
}

ExchangeBytes LargestBytes(const ExchangeBenchOptions& options) {
  return BytesOf(options, *std::ranges::max_element(options.rows));
}

TransportLimits LimitsOf(const ExchangeBenchOptions& options) {
  const ExchangeBytes largest = LargestBytes(options);
  return {.max_request_bytes = std::max(largest.request, sizeof(Turn)), .max_reply_bytes = largest.reply};
}

double ExchangeResult::ratio(std::size_t b) const {
  return Percentile(paths[0].exchanges, 50) / Percentile(paths[b].exchanges, 50);
}

std::vector<double> ExchangeResult::turn_ratios(std::size_t b) const {
  std::vector<double> ratios;
  for (std::size_t i = 0; i < paths[0].turn_medians.size(); ++i)
    ratios.push_back(paths[0].turn_medians[i] / paths[b].turn_medians[i]);
  std::ranges::sort(ratios);
  return ratios;
}

Result<std::vector<ExchangeResult>> RunExchangeBench(const ExchangeBenchOptions& options, Transport& transport,
                                                     std::span<const std::unique_ptr<RouterPath>> baselines,
                                                     const std::function<void(std::size_t rows)>& starting) {
  TransportRouterPath own(transport);
  std::vector<RouterPath*> paths = {&own};
  for (const std::unique_ptr<RouterPath>& baseline : baselines) paths.push_back(baseline.get());
  std::vector<ExchangeResult> results;
  for (const std::size_t rows : options.rows) {
    starting(rows);
    ExchangeResult& result = results.emplace_back(ExchangeResult{.rows = rows, .bytes = BytesOf(options, rows)});
    for (const RouterPath* path : paths) result.paths.push_back({.name = std::string(path->name())});
    for (std::size_t repetition = 0; repetition < options.repetitions; ++repetition) {
      for (std::size_t p = 0; p < paths.size(); ++p) {
        MOE_ASSIGN_OR_RETURN(const std::vector<double> seconds, TakeTurn(own, *paths[p],
                                                                         {.path = p,
                                                                          .exchanges = options.exchanges + 1,
                                                                          .request_bytes = result.bytes.request,
                                                                          .reply_bytes = result.bytes.reply}));
        PathSeconds& into = result.paths[p];
        into.turn_medians.push_back(Percentile(seconds, 50));
        into.exchanges.insert(into.exchanges.end(), seconds.begin(), seconds.end());
      }
    }
    for (PathSeconds& path : result.paths) std::ranges::sort(path.exchanges);
  }
  return results;
}

Status ServeExchangeBench(WorkerEndpoint& endpoint, std::span<const std::unique_ptr<WorkerPath>> baselines) {
  TransportWorkerPath own(endpoint);
  while (true) {
    Turn turn;
    const Status heard = own.Hear(std::as_writable_bytes(std::span(&turn, 1)));
    // The router has left, as it does in the end.
    if (heard.code() == StatusCode::kUnavailable) return Status::Ok();
    MOE_RETURN_IF_ERROR(heard);
    if (turn.path > baselines.size())
      return Internal("baseline ", turn.path, " is unknown here (", baselines.size(), " of them)");
    WorkerPath& path = turn.path == 0 ? own : *baselines[turn.path - 1];
    for (std::uint64_t i = 0; i < turn.exchanges; ++i)
      MOE_RETURN_IF_ERROR(path.Answer({.request = turn.request_bytes, .reply = turn.reply_bytes}));
  }
}

}  // namespace moe
