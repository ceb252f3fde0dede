#include "transport/grpc/router_memory.h"

#include <utility>

namespace moe {

RouterMemory::RouterMemory(SharedBell bell, std::vector<Member> members)
    : bell_(std::move(bell)), members_(std::move(members)), backoff_(WaitingForRings(), &bell_.bell()) {}

Result<std::unique_ptr<RouterMemory>> RouterMemory::Create(const TransportLimits& limits,
                                                           const std::vector<std::uint8_t>& attached) {
  MOE_ASSIGN_OR_RETURN(SharedBell bell, SharedBell::Create());
  std::vector<Member> members(attached.size());
  for (std::size_t w = 0; w < attached.size(); ++w) {
    if (attached[w] == 0) continue;
    MOE_ASSIGN_OR_RETURN(members[w].memory, LaneMemory::Create(limits));
  }
  return std::unique_ptr<RouterMemory>(new RouterMemory(std::move(bell), std::move(members)));
}

std::vector<std::string> RouterMemory::Offers() const {
  std::vector<std::string> offers;
  for (const Member& member : members_)
    offers.push_back(member.memory ? MemoryOffer{.lanes = member.memory->name(), .bell = bell_.name()}.ToText() : "");
  return offers;
}

Status RouterMemory::Join(const LaneTerms& terms, Rank peer, const std::string& bell) {
  Member& member = members_[terms.worker.index()];
  MOE_ASSIGN_OR_RETURN(member.bell, SharedBell::Open(bell));
  member.lanes = std::make_unique<RouterLanes>(member.memory->lanes(), terms, peer, member.bell->bell());
  return Status::Ok();
}

}  // namespace moe
