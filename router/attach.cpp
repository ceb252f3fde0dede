#include "router/attach.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "router/worker_fleet.h"

namespace moe {
namespace {

// Between two looks at an exchange: short at first, when the answer is about to come, long while a shard is loaded.
constexpr std::chrono::milliseconds kShortestPause{1};
constexpr std::chrono::milliseconds kLongestPause{20};
// A connection that takes longer is tried again. It is the one wait here that cannot be given up.
constexpr std::chrono::milliseconds kConnectTimeout{5'000};

/// Waits for one worker's reply with an ear for `stopping`.
Status Await(Exchange& exchange, Deadline deadline, const std::function<bool()>& stopping) {
  std::chrono::milliseconds pause = kShortestPause;
  while (true) {
    MOE_ASSIGN_OR_RETURN(const bool done, exchange.Poll());
    if (done) return Status::Ok();
    if (stopping && stopping()) return Cancelled("the router stops");
    if (Clock::now() >= deadline) return DeadlineExceeded("no answer before the deadline");
    std::this_thread::sleep_for(pause);
    pause = std::min(2 * pause, kLongestPause);
  }
}

Result<WorkerDescription> Attach(WorkerLinks& links, const WorkerAssignment& wanted, const AttachOptions& options) {
  const WorkerId worker(static_cast<int>(wanted.worker));
  const WorkerMask alone = OneWorker(links.num_workers(), worker);
  MOE_ASSIGN_OR_RETURN(const std::unique_ptr<Transport> transport,
                       links.Connect(alone, std::min(options.answer_timeout, kConnectTimeout)));
  const std::unique_ptr<Exchange> exchange = transport->MakeExchange();
  std::vector<std::size_t> bytes(alone.size(), 0);

  bytes[worker.index()] = WriteControl(exchange->request(worker), MessageKind::kDescribe);
  MOE_RETURN_IF_ERROR(exchange->Start(bytes));
  MOE_RETURN_IF_ERROR(Await(*exchange, After(options.answer_timeout), options.stopping));
  MOE_ASSIGN_OR_RETURN(const WorkerDescription found, ParseDescription(exchange->reply(worker)));
  MOE_RETURN_IF_ERROR(CheckWorker(found, {.fingerprint = wanted.fingerprint, .weight_type = wanted.weight_type}));

  MOE_ASSIGN_OR_RETURN(bytes[worker.index()], WriteAssignment(exchange->request(worker), wanted));
  MOE_RETURN_IF_ERROR(exchange->Start(bytes));
  MOE_RETURN_IF_ERROR(Await(*exchange, After(options.load_timeout), options.stopping));
  return ParseDescription(exchange->reply(worker));
}

}  // namespace

Result<WorkerDescription> AttachWorker(WorkerLinks& links, const WorkerAssignment& wanted,
                                       const AttachOptions& options) {
  Result<WorkerDescription> attached = Attach(links, wanted, options);
  if (attached.ok()) return attached;
  // A transport has said who it was about.
  const std::string peer = links.Peer(WorkerId(static_cast<int>(wanted.worker)));
  const bool named = attached.status().message().find(peer) != std::string::npos;
  return named ? attached.status() : attached.status().WithContext(peer);
}

Status ConfirmWorkers(Transport& transport, const WorkerMask& attached, std::span<const WorkerAssignment> wanted,
                      Deadline deadline, std::vector<LostWorker>& lost) {
  const std::unique_ptr<Exchange> exchange = transport.MakeExchange();
  std::vector<std::size_t> bytes(attached.size(), 0);
  for (std::size_t w = 0; w < attached.size(); ++w) {
    if (attached[w] == 0) continue;
    WorkerAssignment expected = wanted[w];
    expected.load = false;
    MOE_ASSIGN_OR_RETURN(bytes[w], WriteAssignment(exchange->request(WorkerId(static_cast<int>(w))), expected));
  }
  Status status = exchange->Start(bytes);
  if (status.ok()) status = exchange->Wait(deadline);
  for (std::size_t w = 0; w < attached.size(); ++w) {
    const WorkerId worker(static_cast<int>(w));
    if (bytes[w] == 0) continue;
    if (status.ok() || exchange->completed_at(worker) != TimePoint()) {
      const Result<WorkerDescription> answer = ParseDescription(exchange->reply(worker));
      if (!answer.ok()) lost.push_back({worker, answer.status()});
    } else if (status.code() == StatusCode::kDeadlineExceeded) {
      lost.push_back({worker, status});
    }
  }
  return status;
}

}  // namespace moe
