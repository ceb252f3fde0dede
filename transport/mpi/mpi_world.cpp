#include "transport/mpi/mpi_world.h"

#include <mpi.h>

#include <array>
#include <climits>
#include <cstdlib>
#include <memory>
#include <new>
#include <numeric>
#include <string_view>

#include "core/machine.h"

namespace moe {
namespace {

Status Failed(std::string_view what, int error) { return Unavailable("MPI ", what, " failed: ", MpiErrorText(error)); }

#define MOE_RETURN_IF_MPI_ERROR(what, call)                                                     \
  do {                                                                                          \
    if (const int moe_error = (call); moe_error != MPI_SUCCESS) return Failed(what, moe_error); \
  } while (false)

// Waits for a collective without holding a processor: another rank may be loading its weights on it.
Status Complete(std::string_view what, MPI_Request request) {
  Backoff backoff({});
  while (true) {
    int done = 0;
    MOE_RETURN_IF_MPI_ERROR(what, MPI_Test(&request, &done, MPI_STATUS_IGNORE));
    if (done != 0) return Status::Ok();
    backoff.Pause(kNoDeadline);
  }
}

Result<int> CountOf(std::string_view what, std::size_t bytes) {
  if (bytes <= INT_MAX) return static_cast<int>(bytes);
  return InvalidArgument("MPI ", what, " of ", bytes, " bytes is over the limit of ", INT_MAX);
}

}  // namespace

bool LaunchedByMpi() {
  constexpr std::array<const char*, 3> kSetByLaunchers = {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"};
  for (const char* name : kSetByLaunchers) {
    if (std::getenv(name) != nullptr) return true;
  }
  return false;
}

std::string MpiErrorText(int error) {
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  if (MPI_Error_string(error, text.data(), &length) != MPI_SUCCESS) length = 0;
  return Cat("error ", error, ": ", std::string_view(text.data(), static_cast<std::size_t>(length)));
}

MpiWorld::MpiWorld() {
  int provided = MPI_THREAD_SINGLE;
  MOE_CHECK(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided) == MPI_SUCCESS, "MPI does not start");
  MOE_CHECK(provided >= MPI_THREAD_FUNNELED, "this MPI does not allow other threads in the process");
  MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
  MPI_Comm_size(MPI_COMM_WORLD, &size_);
  UseExactSleeps();
  SplitByNode();
  oversubscribed_ = node_local_size_ > static_cast<int>(AllowedProcessors().size());
  Result<MpiCommunicator> collectives = NewCommunicator();
  MOE_CHECK(collectives.ok(), collectives.status().message());
  collectives_ = *collectives;
}

// One doorbell a rank, in memory that all ranks of the machine map.
void MpiWorld::SplitByNode() {
  MPI_Comm node = MPI_COMM_NULL;
  MOE_CHECK(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &node) == MPI_SUCCESS);
  MPI_Comm_rank(node, &node_local_rank_);
  MPI_Comm_size(node, &node_local_size_);
  node_communicator_ = MPI_Comm_c2f(node);

  MPI_Win window = MPI_WIN_NULL;
  void* own = nullptr;
  // Twice the size: the standard promises no alignment, and a doorbell wants a cache line.
  constexpr MPI_Aint kBytes = 2 * sizeof(Doorbell);
  MOE_CHECK(MPI_Win_allocate_shared(kBytes, 1, MPI_INFO_NULL, node, &own, &window) == MPI_SUCCESS);
  bell_window_ = MPI_Win_c2f(window);

  std::vector<int> world_ranks(static_cast<std::size_t>(node_local_size_));
  MPI_Allgather(&rank_, 1, MPI_INT, world_ranks.data(), 1, MPI_INT, node);
  bells_.assign(static_cast<std::size_t>(size_), nullptr);
  for (int peer = 0; peer < node_local_size_; ++peer) {
    MPI_Aint bytes = 0;
    int unit = 0;
    void* base = nullptr;
    MPI_Win_shared_query(window, peer, &bytes, &unit, &base);
    // The offset must be the same in every process, whatever address the memory has there: pages are aligned, so the
    // low bits agree.
    auto space = static_cast<std::size_t>(bytes);
    void* const aligned = std::align(alignof(Doorbell), sizeof(Doorbell), base, space);
    MOE_CHECK(aligned != nullptr);
    Doorbell* const bell = peer == node_local_rank_ ? new (aligned) Doorbell : static_cast<Doorbell*>(aligned);
    bells_[static_cast<std::size_t>(world_ranks[static_cast<std::size_t>(peer)])] = bell;
  }
  MPI_Barrier(node);  // nobody rings a bell that is not made yet
}

MpiWorld::~MpiWorld() {
  CheckThread();
  for (const MpiCommunicator& made : communicators_) {
    MPI_Comm comm = MPI_Comm_f2c(made.handle);
    MPI_Comm_free(&comm);
  }
  MPI_Win window = MPI_Win_f2c(bell_window_);
  MPI_Win_free(&window);
  MPI_Comm node = MPI_Comm_f2c(node_communicator_);
  MPI_Comm_free(&node);
  MPI_Finalize();
}

