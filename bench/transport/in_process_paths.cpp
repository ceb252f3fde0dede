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
  Status Exchange(const ExchangeBytes& bytes) override {
    for (std::size_t w = 0; w < sent_.size(); ++w) {
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

}  // namespace

Result<std::vector<ExchangeResult>> RunExchangeBenchInProcess(const ExchangeBenchOptions& options, int workers,
                                                              const std::function<void(std::size_t rows)>& starting) {
  MOE_ASSIGN_OR_RETURN(InProcessEnds ends, MakeInProcess({.limits = LimitsOf(options), .num_workers = workers}));
  std::vector<std::jthread> threads;
  for (std::unique_ptr<WorkerEndpoint>& end : ends.workers) {
    threads.emplace_back([endpoint = std::move(end)]() mutable {
      std::vector<std::unique_ptr<WorkerPath>> baselines;
      baselines.push_back(std::make_unique<CopyWorker>());
      // The router reports the failure: this end closes.
      (void)ServeExchangeBench(*endpoint, baselines);
      endpoint.reset();
    });
  }
  std::vector<std::unique_ptr<RouterPath>> baselines;
  baselines.push_back(std::make_unique<CopyRouter>(workers, LargestBytes(options)));
  Result<std::vector<ExchangeResult>> results = RunExchangeBench(options, *ends.routers.front(), baselines, starting);
  ends.routers.clear();  // the workers end
  return results;
}

}  // namespace moe
