// A worker that does what the first byte of each request tells it, so that one set of test bodies can drive workers in
// threads and in other processes alike.
#pragma once

#include <cstdint>
#include <span>

#include "transport/transport.h"

namespace moe {

enum class Command : std::uint8_t {
  kEcho = 1,         // reply: the request
  kReplyBytes = 2,   // reply: `argument` bytes of Pattern(seed)
  kDigest = 3,       // reply: a Digest of the request
  kSilent = 4,       // no reply, ever
  kHold = 5,         // echoed only after the next request that is not held has been replied to
  kOversize = 6,     // tries one byte more than allowed, then replies with the code that gave (one byte)
  kAlignment = 7,    // reply: how far request and reply buffer are off a multiple of 64, summed (8 bytes)
  kAllocations = 8,  // reply: ThreadAllocationCount() of the worker (8 bytes)
  kQuit = 9,         // no reply; the worker destroys its end
  kSlow = 10,        // reply: the request, `argument` milliseconds later
};

/// The start of a request. Requests shorter than this can only be echoed.
struct CommandHeader {
  Command command = Command::kEcho;
  std::uint8_t padding[7] = {};
  std::uint64_t argument = 0;
  std::uint64_t seed = 0;
};

struct Digest {
  std::uint64_t hash = 0;      // HashBytes of the whole request
  std::uint64_t bytes = 0;     // its length
  std::uint64_t requests = 0;  // digests replied to so far by this worker, this one included
};

/// Deterministic bytes.
void FillPattern(std::uint64_t seed, std::span<std::byte> out);
std::uint64_t HashBytes(std::span<const std::byte> bytes);

/// Serves until no router is left or it is told to quit; then the caller destroys the endpoint. An unexpected failure
/// aborts the process.
void RunScriptedWorker(WorkerEndpoint& endpoint);

}  // namespace moe
