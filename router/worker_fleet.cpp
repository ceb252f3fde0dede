#include "router/worker_fleet.h"

namespace moe {
namespace {

// Sends `kind` to every worker and waits for every reply.
Status Ask(Transport& transport, Exchange& exchange, MessageKind kind, Deadline deadline) {
  std::vector<std::size_t> bytes;
  for (int w = 0; w < transport.num_workers(); ++w) bytes.push_back(WriteControl(exchange.request(WorkerId(w)), kind));
  MOE_RETURN_IF_ERROR(exchange.Start(bytes));
  return exchange.Wait(deadline);
}

}  // namespace

Status CheckWorker(const WorkerDescription& worker, const FleetExpectation& expected) {
  if (worker.protocol != kDispatchProtocol)
    return InvalidArgument("it speaks protocol version ", worker.protocol, ", the router ", kDispatchProtocol);
  if (worker.fingerprint != expected.fingerprint)
    return InvalidArgument("it serves the checkpoint ", worker.fingerprint, ", the router ", expected.fingerprint);
  if (worker.weight_type != expected.weight_type)
    return InvalidArgument("its weight type is ", worker.weight_type, ", the router's ", expected.weight_type);
  return Status::Ok();
}

Result<std::vector<WorkerDescription>> DescribeWorkers(Transport& transport, const FleetExpectation& expected,
                                                       Deadline deadline) {
  const std::unique_ptr<Exchange> exchange = transport.MakeExchange();
  MOE_RETURN_IF_ERROR(Ask(transport, *exchange, MessageKind::kDescribe, deadline));
  std::vector<WorkerDescription> workers;
  for (int w = 0; w < transport.num_workers(); ++w) {
    const WorkerId worker(w);
    Result<WorkerDescription> description = ParseDescription(exchange->reply(worker));
    const Status status = description.ok() ? CheckWorker(*description, expected) : description.status();
    if (!status.ok()) return status.WithContext(Cat("rank ", transport.rank(worker)));
    workers.push_back(*std::move(description));
  }
  return workers;
}

WorkerMask WorkersOn(std::string_view host, std::span<const WorkerDescription> workers) {
  WorkerMask mask = NoWorkers(static_cast<int>(workers.size()));
  if (host.empty()) return mask;
  for (std::size_t w = 0; w < workers.size(); ++w) mask[w] = workers[w].host == host ? 1 : 0;
  return mask;
}

Status ShutdownWorkers(Transport& transport, Deadline deadline) {
  const std::unique_ptr<Exchange> exchange = transport.MakeExchange();
  MOE_RETURN_IF_ERROR(Ask(transport, *exchange, MessageKind::kShutdown, deadline));
  for (int w = 0; w < transport.num_workers(); ++w)
    MOE_RETURN_IF_ERROR(ParseControlReply(exchange->reply(WorkerId(w))));
  return Status::Ok();
}

}  // namespace moe
