// The gRPC transport in one process, over local sockets: a server for each worker thread; and its baseline, a bare
// stream.
#pragma once

#include <memory>

#include "bench/transport/in_process_paths.h"

namespace moe {

/// Servers on local sockets, from here on. Frames lie in memory that both ends share, or travel in the streams.
Result<std::unique_ptr<LocalEnds>> MakeGrpcEnds(const ExchangeBenchOptions& options, int workers, bool shared_memory);

}  // namespace moe
