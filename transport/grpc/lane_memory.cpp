#include "transport/grpc/lane_memory.h"

#include <new>

#include "transport/frame.h"

namespace moe {
namespace {

constexpr std::size_t kBellBytes = 4096;  // a page, which is mapped anyway

std::size_t Aligned(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

// Where one lane's parts lie, from its start.
struct LaneLayout {
  explicit LaneLayout(const TransportLimits& limits)
      : request_bytes(kFrameHeaderBytes + limits.max_request_bytes),
        reply_bytes(kFrameHeaderBytes + limits.max_reply_bytes),
        request(Aligned(sizeof(LaneControl))),
        reply(request + Aligned(request_bytes)),
        end(reply + Aligned(reply_bytes)) {}

  std::size_t request_bytes, reply_bytes;
  std::size_t request, reply, end;
};

std::size_t TotalBytes(const TransportLimits& limits) {
  return LaneLayout(limits).end * static_cast<std::size_t>(limits.max_exchanges);
}

}  // namespace

Result<SharedBell> SharedBell::Create() {
  MOE_ASSIGN_OR_RETURN(SharedMemory memory, SharedMemory::Create(kBellBytes));
  new (memory.span().data()) Doorbell;
  return SharedBell(std::move(memory));
}

Result<SharedBell> SharedBell::Open(std::string_view name) {
  MOE_ASSIGN_OR_RETURN(SharedMemory memory, SharedMemory::Open(name, kBellBytes));
  return SharedBell(std::move(memory));
}

Doorbell& SharedBell::bell() const { return *std::launder(reinterpret_cast<Doorbell*>(memory_.span().data())); }

Result<LaneMemory> LaneMemory::Create(const TransportLimits& limits) {
  MOE_ASSIGN_OR_RETURN(SharedMemory memory, SharedMemory::Create(TotalBytes(limits)));
  LaneMemory made(std::move(memory), limits);
  for (const Lane& lane : made.lanes()) new (lane.control) LaneControl;
  return made;
}

Result<LaneMemory> LaneMemory::Open(std::string_view name, const TransportLimits& limits) {
  MOE_ASSIGN_OR_RETURN(SharedMemory memory, SharedMemory::Open(name, TotalBytes(limits)));
  return LaneMemory(std::move(memory), limits);
}

std::vector<Lane> LaneMemory::lanes() const {
  const LaneLayout layout(limits_);
  std::vector<Lane> lanes;
  for (std::size_t slot = 0; slot < static_cast<std::size_t>(limits_.max_exchanges); ++slot) {
    const std::span<std::byte> lane = memory_.span().subspan(slot * layout.end, layout.end);
    lanes.push_back({.control = std::launder(reinterpret_cast<LaneControl*>(lane.data())),
                     .request = lane.subspan(layout.request, layout.request_bytes),
                     .reply = lane.subspan(layout.reply, layout.reply_bytes)});
  }
  return lanes;
}

BackoffOptions WaitingForRings() {
  using std::chrono::microseconds;
  using std::chrono::milliseconds;
  // As between the ranks of an MPI job on a machine whose ranks outnumber its processors (mpi_world.cpp): the spin is
  // about what waking a sleeper takes, and gives way, as MPI's own polls do there.
  return {.spin = microseconds(20),
          .spin_yields = true,
          .first_sleep = microseconds(500),
          .active_sleep = milliseconds(2),
          .idle_sleep = milliseconds(20)};
}

std::string MemoryOffer::ToText() const { return Cat(lanes, " ", bell); }

Result<MemoryOffer> MemoryOffer::Parse(std::string_view text) {
  const std::size_t space = text.find(' ');
  if (space == std::string_view::npos)
    return InvalidArgument("\"", text.substr(0, 100), "\" is no offer of shared memory");
  return MemoryOffer{.lanes = std::string(text.substr(0, space)), .bell = std::string(text.substr(space + 1))};
}

}  // namespace moe
