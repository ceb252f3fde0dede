#include "bench/transport/transport_path.h"

#include <algorithm>
#include <chrono>
#include <optional>

namespace moe {
namespace {

// Only what hangs meets it.
constexpr std::chrono::seconds kTimeout{60};

}  // namespace

TransportRouterPath::TransportRouterPath(Transport& transport)
    : transport_(transport),
      exchange_(transport.MakeExchange()),
      request_bytes_(static_cast<std::size_t>(transport.num_workers())) {
  for (int w = 0; w < transport.num_workers(); ++w) std::ranges::fill(exchange_->request(WorkerId(w)), std::byte{1});
}

Status TransportRouterPath::Exchange(const ExchangeBytes& bytes, int workers) { return Run(bytes, workers); }

Status TransportRouterPath::Tell(std::span<const std::byte> message, int workers, std::span<const std::byte> others) {
  for (int w = 0; w < num_workers(); ++w)
    std::ranges::copy(w < workers ? message : others, exchange_->request(WorkerId(w)).begin());
  return Run({.request = message.size(), .reply = 0}, num_workers());
}

Status TransportRouterPath::Run(const ExchangeBytes& bytes, int workers) {
  for (int w = 0; w < num_workers(); ++w) request_bytes_[static_cast<std::size_t>(w)] = w < workers ? bytes.request : 0;
  MOE_RETURN_IF_ERROR(exchange_->Start(request_bytes_));
  MOE_RETURN_IF_ERROR(exchange_->Wait(After(kTimeout)));
  for (int w = 0; w < workers; ++w) {
    if (const std::size_t arrived = exchange_->reply(WorkerId(w)).size(); arrived != bytes.reply)
      return Internal("rank ", transport_.rank(WorkerId(w)), " replied with ", arrived, " bytes instead of ",
                      bytes.reply);
  }
  return Status::Ok();
}

Result<IncomingRequest> TransportWorkerPath::Receive(std::size_t bytes) {
  MOE_ASSIGN_OR_RETURN(const std::optional<IncomingRequest> request, endpoint_.Receive(kNoDeadline));
  MOE_CHECK(request.has_value(), "Receive came back before its deadline");
  if (request->payload.size() != bytes)
    return Internal("a request of ", request->payload.size(), " bytes arrived instead of ", bytes);
  return *request;
}

Status TransportWorkerPath::Answer(const ExchangeBytes& bytes) {
  MOE_ASSIGN_OR_RETURN(const IncomingRequest request, Receive(bytes.request));
  return endpoint_.Reply(request, bytes.reply);
}

Status TransportWorkerPath::Hear(std::span<std::byte> message) {
  MOE_ASSIGN_OR_RETURN(const IncomingRequest request, Receive(message.size()));
  std::ranges::copy(request.payload, message.begin());
  // Once, and all of it: pages that nobody has touched would all be one page of zeros, and stay in the cache.
  if (!written_) std::ranges::fill(endpoint_.reply_buffer(request), std::byte{1});
  written_ = true;
  return endpoint_.Reply(request, 0);
}

}  // namespace moe
