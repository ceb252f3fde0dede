#include "bench/load.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <mutex>
#include <utility>
#include <vector>

#include "bench/progress_bar.h"
#include "core/clock.h"

namespace moe {
namespace {

constexpr std::chrono::milliseconds kLook{50};  // how often the sender looks for an interrupt
constexpr std::uint32_t kWarmupConcurrency = 8;

Status Check(const LoadOptions& options) {
  if (options.num_requests == 0) return InvalidArgument("--num-requests is 0, at least 1 was expected.");
  if (options.workload.sequences_per_request == 0) {
    return InvalidArgument("--sequences-per-request is 0, at least 1 was expected.");
  }
  if (std::isnan(options.request_rate) || options.request_rate <= 0) {
    return InvalidArgument("--request-rate is ", options.request_rate, ", a rate above 0 or inf was expected.");
  }
  if (options.concurrency > 0 && (options.max_concurrency > 0 || !std::isinf(options.request_rate))) {
    return InvalidArgument("--concurrency ", options.concurrency,
                           " (closed loop) excludes --request-rate and --max-concurrency (open loop).");
  }
  return Status::Ok();
}

struct Phase {
  Workload::Phase phase = Workload::Phase::kMeasured;
  std::uint32_t calls = 0;
  std::uint32_t concurrency = 0;             // calls open at a time; 0: no limit
  const std::vector<double>* due = nullptr;  // seconds after the start; null: each when there is room for it
};

// Sends the calls of one phase from the calling thread and collects their records.
class PhaseRun {
 public:
  PhaseRun(GenerateClient& client, const Workload& workload, const Phase& phase, const std::atomic<bool>* interrupted,
           ProgressBar& progress)
      : client_(client), workload_(workload), phase_(phase), interrupted_(interrupted), progress_(progress) {}

  void Run() {
    start_ = Clock::now();
    for (std::uint32_t i = 0; i < phase_.calls; ++i) {
      // Made before it is due, so that making it is no part of a latency.
      const PlannedCall call = workload_.Make(phase_.phase, i);
      const TimePoint due =
          phase_.due == nullptr
              ? start_
              : start_ + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>((*phase_.due)[i]));
      if (!WaitToSend(due)) break;
      // In a closed loop a call is due when a place is free.
      client_.Start(call, {.index = i, .scheduled = phase_.due == nullptr ? Clock::now() : due},
                    [this](CallRecord record) { Ended(std::move(record)); });
    }
    if (Interrupted()) client_.CancelAll();
    Drain();
    std::sort(records_.begin(), records_.end(), [](const auto& a, const auto& b) { return a.index < b.index; });
  }

  TimePoint start() const { return start_; }
  const std::vector<CallRecord>& records() const { return records_; }
  std::uint32_t most_open() const { return most_open_; }
  bool cut_short() const { return Interrupted() && records_.size() < phase_.calls; }

 private:
  bool Interrupted() const { return interrupted_ != nullptr && interrupted_->load(); }

  // Until the call is due and there is a place for it, which it then holds; false when interrupted before.
  bool WaitToSend(TimePoint due) {
    std::unique_lock lock(mutex_);
    for (;;) {
      if (Interrupted()) return false;
      const bool room = phase_.concurrency == 0 || open_ < phase_.concurrency;
      const TimePoint now = Clock::now();
      if (room && now >= due) break;
      progress_.Show(records_.size());
      const TimePoint look = now + kLook;
      changed_.wait_until(lock, now < due ? std::min(due, look) : look);
    }
    most_open_ = std::max(most_open_, ++open_);
    return true;
  }

  void Ended(CallRecord record) {
    const std::lock_guard lock(mutex_);
    records_.push_back(std::move(record));
    --open_;
    changed_.notify_all();  // under the lock: Run may return, and this object go, once it is released
  }

  void Drain() {
    std::unique_lock lock(mutex_);
    bool cancelled = Interrupted();
    while (open_ > 0) {
      progress_.Show(records_.size());
      changed_.wait_for(lock, kLook);
      if (cancelled || !Interrupted()) continue;
      cancelled = true;
      lock.unlock();
      client_.CancelAll();
      lock.lock();
    }
    progress_.Show(records_.size());
  }

  GenerateClient& client_;
  const Workload& workload_;
  const Phase phase_;
  const std::atomic<bool>* const interrupted_;
  ProgressBar& progress_;
  TimePoint start_{};

  std::mutex mutex_;
  std::condition_variable changed_;
  std::uint32_t open_ = 0;
  std::uint32_t most_open_ = 0;
  std::vector<CallRecord> records_;
};

Result<WarmupFigures> WarmUp(GenerateClient& client, const Workload& workload, const LoadOptions& options) {
  if (options.warmup == 0) return WarmupFigures{};
  std::uint32_t concurrency = kWarmupConcurrency;
  for (const std::uint32_t limit : {options.concurrency, options.max_concurrency}) {
    if (limit > 0) concurrency = std::min(concurrency, limit);
  }
  ProgressBar progress(options.progress, "warm-up", options.warmup);
  PhaseRun run(client, workload,
               {.phase = Workload::Phase::kWarmup, .calls = options.warmup, .concurrency = concurrency},
               options.client.interrupted, progress);
  run.Run();
  if (run.cut_short()) return Cancelled("interrupted during the warm-up.");
  const LoadFigures figures = SumUp(run.records(), run.start(), {});
  if (figures.interrupted > 0) return Cancelled("interrupted during the warm-up.");
  if (figures.failed > 0) {
    return Unavailable("warm-up: ", figures.failed, " of ", figures.failed + figures.completed,
                       " requests did not complete: ", DescribeFailures(figures.failures), ".");
  }
  return WarmupFigures{figures.completed, figures.total_input_tokens, figures.total_output_tokens};
}

}  // namespace

Result<LoadResult> RunLoad(const LoadOptions& options) {
  MOE_RETURN_IF_ERROR(Check(options));
  MOE_ASSIGN_OR_RETURN(const std::unique_ptr<GenerateClient> client, GenerateClient::Connect(options.client));
  MOE_ASSIGN_OR_RETURN(const Workload workload, Workload::Create(options.workload, client->model()));
  LoadResult result;
  result.model = client->model();
  MOE_ASSIGN_OR_RETURN(result.warmup, WarmUp(*client, workload, options));

  const bool open_loop = options.concurrency == 0;
  result.concurrency_limit = open_loop ? options.max_concurrency : options.concurrency;
  std::vector<double> due;
  if (open_loop) {
    due = ArrivalOffsets({.kind = options.arrival,
                          .rate = options.request_rate,
                          .count = options.num_requests,
                          .seed = options.workload.seed});
  }
  ProgressBar progress(options.progress, "load", options.num_requests);
  PhaseRun run(
      *client, workload,
      {.calls = options.num_requests, .concurrency = result.concurrency_limit, .due = open_loop ? &due : nullptr},
      options.client.interrupted, progress);
  run.Run();
  result.figures = SumUp(run.records(), run.start(), options.slo);
  const std::uint64_t sequences = options.workload.sequences_per_request;
  result.figures.not_sent = (options.num_requests - run.records().size()) * sequences;
  result.max_concurrent_requests = run.most_open() * sequences;
  result.interrupted = result.figures.interrupted + result.figures.not_sent > 0;
  return result;
}

}  // namespace moe
