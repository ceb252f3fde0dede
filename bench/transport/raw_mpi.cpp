#include "bench/transport/raw_mpi.h"

#include <mpi.h>

#include <algorithm>
#include <string_view>
#include <vector>

#include "core/aligned_buffer.h"

namespace moe {
namespace {

constexpr int kRouter = 0;
constexpr int kTag = 0;

Status Check(std::string_view what, int error) {
  return error == MPI_SUCCESS ? Status::Ok() : Unavailable("MPI ", what, " failed: ", MpiErrorText(error));
}

// Sizes come from limits that the transport beside this has accepted: they fit an int.
int Count(std::size_t bytes) { return static_cast<int>(bytes); }

class RawMpiRouter final : public RouterPath {
 public:
  RawMpiRouter(MPI_Comm comm, int ranks, const ExchangeBytes& largest) : comm_(comm) {
    for (int rank = 0; rank < ranks; ++rank) {
      if (rank == kRouter) continue;
      peers_.push_back(rank);
      // Written once: pages that nobody has touched would all be one page of zeros, and stay in the cache.
      std::ranges::fill(requests_.emplace_back(largest.request).span(), std::byte{1});
      replies_.emplace_back(largest.reply);
    }
    operations_.resize(2 * peers_.size());
  }

  std::string_view name() const override { return "raw_mpi"; }

  Status Exchange(const ExchangeBytes& bytes, int workers) override {
    const auto peers = static_cast<std::size_t>(workers);
    for (std::size_t w = 0; w < peers; ++w)
      MOE_RETURN_IF_ERROR(Check("receive", MPI_Irecv(replies_[w].data(), Count(bytes.reply), MPI_BYTE, peers_[w], kTag,
                                                     comm_, &operations_[w])));
    for (std::size_t w = 0; w < peers; ++w)
      MOE_RETURN_IF_ERROR(Check("send", MPI_Isend(requests_[w].data(), Count(bytes.request), MPI_BYTE, peers_[w], kTag,
                                                  comm_, &operations_[peers + w])));
    return Check("wait", MPI_Waitall(Count(2 * peers), operations_.data(), MPI_STATUSES_IGNORE));
  }

 private:
  const MPI_Comm comm_;
  std::vector<int> peers_;
  std::vector<AlignedBuffer<std::byte>> requests_;
  std::vector<AlignedBuffer<std::byte>> replies_;
  std::vector<MPI_Request> operations_;  // receives, then sends
};

class RawMpiWorker final : public WorkerPath {
 public:
  RawMpiWorker(MPI_Comm comm, const ExchangeBytes& largest)
      : comm_(comm), request_(largest.request), reply_(largest.reply) {
    std::ranges::fill(reply_.span(), std::byte{1});
  }

  Status Answer(const ExchangeBytes& bytes) override {
    MOE_RETURN_IF_ERROR(Check(
        "receive", MPI_Recv(request_.data(), Count(bytes.request), MPI_BYTE, kRouter, kTag, comm_, MPI_STATUS_IGNORE)));
    return Check("send", MPI_Send(reply_.data(), Count(bytes.reply), MPI_BYTE, kRouter, kTag, comm_));
  }

 private:
  const MPI_Comm comm_;
  AlignedBuffer<std::byte> request_;
  AlignedBuffer<std::byte> reply_;
};

}  // namespace

Result<std::unique_ptr<RouterPath>> MakeRawMpiRouter(MpiWorld& world, const ExchangeBytes& largest) {
  MOE_ASSIGN_OR_RETURN(const MpiCommunicator made, world.NewCommunicator());
  return std::unique_ptr<RouterPath>(std::make_unique<RawMpiRouter>(MPI_Comm_f2c(made.handle), world.size(), largest));
}

Result<std::unique_ptr<WorkerPath>> MakeRawMpiWorker(MpiWorld& world, const ExchangeBytes& largest) {
  MOE_ASSIGN_OR_RETURN(const MpiCommunicator made, world.NewCommunicator());
  return std::unique_ptr<WorkerPath>(std::make_unique<RawMpiWorker>(MPI_Comm_f2c(made.handle), largest));
}

}  // namespace moe
