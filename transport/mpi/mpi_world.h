// MPI of this process: initialised when made, finalised when destroyed, used on the thread that made it and on no
// other. Everything here is collective: every rank makes the same calls in the same order. Waiting backs off, so that
// ranks that wait for a slow one leave it the processors.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "core/ids.h"
#include "core/status.h"
#include "transport/backoff.h"

namespace moe {

/// Whether a launcher (mpirun, srun) started this process as one of several ranks; reads the environment only.
bool LaunchedByMpi();

/// "error 15: MPI_ERR_TRUNCATE: message truncated", for messages.
std::string MpiErrorText(int error);

/// A communicator over all ranks, as the number that MPI_Comm_c2f gives (mpi.h stays out of headers).
struct MpiCommunicator {
  int handle = 0;
  std::uint64_t epoch = 0;  // 1 for the first one made, the same on all ranks
};

class MpiWorld {
 public:
  /// Initialises MPI, once a process. MPI itself aborts the job when it cannot start.
  MpiWorld();
  /// Finalises it: waits for all ranks. Everything made with this world is destroyed before.
  ~MpiWorld();
  MpiWorld(const MpiWorld&) = delete;
  MpiWorld& operator=(const MpiWorld&) = delete;

  Rank rank() const { return Rank(rank_); }
  int size() const { return size_; }
  /// This rank's place among the ranks of its machine, and their number.
  int node_local_rank() const { return node_local_rank_; }
  int node_local_size() const { return node_local_size_; }
  /// Whether this machine has fewer processors for us than ranks: then nobody spins for long.
  bool oversubscribed() const { return oversubscribed_; }

  /// Every rank's `text`, on rank 0 (by rank); empty elsewhere.
  Result<std::vector<std::string>> GatherStrings(const std::string& text);
  /// Rank 0's `text`, everywhere.
  Result<std::string> Broadcast(const std::string& text);

  /// A new communicator of all ranks whose errors are returned. It lives as long as this world: freeing one is
  /// collective, and an end that has failed must be able to go without the others.
  Result<MpiCommunicator> NewCommunicator();

  /// INVALID_ARGUMENT on every rank unless all ranks call it with the same values; `what` names them in the message.
  Status CheckAgreement(std::string_view what, const std::vector<std::int64_t>& values);

  /// The doorbell of `rank`, to ring after sending to it or to sleep on; nullptr when it is on another machine.
  Doorbell* bell(Rank rank) const { return bells_[rank.index()]; }

  /// How to wait here for a message of `sender`.
  BackoffOptions Waiting(Rank sender) const;

  /// Keeps what a transfer that never ended may still touch until MPI is finalised.
  void KeepUntilFinalized(std::shared_ptr<void> buffers) { kept_.push_back(std::move(buffers)); }

  /// Aborts unless called on this world's thread.
  void CheckThread() const { MOE_CHECK(std::this_thread::get_id() == thread_, "MPI used on a second thread"); }

 private:
  void SplitByNode();

  const std::thread::id thread_ = std::this_thread::get_id();
  int rank_ = 0;
  int size_ = 1;
  int node_local_rank_ = 0;
  int node_local_size_ = 1;
  bool oversubscribed_ = false;
  std::vector<MpiCommunicator> communicators_;
  MpiCommunicator collectives_;
  int node_communicator_ = 0;     // as MPI_Comm_c2f gives it
  int bell_window_ = 0;           // as MPI_Win_c2f gives it
  std::vector<Doorbell*> bells_;  // by rank, in memory that the ranks of one machine share
  std::vector<std::shared_ptr<void>> kept_;
};

}  // namespace moe
