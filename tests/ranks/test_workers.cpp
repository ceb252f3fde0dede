#include "tests/ranks/test_workers.h"

#include <chrono>
#include <utility>

#include "core/check.h"
#include "core/clock.h"
#include "model/dispatch_format.h"
#include "transport/in_process.h"

namespace moe {
namespace {

RankSetup Prepare(const RankOptions& options) {
  Result<RankSetup> setup = PrepareFleetWorker(options);
  MOE_CHECK(setup.ok(), setup.status().message());
  return *std::move(setup);
}

}  // namespace

void Switchboard::Plug(std::unique_ptr<WorkerEndpoint> end) {
  const std::lock_guard lock(mutex_);
  if (dead_) return;
  ends_.push_back(std::move(end));
}

WorkerEndpoint& Switchboard::end(int router) const {
  const std::lock_guard lock(mutex_);
  return *ends_[static_cast<std::size_t>(router)];
}

bool Switchboard::attached(int router) const { return end(router).attached(0); }

bool Switchboard::Admit(const IncomingRequest& request) {
  const Result<MessageKind> kind = ParseKind(request.payload);
  if (!kind.ok() || *kind != MessageKind::kDispatch) return true;
  const std::uint64_t number = dispatches_++;
  if (number >= silent_at_) silent_ = true;
  if (number >= die_at_) dead_ = true;
  return !dead_ && !silent_;
}

Result<std::optional<IncomingRequest>> Switchboard::Receive(Deadline deadline) {
  while (true) {
    if (dead_) {
      const std::lock_guard lock(mutex_);
      ends_.clear();  // so that their routers notice
      return Unavailable("this worker is dead");
    }
    std::size_t count = 0;
    {
      const std::lock_guard lock(mutex_);
      count = silent_ ? 0 : ends_.size();
    }
    for (std::size_t i = 0; i < count; ++i) {
      const int router = static_cast<int>(next_++ % count);
      Result<std::optional<IncomingRequest>> received = end(router).Receive(TimePoint());
      if (!received.ok() || !received->has_value()) continue;  // that router has gone, or has nothing to say
      if (!Admit(**received)) break;
      (*received)->router = router;
      return received;
    }
    if (Clock::now() >= deadline) return std::optional<IncomingRequest>();
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}

std::span<std::byte> Switchboard::reply_buffer(const IncomingRequest& request) {
  return end(request.router).reply_buffer(request);
}

Status Switchboard::Reply(const IncomingRequest& request, std::size_t bytes) {
  return end(request.router).Reply(request, bytes);
}

TestWorker::TestWorker(const RankOptions& options)
    : setup_(Prepare(options)),
      worker_(setup_, pool_, DescribeRank(setup_), {}),
      board_(setup_.transport_limits),
      thread_([this] { MOE_CHECK(worker_.Run(board_).ok()); }) {}

TestWorker::~TestWorker() {
  board_.Die();
  if (thread_.joinable()) thread_.join();
}

void TestWorker::Terminate() {
  worker_.Stop();
  thread_.join();
}

TestWorkers::TestWorkers(int workers, RankOptions options)
    : options_(std::move(options)), workers_(static_cast<std::size_t>(workers)) {
  for (int w = 0; w < workers; ++w) Start(w);
}

void TestWorkers::Start(int w, const RankOptions& options) {
  Kill(w);
  auto worker = std::make_unique<TestWorker>(options);
  const std::lock_guard lock(mutex_);
  workers_[static_cast<std::size_t>(w)] = std::move(worker);
}

void TestWorkers::Kill(int w) {
  std::unique_ptr<TestWorker> killed;
  const std::lock_guard lock(mutex_);
  killed = std::move(workers_[static_cast<std::size_t>(w)]);
}

class TestLinks final : public WorkerLinks {
 public:
  TestLinks(TestWorkers& workers, const TransportLimits& limits)
      : workers_(workers), limits_(limits), connected_(workers.workers_.size()), failures_(workers.workers_.size()) {}

  int num_workers() const override { return workers_.size(); }
  std::string Peer(WorkerId worker) const override { return Cat("rank ", worker.value() + 1, " (test)"); }

  Result<std::unique_ptr<Transport>> Connect(const WorkerMask& attached, std::chrono::milliseconds) override {
    Result<InProcessEnds> ends = MakeInProcess({.limits = limits_, .num_workers = num_workers()});
    if (!ends.ok()) return ends.status();
    const std::lock_guard lock(workers_.mutex_);
    Status status;
    for (std::size_t w = 0; w < attached.size(); ++w) {
      connected_[w] = nullptr;
      failures_[w] = Status::Ok();
      if (attached[w] == 0) continue;
      TestWorker* const worker = workers_.workers_[w].get();
      if (worker == nullptr || worker->board().dead()) {
        failures_[w] = Unavailable(Peer(WorkerId(static_cast<int>(w))), " cannot be reached");
        status = failures_[w];
        continue;
      }
      connected_[w] = worker;
      worker->board().Plug(std::move(ends->workers[w]));
    }
    if (!status.ok()) return status;
    return std::move(ends->routers.front());
  }

  Status failure(WorkerId worker) const override {
    const std::size_t w = worker.index();
    if (!failures_[w].ok() || connected_[w] == nullptr || connected(worker)) return failures_[w];
    return Unavailable(Peer(worker), " has closed its end");
  }
  bool connected(WorkerId worker) const override {
    const std::size_t w = worker.index();
    const std::lock_guard lock(workers_.mutex_);
    TestWorker* const now = workers_.workers_[w].get();
    return now != nullptr && now == connected_[w] && !now->board().dead();
  }

 private:
  TestWorkers& workers_;
  const TransportLimits limits_;
  std::vector<const TestWorker*> connected_;  // by worker
  std::vector<Status> failures_;
};

std::unique_ptr<WorkerLinks> TestWorkers::Links(const TransportLimits& limits) {
  return std::make_unique<TestLinks>(*this, limits);
}

}  // namespace moe
