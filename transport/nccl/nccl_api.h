// The calls of NCCL that this project makes, as a narrow table, so that a fake can stand in for it in tests. nccl.h
// stays in nccl_library.cpp.
//
// Communicators are non-blocking: a call only asks, and Settled says when it has been carried out. Nothing else may be
// asked of a communicator, or enqueued behind its work, before it is settled. One thread per communicator. Failures are
// UNAVAILABLE and carry NCCL's own text.
#pragma once

#include <array>
#include <cstddef>
#include <memory>

#include "core/status.h"
#include "device/device_api.h"

namespace moe {

/// What ranks must share to find one another; valid once.
struct NcclUniqueId {
  std::array<std::byte, 128> bytes{};
};

/// In the real build, an ncclComm_t.
struct NcclCommunicator {
  void* handle = nullptr;
};

class NcclApi {
 public:
  virtual ~NcclApi() = default;

  virtual Result<NcclUniqueId> GetUniqueId() = 0;

  /// Starts to join `num_ranks` ranks, on this thread's device; settled when all are there.
  virtual Result<NcclCommunicator> InitRank(const NcclUniqueId& id, int num_ranks, int rank) = 0;

  /// Whether what was asked last has been carried out; or what went wrong since, here or at another rank. Never waits.
  virtual Result<bool> Settled(NcclCommunicator communicator) = 0;

  /// Sends and receives are asked for between GroupStart and GroupEnd and start together, also those of several
  /// communicators. GroupEnd is called whatever went wrong in between.
  virtual Status GroupStart() = 0;
  virtual Status GroupEnd() = 0;
  /// The peer's matching receive is of the same length. Between two ranks of a communicator, messages match in order.
  virtual Status Send(DeviceSpan from, int peer, NcclCommunicator communicator, DeviceStream stream) = 0;
  virtual Status Receive(DeviceSpan into, int peer, NcclCommunicator communicator, DeviceStream stream) = 0;

  /// All ranks of a communicator finalize it when nothing is in flight on it; once settled, it is destroyed.
  virtual Status Finalize(NcclCommunicator communicator) = 0;
  virtual Status Destroy(NcclCommunicator communicator) = 0;
  /// Ends what is in flight, wherever the other ranks are, and destroys.
  virtual Status Abort(NcclCommunicator communicator) = 0;
};

/// NCCL of this machine. UNAVAILABLE, one sentence, when this build has none or the library is not found.
Result<std::unique_ptr<NcclApi>> OpenNccl();

/// Whether this build knows NCCL at all.
bool BuiltWithNccl();

}  // namespace moe
