// What a router says in the metadata that opens a stream, and what a worker makes of it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/function_ref.h"
#include "core/status.h"
#include "transport/frame.h"
#include "transport/transport.h"

namespace moe {

/// The worker's answer carries this key.
inline constexpr std::string_view kProtocolKey = "moe-protocol";
/// Names of shared memory (lane_memory.h): what a router offers, and in the worker's answer its bell, if it takes that.
inline constexpr std::string_view kMemoryKey = "moe-memory";
inline constexpr std::string_view kExchangeMethod = "/moe.v1.ExpertWorker/Exchange";

struct StreamHello {
  std::uint64_t protocol = kFrameVersion;  // frames, envelope and metadata change together
  std::uint64_t router = 0;                // who asks: the same number in each stream of one router, else random
  std::uint64_t epoch = 0;                 // which connection of that router, from 1
  TransportLimits limits;
  std::string memory;  // that it offers; empty: none
};

using Metadata = std::vector<std::pair<std::string, std::string>>;

Metadata ToMetadata(const StreamHello& hello);

/// INVALID_ARGUMENT naming the key, its value and what was allowed. Another protocol is named before anything else.
Result<StreamHello> ParseHello(FunctionRef<std::optional<std::string_view>(std::string_view key)> find);

/// Whether a worker that allows `most` can serve this router; INVALID_ARGUMENT names both values.
Status CheckHello(const StreamHello& hello, const TransportLimits& most);

/// Bytes of the largest message that frames with these limits can be; INVALID_ARGUMENT when that is over gRPC's.
Result<int> MessageBytes(const TransportLimits& limits);

}  // namespace moe
