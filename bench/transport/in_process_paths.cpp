#include "bench/transport/in_process_paths.h"

#include <algorithm>
#include <cstring>
#include <thread>
#include <utility>

#include "core/aligned_buffer.h"
#include "transport/in_process.h"

namespace moe {
namespace {

// Every request and every reply copied once, here: what moving the bytes through memory costs at least. The in-process
// transport copies nothing and wakes threads.
class CopyRouter final : public RouterPath {
 public:
  CopyRouter(int workers, const ExchangeBytes& largest) {
    for (int w = 0; w < workers; ++w) {
      for (std::vector<AlignedBuffer<std::byte>>* side : {&sent_, &received_})
        std::ranges::fill(side->emplace_back(std::max(largest.request, largest.reply)).span(), std::byte{1});
    }
  }

  std::string_view name() const override { return "memcpy"; }
  Status Exchange(const ExchangeBytes& bytes, int workers) override {
    for (std::size_t w = 0; w < static_cast<std::size_t>(workers); ++w) {
      std::memcpy(received_[w].data(), sent_[w].data(), bytes.request);
      std::memcpy(sent_[w].data(), received_[w].data(), bytes.reply);
    }
    return Status::Ok();
  }

 private:
  std::vector<AlignedBuffer<std::byte>> sent_;
  std::vector<AlignedBuffer<std::byte>> received_;
};

class CopyWorker final : public WorkerPath {
 public:
  Status Answer(const ExchangeBytes&) override { return Status::Ok(); }
};

class InProcessLocalEnds final : public LocalEnds {
 public:
  InProcessLocalEnds(InProcessEnds ends, const ExchangeBytes& largest) : ends_(std::move(ends)), largest_(largest) {}

  Result<WorkerSide> OpenWorker(WorkerId w) override {
    WorkerSide side{.endpoint = ends_.workers[w.index()].get()};
    side.baselines.push_back(std::make_unique<CopyWorker>());
    return side;
  }

  Result<RouterSide> OpenRouter() override {
    RouterSide side{.transport = ends_.routers.front().get()};
    side.baselines.push_back(std::make_unique<CopyRouter>(static_cast<int>(ends_.workers.size()), largest_));
    return side;
  }

  void CloseWorker(WorkerId w) override { ends_.workers[w.index()].reset(); }
  void Close() override { ends_.routers.clear(); }

 private:
  InProcessEnds ends_;
  const ExchangeBytes largest_;
};

// A worker's thread: its sides, one after the other as the router makes them, then what the router tells it.
Status Serve(WorkerId worker, const std::vector<std::unique_ptr<LocalEnds>>& ends) {
  std::vector<WorkerSide> sides;
  for (const std::unique_ptr<LocalEnds>& of_transport : ends) {
    MOE_ASSIGN_OR_RETURN(WorkerSide side, of_transport->OpenWorker(worker));
    MOE_RETURN_IF_ERROR(Meet(*sides.emplace_back(std::move(side)).endpoint));
  }
  return ServeExchangeBench(sides);
}

Result<std::vector<ExchangeResult>> Route(const ExchangeBenchOptions& options,
                                          const std::vector<std::unique_ptr<LocalEnds>>& ends,
                                          const std::function<void(const ExchangeTest&)>& starting) {
  std::vector<RouterSide> sides;
  for (const std::unique_ptr<LocalEnds>& of_transport : ends) {
    MOE_ASSIGN_OR_RETURN(RouterSide side, of_transport->OpenRouter());
    MOE_RETURN_IF_ERROR(Meet(*sides.emplace_back(std::move(side)).transport));
  }
  return RunExchangeBench(options, sides, starting);
}

}  // namespace

Result<std::unique_ptr<LocalEnds>> MakeInProcessEnds(const ExchangeBenchOptions& options, int workers) {
  MOE_ASSIGN_OR_RETURN(InProcessEnds ends, MakeInProcess({.limits = LimitsOf(options), .num_workers = workers}));
  return std::unique_ptr<LocalEnds>(std::make_unique<InProcessLocalEnds>(std::move(ends), LargestBytes(options)));
}

Result<std::vector<ExchangeResult>> RunExchangeBenchInProcess(
    const ExchangeBenchOptions& options, int workers, const std::vector<std::unique_ptr<LocalEnds>>& ends,
    const std::function<void(const ExchangeTest&)>& starting) {
  std::vector<std::jthread> threads;
  for (int w = 0; w < workers; ++w) {
    threads.emplace_back([worker = WorkerId(w), &ends] {
      // The router reports the failure: this worker's ends close.
      (void)Serve(worker, ends);
      for (const std::unique_ptr<LocalEnds>& of_transport : ends) of_transport->CloseWorker(worker);
    });
  }
  Result<std::vector<ExchangeResult>> results = Route(options, ends, starting);
  for (const std::unique_ptr<LocalEnds>& of_transport : ends) of_transport->Close();
  return results;
}

}  // namespace moe
