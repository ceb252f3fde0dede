#include "transport/mpi/mpi_link.h"

#include <algorithm>
#include <limits>

#include "transport/exchange_checks.h"

namespace moe {

Result<MpiLink> MpiLink::Connect(MpiWorld& world, const MpiTransportOptions& options) {
  const TransportLimits& limits = options.limits;
  MOE_RETURN_IF_ERROR(world.CheckAgreement(
      "the transport's limits (request bytes, reply bytes, exchanges, whether payloads carry checksums)",
      {static_cast<std::int64_t>(limits.max_request_bytes), static_cast<std::int64_t>(limits.max_reply_bytes),
       limits.max_exchanges, limits.payload_checksums ? 1 : 0}));
  MOE_RETURN_IF_ERROR(CheckLimits(limits));
  if (world.size() < 2) return InvalidArgument("the mpi transport needs at least 2 ranks, this job has ", world.size());
  // MPI counts bytes in an int.
  constexpr std::size_t kMostPayload = std::numeric_limits<int>::max() - kFrameHeaderBytes;
  if (const std::size_t largest = std::max(limits.max_request_bytes, limits.max_reply_bytes); largest > kMostPayload) {
    return InvalidArgument("a payload of ", largest, " bytes does not fit an MPI message (at most ", kMostPayload, ")");
  }
  MpiLink link;
  MOE_ASSIGN_OR_RETURN(link.communicator_, world.NewCommunicator());
  link.world_ = &world;
  link.payload_checksums_ = limits.payload_checksums;
  link.tap_ = options.tap;
  const Rank usual_sender = world.rank() == kMpiRouter ? Rank(1) : kMpiRouter;
  link.waiting_ = options.waiting != nullptr ? *options.waiting : world.Waiting(usual_sender);
  return link;
}

Status MpiLink::Send(MpiOperations& operations, OutgoingFrame out) const {
  out.header.epoch = epoch();
  if (!CompleteFrame(out.header, out.frame, payload_checksums_, tap_, out.worker)) return Status::Ok();
  MOE_RETURN_IF_ERROR(operations.Send(out.place, out.frame, out.peer, out.tag));
  if (Doorbell* const bell = world_->bell(out.peer); bell != nullptr) bell->Ring();
  return Status::Ok();
}

}  // namespace moe
