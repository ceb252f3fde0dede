// The gRPC transport in one process, over local sockets: a server for each worker thread; and its baseline, a bare
// stream.
#pragma once

#include <memory>

#include "bench/transport/in_process_paths.h"

namespace moe {

/// Servers on local sockets, from here on.
Result<std::unique_ptr<LocalEnds>> MakeGrpcEnds(const ExchangeBenchOptions& options, int workers);

}  // namespace moe
