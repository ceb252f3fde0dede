// What both ends of the NCCL transport share: how lanes are made and agree, how a frame is sent, how an end takes
// leave.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "core/ids.h"
#include "core/status.h"
#include "device/device_handles.h"
#include "transport/frame.h"
#include "transport/nccl/nccl_lane.h"
#include "transport/nccl/nccl_receiver.h"
#include "transport/nccl/nccl_transport.h"

namespace moe {

inline constexpr Rank kNcclRouter{0};
/// A communicator carries the frames of one connection only.
inline constexpr std::uint64_t kNcclEpoch = 1;

/// How long NCCL may take to hand work to the device.
inline constexpr std::chrono::seconds kNcclLaunchTimeout{10};
/// How long an end that is destroyed waits for what a live peer does at once.
inline constexpr std::chrono::milliseconds kNcclFarewell{500};

/// A pair of lanes to one peer. Lanes are destroyed first: they wait until the device is done with the buffers.
struct NcclPeer {
  PinnedBuffer farewell;                   // the hello, later the close frame
  std::unique_ptr<NcclReceiver> receiver;  // of `in`
  std::unique_ptr<NcclLane> out;
  std::unique_ptr<NcclLane> in;
};

class NcclLink {
 public:
  /// Joins this rank with its peers: the router with all workers, a worker with the router. Collective.
  static Result<std::unique_ptr<NcclLink>> Connect(NcclApi& nccl, DeviceApi& device,
                                                   const NcclTransportOptions& options);
  /// Says farewell to peers that have not closed, ends clean lanes together with them, aborts the others.
  ~NcclLink();
  NcclLink(const NcclLink&) = delete;
  NcclLink& operator=(const NcclLink&) = delete;

  DeviceApi& device() const { return device_; }
  const NcclTransportOptions& options() const { return options_; }
  std::size_t num_peers() const { return peers_.size(); }
  NcclPeer& peer(std::size_t i) { return peers_[i]; }
  NcclGroup& group() { return group_; }
  static Deadline LaunchDeadline() { return After(kNcclLaunchTimeout); }

  /// Before anything else in every call of an end: an end may move between threads.
  Status UseThisThread();

  /// Seals the frame in `message`, whose payload is in place, tells the tap, and brings the message to the peer's lane.
  /// False when the tap took it away.
  Result<bool> Stage(std::size_t peer, FrameHeader header, std::span<std::byte> message);
  /// In an open group: the first part of what was staged.
  void SendFirstPart(std::size_t peer);
  /// Whether a staged message of that payload has a second part; in another open group: that part.
  bool HasSecondPart(std::size_t payload_bytes) const { return payload_bytes > out_small_bytes_; }
  void SendSecondPart(std::size_t peer, std::size_t payload_bytes);
  /// All of that, for one message. `staged`, if given, tells when the message's memory may be written again.
  Status Send(std::size_t peer, FrameHeader header, std::span<std::byte> message, DeviceEvent staged = {});

  /// Whether NCCL has noticed a failure at any peer: its status.
  Status Check();
  /// Aborts the lanes that have failed; not inside a group.
  void AbortFailed();
  /// The peer closes by itself: no farewell for it.
  void PeerHasClosed(std::size_t peer) { closed_[peer] = true; }

 private:
  NcclLink(NcclApi& nccl, DeviceApi& device, const NcclTransportOptions& options);
  bool is_router() const { return options_.rank == kNcclRouter.value(); }
  std::size_t max_payload(bool to_worker) const {
    return to_worker ? options_.limits.max_request_bytes : options_.limits.max_reply_bytes;
  }
  Result<std::string> ShareIds();
  Status OpenLanes(const std::string& ids);
  Status AwaitLanes(Deadline deadline);
  Status ExchangeHellos(Deadline deadline);
  NcclHello Hello() const;
  Status CheckHello(const NcclHello& hello, Rank peer) const;
  void SayFarewell(Deadline deadline);
  void CloseLanes(Deadline deadline);
  std::string Ranks(const std::vector<bool>& missing) const;

  NcclApi& nccl_;
  DeviceApi& device_;
  const NcclTransportOptions options_;
  const std::size_t out_small_bytes_, in_small_bytes_;
  std::thread::id thread_;
  NcclGroup group_;
  std::vector<NcclPeer> peers_;
  std::vector<bool> closed_;
  bool connected_ = false;
};

}  // namespace moe
