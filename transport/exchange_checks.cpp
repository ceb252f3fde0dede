#include "transport/exchange_checks.h"

#include <string>

namespace moe {
namespace {

// Slots become MPI tags, of which the standard promises 32,767; two each. Far more than anyone overlaps.
constexpr int kMostExchanges = 1000;

WorkerId Worker(std::size_t index) { return WorkerId(static_cast<int>(index)); }

// "rank 3" or "ranks 3, 5".
std::string PendingRanks(const Transport& transport, std::span<const std::uint8_t> pending) {
  std::string names;
  int count = 0;
  for (std::size_t w = 0; w < pending.size(); ++w) {
    if (pending[w] == 0) continue;
    names += Cat(count++ == 0 ? "" : ", ", transport.rank(Worker(w)));
  }
  return Cat(count == 1 ? "rank " : "ranks ", names);
}

}  // namespace

Status CheckLimits(const TransportLimits& limits) {
  if (limits.max_request_bytes == 0) return InvalidArgument("max_request_bytes is 0 (at least 1)");
  if (limits.max_exchanges < 1 || limits.max_exchanges > kMostExchanges) {
    return InvalidArgument("max_exchanges is ", limits.max_exchanges, " (1 to ", kMostExchanges, ")");
  }
  return Status::Ok();
}

Status CheckRequestBytes(const Transport& transport, std::span<const std::size_t> request_bytes) {
  MOE_CHECK(request_bytes.size() == static_cast<std::size_t>(transport.num_workers()), "one size per worker");
  const std::size_t limit = transport.limits().max_request_bytes;
  for (std::size_t w = 0; w < request_bytes.size(); ++w) {
    if (request_bytes[w] > limit) {
      return InvalidArgument("a request of ", request_bytes[w], " bytes to rank ", transport.rank(Worker(w)),
                             " is over the limit of ", limit);
    }
  }
  return Status::Ok();
}

Status CheckReplyBytes(const TransportLimits& limits, std::size_t bytes) {
  if (bytes <= limits.max_reply_bytes) return Status::Ok();
  return InvalidArgument("a reply of ", bytes, " bytes is over the limit of ", limits.max_reply_bytes);
}

Status NoReply(const Transport& transport, std::span<const std::uint8_t> pending) {
  return DeadlineExceeded("no reply from ", PendingRanks(transport, pending), " before the deadline of the exchange");
}

Status GivenUp(const Transport& transport, std::span<const std::uint8_t> pending) {
  return Unavailable("an exchange with ", PendingRanks(transport, pending), " was given up before it ended");
}

}  // namespace moe
