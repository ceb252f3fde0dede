// NCCL for tests without it: ranks are threads of one process, each with a fake device, and bytes really move between
// them, as work on their streams.
//
// It keeps to what NCCL promises and no more: a communicator's work runs in the order in which it was started, whatever
// the stream, so that a receive that waits holds up all behind it; a send ends only when it has been received; work
// reaches the stream only once the communicator has settled, some polls after it was asked for. What it reports as a
// failure of the test: sends and receives outside of a group, of lengths that do not match, or on a communicator that
// is not settled; calls after a communicator's end; communicators that are left.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "tests/device/fake_device.h"
#include "transport/nccl/nccl_api.h"

namespace moe {

enum class FakeNcclCall : std::uint8_t {
  kGetUniqueId,
  kInitRank,
  kGroupStart,
  kGroupEnd,
  kSend,
  kReceive,
  kFinalize,
  kDestroy,
  kAbort,
};

struct FakeNcclRecord {
  FakeNcclCall call = FakeNcclCall::kGetUniqueId;
  int communicator = 0;   // 1, 2, … in the order in which this rank made them; 0: none
  DeviceStream stream{};  // of a send or receive
  std::size_t bytes = 0;
};

/// What the ranks of one job share.
class FakeNcclFabric {
 public:
  explicit FakeNcclFabric(bool aborts_are_noticed = true) : aborts_are_noticed_(aborts_are_noticed) {}

 private:
  friend class FakeNccl;
  struct Message {
    std::vector<std::byte> bytes;
    bool taken = false;
  };
  // Two ranks. Messages of a direction, by the rank that sends them, match receives in order.
  struct Pair {
    bool joined[2] = {};
    bool finalized[2] = {};
    bool aborted[2] = {};
    std::deque<std::shared_ptr<Message>> messages[2];
  };

  const bool aborts_are_noticed_;  // by the other rank, as over a network; else it waits on
  std::mutex mutex_;
  std::uint64_t last_id_ = 0;
  std::map<std::uint64_t, std::shared_ptr<Pair>> pairs_;  // by id
};

/// One rank's NCCL.
class FakeNccl final : public NcclApi {
 public:
  FakeNccl(FakeNcclFabric& fabric, FakeDevice& device, std::uint64_t seed = 1);
  ~FakeNccl() override;

  /// The `nth` call of a kind from now on (1: the next one) fails and does nothing.
  void FailCall(FakeNcclCall call, int nth, Status status);
  /// What Settled says of a communicator (as records number them) from now on.
  void FailLater(int communicator, Status status);
  /// The first ones, in order.
  std::vector<FakeNcclRecord> records() const;
  std::vector<std::string> TakeMisuse();

  Result<NcclUniqueId> GetUniqueId() override;
  Result<NcclCommunicator> InitRank(const NcclUniqueId& id, int num_ranks, int rank) override;
  Result<bool> Settled(NcclCommunicator communicator) override;
  Status GroupStart() override;
  Status GroupEnd() override;
  Status Send(DeviceSpan from, int peer, NcclCommunicator communicator, DeviceStream stream) override;
  Status Receive(DeviceSpan into, int peer, NcclCommunicator communicator, DeviceStream stream) override;
  Status Finalize(NcclCommunicator communicator) override;
  Status Destroy(NcclCommunicator communicator) override;
  Status Abort(NcclCommunicator communicator) override;

 private:
  struct Operation {
    bool sends = false;
    DeviceSpan memory;
    DeviceStream stream;
    std::uint64_t group = 0;
  };
  enum class State : std::uint8_t { kJoining, kReady, kLaunching, kFinalizing, kEnded };
  struct Communicator {
    int number = 0;
    int rank = 0;
    std::shared_ptr<FakeNcclFabric::Pair> pair;
    State state = State::kJoining;
    int polls_left = 0;                 // before what was asked for is carried out
    std::vector<Operation> asked;       // of the group that is open or being launched
    std::deque<std::uint64_t> running;  // groups, in order, one entry an operation that has not ended
    Status failure;
  };
  using Lock = std::lock_guard<std::mutex>;

  Status Note(FakeNcclCall call, const Communicator* communicator = nullptr, DeviceStream stream = {},
              std::size_t bytes = 0);
  Status Misuse(std::string what);
  Result<std::shared_ptr<Communicator>> Find(NcclCommunicator communicator);
  Status Ask(FakeNcclCall call, DeviceSpan memory, int peer, NcclCommunicator communicator, DeviceStream stream);
  void Launch(const std::shared_ptr<Communicator>& communicator, std::vector<Operation> operations);
  void LaunchSend(const std::shared_ptr<Communicator>& communicator, const Operation& operation);
  void LaunchReceive(const std::shared_ptr<Communicator>& communicator, const Operation& operation);
  static bool Killed(const Communicator& communicator) { return communicator.pair->aborted[communicator.rank]; }
  static bool AtTurn(const Communicator& communicator, std::uint64_t group) {
    return !communicator.running.empty() && communicator.running.front() == group;
  }
  static void End(Communicator& communicator, std::uint64_t group);

  FakeNcclFabric& fabric_;
  FakeDevice& device_;
  std::mt19937_64 random_;
  // All of it under the fabric's lock, which is never held while the device is called: the device calls back with its
  // own lock held.
  std::vector<std::shared_ptr<Communicator>> communicators_;  // handle n is place n − 1
  int group_depth_ = 0;
  std::uint64_t last_group_ = 0;
  std::vector<FakeNcclRecord> records_;
  std::map<FakeNcclCall, std::uint64_t> counts_;
  std::map<FakeNcclCall, std::pair<std::uint64_t, Status>> planned_;
  std::vector<std::string> misuse_;
};

}  // namespace moe
