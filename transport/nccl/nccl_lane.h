// One direction between this rank and one peer: a communicator of these two ranks, a stream and memory on the device.
//
// A receive that waits keeps its communicator, and what is behind it in its stream, busy. So every pair of ranks has
// two lanes, one each way, and no peer ever stands in another's way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/clock.h"
#include "core/ids.h"
#include "core/status.h"
#include "device/device_api.h"
#include "device/device_handles.h"
#include "transport/nccl/nccl_api.h"

namespace moe {

/// What every lane works with; both outlive it.
struct NcclTools {
  NcclApi& nccl;
  DeviceApi& device;
};

class NcclLane {
 public:
  struct Options {
    NcclUniqueId id;
    int rank = 0;  // in the lane's communicator; the peer's is 1 − rank
    Rank peer;     // in the job
    std::size_t message_bytes = 0;
  };

  /// Starts to connect; settled once the peer has done the same.
  static Result<std::unique_ptr<NcclLane>> Open(NcclTools tools, const Options& options);
  /// Aborts what has not been closed, and waits for the device to be done with the memory.
  ~NcclLane();
  NcclLane(const NcclLane&) = delete;
  NcclLane& operator=(const NcclLane&) = delete;

  Rank peer() const { return options_.peer; }

  /// Whether NCCL has done what it was asked; UNAVAILABLE, naming the peer, after a failure here or there, of this or
  /// any call. That is for good; the lane is then to be aborted, though not inside a group.
  Result<bool> Settled();
  Status AwaitSettled(Deadline deadline);
  /// False after a failure, and when closed or aborted.
  bool usable() const { return communicator_.has_value() && failure_.ok(); }

  /// A message's way to the device memory: all of it, from its start.
  Status Stage(std::span<const std::byte> message);
  /// In a group: bytes [offset, offset + bytes) of the device memory go or come.
  Status Send(std::size_t offset, std::size_t bytes);
  Status Receive(std::size_t offset, std::size_t bytes);
  /// Behind a settled receive: the same bytes of device memory go on to `into`.
  Status Fetch(std::size_t offset, std::span<std::byte> into);

  /// Notes the point behind all that was enqueued; Passed says whether the device has reached it. With an event of the
  /// caller's: notes it there.
  Status Mark();
  Status Mark(DeviceEvent event);
  Result<bool> Passed();

  /// First step of a clean end, when nothing is in flight; the second, once settled.
  Status BeginClose();
  void EndClose();
  void Abort();

 private:
  NcclLane(NcclTools tools, const Options& options) : tools_(tools), options_(options) {}
  Status Fail(const Status& status);

  const NcclTools tools_;
  const Options options_;
  Stream stream_;
  Event event_;
  DeviceBuffer memory_;
  std::optional<NcclCommunicator> communicator_;  // none before it is made and after it is gone
  Status failure_;
};

/// Sends and receives that start together. Reusable; allocates nothing after construction.
class NcclGroup {
 public:
  NcclGroup(NcclApi& nccl, std::size_t max_lanes) : nccl_(nccl) { lanes_.reserve(max_lanes); }

  void Start();
  void Send(NcclLane& lane, std::size_t offset, std::size_t bytes);
  void Receive(NcclLane& lane, std::size_t offset, std::size_t bytes);
  /// Hands all of it to the device; the first failure, if any. NCCL does so on a thread of its own within microseconds
  /// once two ranks have talked before; longer than `deadline` is a failure of that lane.
  Status Finish(Deadline deadline);

 private:
  void Add(NcclLane& lane, const Status& status);

  NcclApi& nccl_;
  std::vector<NcclLane*> lanes_;
  bool started_ = false;
  Status failure_;
};

}  // namespace moe
