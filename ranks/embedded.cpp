#include "ranks/embedded.h"

#include <utility>

#include "transport/in_process.h"

namespace moe {

Result<std::unique_ptr<EmbeddedWorker>> EmbeddedWorker::Start(const TransportLimits& limits,
                                                              std::function<void(WorkerEndpoint&)> serve) {
  MOE_ASSIGN_OR_RETURN(InProcessEnds ends, MakeInProcess({.limits = limits, .embedded = true}));
  std::unique_ptr<EmbeddedWorker> worker(new EmbeddedWorker());
  worker->transport_ = std::move(ends.routers.front());
  worker->endpoint_ = std::move(ends.workers.front());
  worker->thread_ = std::thread([&endpoint = *worker->endpoint_, serve = std::move(serve)] { serve(endpoint); });
  return worker;
}

EmbeddedWorker::~EmbeddedWorker() {
  transport_.reset();
  if (thread_.joinable()) thread_.join();
}

}  // namespace moe
