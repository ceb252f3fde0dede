// What every transport checks alike, and how it names peers that have not answered.
#pragma once

#include <cstdint>
#include <span>

#include "core/status.h"
#include "transport/transport.h"

namespace moe {

/// INVALID_ARGUMENT unless every limit is usable.
Status CheckLimits(const TransportLimits& limits);

/// What Exchange::Start refuses: a wrong number of entries (a broken invariant) or a request over the limit.
Status CheckRequestBytes(const Transport& transport, std::span<const std::size_t> request_bytes);

/// What WorkerEndpoint::Reply refuses.
Status CheckReplyBytes(const TransportLimits& limits, std::size_t bytes);

/// DEADLINE_EXCEEDED naming the ranks of the workers whose entry of `pending` is not 0.
Status NoReply(const Transport& transport, std::span<const std::uint8_t> pending);

/// UNAVAILABLE naming them: their exchange was destroyed before it ended.
Status GivenUp(const Transport& transport, std::span<const std::uint8_t> pending);

}  // namespace moe