BackoffOptions MpiWorld::Waiting(Rank sender) const {
  using std::chrono::microseconds;
  using std::chrono::milliseconds;
  BackoffOptions options;
  // Waking a sleeper takes 15–30 µs where its processor has gone idle, as much as 256 KiB from rank to rank: a wait
  // that outlasts the spin then takes a fifth more at most. Where ranks outnumber processors the spin is about one such
  // wake-up, which is what sleeping would have cost too; MPI's progress itself gives way then, each time it finds
  // nothing (mpi_yield_when_idle).
  options.spin = oversubscribed_ ? microseconds(20) : microseconds(100);
  if (bell(sender) != nullptr) {
    // The ring ends the sleep. Polls are for the steps of a long message that ring nothing: there are none where the
    // kernel lets ranks read each other's memory, so they may be rare; idle_sleep bounds what a lost step could cost.
    // No yields after the spin: where ranks outnumber processors a yielding rank takes turns with those that compute.
    options.first_sleep = microseconds(200);
    options.active_sleep = milliseconds(1);
    options.idle_sleep = milliseconds(20);
  } else {
    // Polls are all there is. Seven ranks that wake every 4 ms cost 4 % of one core.
    options.active_sleep = microseconds(50);
    options.idle_sleep = milliseconds(4);
  }
  return options;
}

Result<std::vector<std::string>> MpiWorld::GatherStrings(const std::string& text) {
  CheckThread();
  const MPI_Comm comm = MPI_Comm_f2c(collectives_.handle);
  MOE_ASSIGN_OR_RETURN(const int length, CountOf("gather", text.size()));
  std::vector<int> lengths(rank_ == 0 ? static_cast<std::size_t>(size_) : 0);
  MPI_Request request = MPI_REQUEST_NULL;
  MOE_RETURN_IF_MPI_ERROR("gather", MPI_Igather(&length, 1, MPI_INT, lengths.data(), 1, MPI_INT, 0, comm, &request));
  MOE_RETURN_IF_ERROR(Complete("gather", request));

  std::vector<int> offsets(lengths.size());
  std::exclusive_scan(lengths.begin(), lengths.end(), offsets.begin(), 0);
  // A sum over INT_MAX would need gigabytes of start-up reports; rank 0 alone could see it, after the others have sent.
  const std::size_t total =
      lengths.empty() ? 0 : static_cast<std::size_t>(offsets.back()) + static_cast<std::size_t>(lengths.back());
  std::string all(total, '\0');
  MOE_RETURN_IF_MPI_ERROR("gather", MPI_Igatherv(text.data(), length, MPI_CHAR, all.data(), lengths.data(),
                                                 offsets.data(), MPI_CHAR, 0, comm, &request));
  MOE_RETURN_IF_ERROR(Complete("gather", request));

  std::vector<std::string> texts;
  for (std::size_t r = 0; r < lengths.size(); ++r) {
    texts.push_back(all.substr(static_cast<std::size_t>(offsets[r]), static_cast<std::size_t>(lengths[r])));
  }
  return texts;
}

Result<std::string> MpiWorld::Broadcast(const std::string& text) {
  CheckThread();
  const MPI_Comm comm = MPI_Comm_f2c(collectives_.handle);
  MOE_ASSIGN_OR_RETURN(int length, CountOf("broadcast", text.size()));
  MPI_Request request = MPI_REQUEST_NULL;
  MOE_RETURN_IF_MPI_ERROR("broadcast", MPI_Ibcast(&length, 1, MPI_INT, 0, comm, &request));
  MOE_RETURN_IF_ERROR(Complete("broadcast", request));
  std::string result = text;
  result.resize(static_cast<std::size_t>(length));
  MOE_RETURN_IF_MPI_ERROR("broadcast", MPI_Ibcast(result.data(), length, MPI_CHAR, 0, comm, &request));
  MOE_RETURN_IF_ERROR(Complete("broadcast", request));
  return result;
}

Result<MpiCommunicator> MpiWorld::NewCommunicator() {
  CheckThread();
  MPI_Comm comm = MPI_COMM_NULL;
  MOE_RETURN_IF_MPI_ERROR("duplication of a communicator", MPI_Comm_dup(MPI_COMM_WORLD, &comm));
  MOE_RETURN_IF_MPI_ERROR("setting of an error handler", MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN));
  communicators_.push_back({.handle = MPI_Comm_c2f(comm), .epoch = communicators_.size() + 1});
  return communicators_.back();
}

Status MpiWorld::CheckAgreement(std::string_view what, const std::vector<std::int64_t>& values) {
  CheckThread();
  // The greatest of v and of −v: they are opposite when all ranks have the same v.
  std::vector<std::int64_t> both = values;
  for (const std::int64_t value : values) both.push_back(-value);
  std::vector<std::int64_t> greatest(both.size());
  MPI_Request request = MPI_REQUEST_NULL;
  MOE_RETURN_IF_MPI_ERROR(
      "agreement", MPI_Iallreduce(both.data(), greatest.data(), static_cast<int>(both.size()), MPI_INT64_T, MPI_MAX,
                                  MPI_Comm_f2c(collectives_.handle), &request));
  MOE_RETURN_IF_ERROR(Complete("agreement", request));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::int64_t least = -greatest[values.size() + i];
    if (least != greatest[i]) {
      return InvalidArgument("the ranks disagree on ", what, ": number ", i + 1, " of them is ", least,
                             " on one rank and ", greatest[i], " on another (this one, rank ", rank_, ": ", values[i],
                             ")");
    }
  }
  return Status::Ok();
}

}  // namespace moe
