#include "transport/mpi/mpi_operations.h"

#include <mpi.h>

#include <vector>

#include "transport/backoff.h"
#include "transport/mpi/mpi_world.h"

namespace moe {

struct MpiOperations::State {
  State(MPI_Comm on, std::size_t num_places)
      : comm(on),
        requests(num_places, MPI_REQUEST_NULL),
        peers(num_places),
        is_receive(num_places),
        indices(num_places),
        statuses(num_places),
        completions(num_places) {}

  Status Failure(std::string_view what, Rank peer, int error) const {
    return Unavailable("MPI ", what, " rank ", peer, " failed: ", MpiErrorText(error));
  }
  int count() const { return static_cast<int>(requests.size()); }

  const MPI_Comm comm;
  std::vector<MPI_Request> requests;
  std::vector<Rank> peers;               // of the operation last begun in each place
  std::vector<std::uint8_t> is_receive;  // the same
  std::vector<int> indices;              // scratch of MPI_Testsome
  std::vector<MPI_Status> statuses;      // scratch of MPI_Testsome
  std::vector<Completion> completions;
};

MpiOperations::MpiOperations(int communicator, std::size_t num_places)
    : state_(std::make_unique<State>(MPI_Comm_f2c(communicator), num_places)) {}
MpiOperations::~MpiOperations() = default;
MpiOperations::MpiOperations(MpiOperations&& other) noexcept = default;

bool MpiOperations::active(std::size_t place) const { return state_->requests[place] != MPI_REQUEST_NULL; }

Status MpiOperations::Receive(std::size_t place, std::span<std::byte> into, Rank peer, int tag) {
  MOE_CHECK(!active(place));
  state_->peers[place] = peer;
  state_->is_receive[place] = 1;
  const int error = MPI_Irecv(into.data(), static_cast<int>(into.size()), MPI_BYTE, peer.value(), tag, state_->comm,
                              &state_->requests[place]);
  return error == MPI_SUCCESS ? Status::Ok() : state_->Failure("receive from", peer, error);
}

Status MpiOperations::Send(std::size_t place, std::span<const std::byte> frame, Rank peer, int tag) {
  MOE_CHECK(!active(place));
  state_->peers[place] = peer;
  state_->is_receive[place] = 0;
  const int error = MPI_Isend(frame.data(), static_cast<int>(frame.size()), MPI_BYTE, peer.value(), tag, state_->comm,
                              &state_->requests[place]);
  return error == MPI_SUCCESS ? Status::Ok() : state_->Failure("send to", peer, error);
}

Result<std::span<const MpiOperations::Completion>> MpiOperations::Test() {
  State& s = *state_;
  int count = 0;
  int returned = MPI_SUCCESS;
  // Open MPI looks at the requests first and makes progress only when none is complete, without looking again; and one
  // round of progress takes messages from one of its two queues. So what has arrived shows in the third look at the
  // latest. To sleep before it would cost a sleep.
  constexpr int kLooks = 3;
  for (int look = 0; look < kLooks && returned == MPI_SUCCESS && count == 0; ++look) {
    returned = MPI_Testsome(s.count(), s.requests.data(), &count, s.indices.data(), s.statuses.data());
  }
  if (returned != MPI_SUCCESS && returned != MPI_ERR_IN_STATUS) {
    return Unavailable("MPI progress failed: ", MpiErrorText(returned));
  }
  if (count == MPI_UNDEFINED) count = 0;  // nothing is active
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
    const auto place = static_cast<std::size_t>(s.indices[i]);
    // The standard sets the error of a status only when the call says that some have one.
    if (returned == MPI_ERR_IN_STATUS && s.statuses[i].MPI_ERROR != MPI_SUCCESS) {
      return s.Failure(s.is_receive[place] != 0 ? "receive from" : "send to", s.peers[place], s.statuses[i].MPI_ERROR);
    }
    int bytes = 0;
    MPI_Get_count(&s.statuses[i], MPI_BYTE, &bytes);
    s.completions[i] = {.place = place, .bytes = static_cast<std::size_t>(bytes)};
  }
  return std::span<const Completion>(s.completions).first(static_cast<std::size_t>(count));
}

bool MpiOperations::Finish(Deadline deadline) {
  State& s = *state_;
  for (std::size_t place = 0; place < s.requests.size(); ++place) {
    if (active(place) && s.is_receive[place] != 0) MPI_Cancel(&s.requests[place]);
  }
  Backoff backoff({});
  while (true) {
    int done = 0;
    const int error = MPI_Testall(s.count(), s.requests.data(), &done, MPI_STATUSES_IGNORE);
    if (done != 0 && error == MPI_SUCCESS) return true;
    if (error != MPI_SUCCESS || Clock::now() >= deadline) break;
    backoff.Pause(deadline);
  }
  bool left = false;
  for (MPI_Request& request : s.requests) {
    if (request == MPI_REQUEST_NULL) continue;
    MPI_Request_free(&request);  // MPI completes it when it can
    left = true;
  }
  return !left;
}

}  // namespace moe
