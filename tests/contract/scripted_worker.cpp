#include "tests/contract/scripted_worker.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <optional>
#include <thread>
#include <vector>

#include "core/check.h"
#include "tests/contract/allocation_count.h"

namespace moe {
namespace {

template <typename T>
std::size_t Write(const T& value, std::span<std::byte> out) {
  MOE_CHECK(out.size() >= sizeof(value));
  std::memcpy(out.data(), &value, sizeof(value));
  return sizeof(value);
}

std::uint64_t Misalignment(const std::byte* address) { return reinterpret_cast<std::uintptr_t>(address) % 64; }

class ScriptedWorker {
 public:
  explicit ScriptedWorker(WorkerEndpoint& endpoint) : endpoint_(endpoint) { held_.reserve(16); }

  // False when told to quit.
  bool Serve(const IncomingRequest& request) {
    CommandHeader header;
    MOE_CHECK(!request.payload.empty(), "an empty request was handed over");
    std::memcpy(&header, request.payload.data(), std::min(sizeof(header), request.payload.size()));
    switch (header.command) {
      case Command::kQuit: return false;
      case Command::kSilent: return true;
      case Command::kHold: held_.push_back(request); return true;
      default: break;
    }
    Send(request, Answer(header, request));
    for (const IncomingRequest& held : held_) Send(held, Echo(held));
    held_.clear();
    return true;
  }

 private:
  std::size_t Answer(const CommandHeader& header, const IncomingRequest& request) {
    const std::span<std::byte> out = endpoint_.reply_buffer(request);
    switch (header.command) {
      case Command::kReplyBytes: FillPattern(header.seed, out.first(header.argument)); return header.argument;
      case Command::kDigest:
        return Write(
            Digest{.hash = HashBytes(request.payload), .bytes = request.payload.size(), .requests = ++digests_}, out);
      case Command::kOversize: return Write(endpoint_.Reply(request, out.size() + 1).code(), out);
      case Command::kAlignment: return Write(Misalignment(request.payload.data()) + Misalignment(out.data()), out);
      case Command::kAllocations: return Write(ThreadAllocationCount(), out);
      case Command::kSlow:
        std::this_thread::sleep_for(std::chrono::milliseconds(header.argument));
        return Echo(request);
      default: return Echo(request);
    }
  }
  std::size_t Echo(const IncomingRequest& request) {
    std::memcpy(endpoint_.reply_buffer(request).data(), request.payload.data(), request.payload.size());
    return request.payload.size();
  }
  void Send(const IncomingRequest& request, std::size_t bytes) {
    const Status status = endpoint_.Reply(request, bytes);
    MOE_CHECK(status.ok(), status.message());
  }

  WorkerEndpoint& endpoint_;
  std::vector<IncomingRequest> held_;
  std::uint64_t digests_ = 0;
};

}  // namespace

// Words at a time: under the sanitizers each access costs as much as many bytes, and messages are up to 16 MiB.
void FillPattern(std::uint64_t seed, std::span<std::byte> out) {
  std::uint64_t state = seed * 2 + 1;
  while (!out.empty()) {
    state = state * 6364136223846793005 + 1442695040888963407;
    const std::uint64_t word = state ^ state >> 32;  // the low bits of the state by itself repeat soon
    const std::size_t bytes = std::min(out.size(), sizeof(word));
    std::memcpy(out.data(), &word, bytes);
    out = out.subspan(bytes);
  }
}

std::uint64_t HashBytes(std::span<const std::byte> bytes) {
  std::uint64_t hash = 14695981039346656037U;
  while (!bytes.empty()) {
    std::uint64_t word = 0;
    const std::size_t taken = std::min(bytes.size(), sizeof(word));
    std::memcpy(&word, bytes.data(), taken);
    hash = (hash ^ word) * 1099511628211U;
    hash ^= hash >> 32;  // a product carries upwards only
    bytes = bytes.subspan(taken);
  }
  return hash;
}

void RunScriptedWorker(WorkerEndpoint& endpoint) {
  ScriptedWorker worker(endpoint);
  while (true) {
    const Result<std::optional<IncomingRequest>> request = endpoint.Receive(kNoDeadline);
    if (!request.ok()) {
      if (request.status().code() == StatusCode::kUnavailable) return;
      // One wrong frame: its router has been told, and the contract says to go on.
      MOE_CHECK(request.status().code() == StatusCode::kInternal, request.status().message());
      continue;
    }
    MOE_CHECK(request->has_value(), "Receive without a deadline returned nothing");
    if (!worker.Serve(**request)) return;
  }
}

}  // namespace moe
