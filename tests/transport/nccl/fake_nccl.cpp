#include "tests/transport/nccl/fake_nccl.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "tests/contract/allocation_count.h"

namespace moe {
namespace {

constexpr std::size_t kMostRecords = 10'000;

std::size_t Place(NcclCommunicator communicator) { return reinterpret_cast<std::uintptr_t>(communicator.handle); }

}  // namespace

FakeNccl::FakeNccl(FakeNcclFabric& fabric, FakeDevice& device, std::uint64_t seed)
    : fabric_(fabric), device_(device), random_(seed) {}

FakeNccl::~FakeNccl() {
  const Lock lock(fabric_.mutex_);
  for (const std::string& what : misuse_) ADD_FAILURE() << "fake NCCL: " << what;
  for (const auto& communicator : communicators_) {
    if (communicator->state == State::kEnded) continue;
    ADD_FAILURE() << "fake NCCL: communicator " << communicator->number << " was neither destroyed nor aborted";
  }
}

void FakeNccl::FailCall(FakeNcclCall call, int nth, Status status) {
  const Lock lock(fabric_.mutex_);
  planned_[call] = {counts_[call] + static_cast<std::uint64_t>(nth), std::move(status)};
}

void FakeNccl::FailLater(int communicator, Status status) {
  const Lock lock(fabric_.mutex_);
  communicators_[static_cast<std::size_t>(communicator) - 1]->failure = std::move(status);
}

std::vector<FakeNcclRecord> FakeNccl::records() const {
  const Lock lock(fabric_.mutex_);
  return records_;
}

std::vector<std::string> FakeNccl::TakeMisuse() {
  const Lock lock(fabric_.mutex_);
  return std::exchange(misuse_, {});
}

Status FakeNccl::Note(FakeNcclCall call, const Communicator* communicator, DeviceStream stream, std::size_t bytes) {
  const std::uint64_t count = ++counts_[call];
  if (records_.size() < kMostRecords) {
    records_.push_back({call, communicator == nullptr ? 0 : communicator->number, stream, bytes});
  }
  const auto planned = planned_.find(call);
  if (planned == planned_.end() || planned->second.first != count) return Status::Ok();
  return planned_.extract(planned).mapped().second;
}

Status FakeNccl::Misuse(std::string what) {
  misuse_.push_back(what);
  return Unavailable(what);
}

Result<std::shared_ptr<FakeNccl::Communicator>> FakeNccl::Find(NcclCommunicator communicator) {
  const std::size_t place = Place(communicator);
  if (place == 0 || place > communicators_.size() || communicators_[place - 1]->state == State::kEnded) {
    return Misuse(Cat("communicator ", place, " does not exist (any more)"));
  }
  return communicators_[place - 1];
}

Result<NcclUniqueId> FakeNccl::GetUniqueId() {
  const UncountedAllocations uncounted;
  const Lock lock(fabric_.mutex_);
  MOE_RETURN_IF_ERROR(Note(FakeNcclCall::kGetUniqueId));
  NcclUniqueId id;
  const std::uint64_t number = ++fabric_.last_id_;
  std::memcpy(id.bytes.data(), &number, sizeof(number));
  fabric_.pairs_[number] = std::make_shared<FakeNcclFabric::Pair>();
  return id;
}

Result<NcclCommunicator> FakeNccl::InitRank(const NcclUniqueId& id, int num_ranks, int rank) {
  const UncountedAllocations uncounted;
  const Lock lock(fabric_.mutex_);
  MOE_RETURN_IF_ERROR(Note(FakeNcclCall::kInitRank));
  std::uint64_t number = 0;
  std::memcpy(&number, id.bytes.data(), sizeof(number));
  const auto pair = fabric_.pairs_.find(number);
  if (pair == fabric_.pairs_.end()) return Misuse("an id that nobody made");
  if (num_ranks != 2 || rank < 0 || rank > 1) return Misuse("a communicator of other than two ranks");
  if (std::exchange(pair->second->joined[rank], true)) return Misuse(Cat("rank ", rank, " joined twice"));
  auto made = std::make_shared<Communicator>();
  made->number = static_cast<int>(communicators_.size()) + 1;
  made->rank = rank;
  made->pair = pair->second;
  communicators_.push_back(made);
  return NcclCommunicator{reinterpret_cast<void*>(static_cast<std::uintptr_t>(made->number))};
}

Result<bool> FakeNccl::Settled(NcclCommunicator communicator) {
  const UncountedAllocations uncounted;
  std::shared_ptr<Communicator> found;
  std::vector<Operation> launching;
  {
    const Lock lock(fabric_.mutex_);
    MOE_ASSIGN_OR_RETURN(found, Find(communicator));
    if (!found->failure.ok()) return found->failure;
    const int other = 1 - found->rank;
    if (found->pair->aborted[other] && fabric_.aborts_are_noticed_) {
      return Unavailable("NCCL: remote process exited or there was a network error");
    }
    if (found->polls_left > 0) {
      --found->polls_left;
      return false;
    }
    if (found->state == State::kJoining && !found->pair->joined[other]) return false;
    if (found->state == State::kFinalizing) return found->pair->finalized[other] && found->running.empty();
    if (found->state == State::kLaunching) launching.swap(found->asked);
    found->state = State::kReady;
  }
  if (!launching.empty()) Launch(found, std::move(launching));
  return true;
}

Status FakeNccl::GroupStart() {
  const UncountedAllocations uncounted;
  const Lock lock(fabric_.mutex_);
  MOE_RETURN_IF_ERROR(Note(FakeNcclCall::kGroupStart));
  if (group_depth_ > 0) return Misuse("a group within a group");
  ++group_depth_;
  ++last_group_;
  return Status::Ok();
}

// Nothing reaches a stream yet: Settled does that, for each communicator of the group, when its time has come.
Status FakeNccl::GroupEnd() {
  const UncountedAllocations uncounted;
  const Lock lock(fabric_.mutex_);
  const Status failure = Note(FakeNcclCall::kGroupEnd);
  if (group_depth_ == 0) return Misuse("the end of a group that was not begun");
  --group_depth_;
  for (const auto& communicator : communicators_) {
    if (communicator->asked.empty() || communicator->state != State::kReady) continue;
    if (!failure.ok()) {
      communicator->asked.clear();
      continue;
    }
    communicator->state = State::kLaunching;
    communicator->polls_left = static_cast<int>(random_() % 3);
  }
  return failure;
}

Status FakeNccl::Ask(FakeNcclCall call, DeviceSpan memory, int peer, NcclCommunicator communicator,
                     DeviceStream stream) {
  const UncountedAllocations uncounted;
  const Lock lock(fabric_.mutex_);
  MOE_ASSIGN_OR_RETURN(const std::shared_ptr<Communicator> found, Find(communicator));
  MOE_RETURN_IF_ERROR(Note(call, found.get(), stream, memory.bytes));
  if (group_depth_ == 0) return Misuse("a send or receive outside of a group");
  if (peer != 1 - found->rank) return Misuse(Cat("rank ", found->rank, " of two names rank ", peer, " as its peer"));
  if (found->state != State::kReady) return Misuse("a send or receive on a communicator that is not settled");
  if (memory.bytes == 0) return Misuse("a send or receive of nothing");
  found->asked.push_back({call == FakeNcclCall::kSend, memory, stream, last_group_});
  return Status::Ok();
}

Status FakeNccl::Send(DeviceSpan from, int peer, NcclCommunicator communicator, DeviceStream stream) {
  return Ask(FakeNcclCall::kSend, from, peer, communicator, stream);
}

Status FakeNccl::Receive(DeviceSpan into, int peer, NcclCommunicator communicator, DeviceStream stream) {
  return Ask(FakeNcclCall::kReceive, into, peer, communicator, stream);
}

void FakeNccl::Launch(const std::shared_ptr<Communicator>& communicator, std::vector<Operation> operations) {
  {
    const Lock lock(fabric_.mutex_);
    for (const Operation& operation : operations) communicator->running.push_back(operation.group);
  }
  for (const Operation& operation : operations) {
    operation.sends ? LaunchSend(communicator, operation) : LaunchReceive(communicator, operation);
  }
}

void FakeNccl::End(Communicator& communicator, std::uint64_t group) {
  const auto place = std::ranges::find(communicator.running, group);
  if (place != communicator.running.end()) communicator.running.erase(place);
}

// Two pieces of work: one that brings the bytes on their way, one that waits until they are taken.
void FakeNccl::LaunchSend(const std::shared_ptr<Communicator>& communicator, const Operation& operation) {
  const auto message = std::make_shared<FakeNcclFabric::Message>();
  FakeNcclFabric& fabric = fabric_;
  (void)device_.EnqueueWhen(
      operation.stream, {operation.memory},
      [&fabric, communicator, group = operation.group] {
        const Lock lock(fabric.mutex_);
        return AtTurn(*communicator, group) || Killed(*communicator);
      },
      [&fabric, communicator, message, memory = operation.memory] {
        const UncountedAllocations uncounted;
        const Lock lock(fabric.mutex_);
        if (Killed(*communicator)) return;
        const auto* begin = memory.as<const std::byte>();
        message->bytes.assign(begin, begin + memory.bytes);
        communicator->pair->messages[communicator->rank].push_back(message);
      });
  (void)device_.EnqueueWhen(
      operation.stream, {},
      [&fabric, communicator, message] {
        const Lock lock(fabric.mutex_);
        return message->taken || Killed(*communicator);
      },
      [&fabric, communicator, group = operation.group] {
        const Lock lock(fabric.mutex_);
        End(*communicator, group);
      });
}

void FakeNccl::LaunchReceive(const std::shared_ptr<Communicator>& communicator, const Operation& operation) {
  FakeNcclFabric& fabric = fabric_;
  (void)device_.EnqueueWhen(
      operation.stream, {operation.memory},
      [&fabric, communicator, group = operation.group] {
        const Lock lock(fabric.mutex_);
        const auto& messages = communicator->pair->messages[1 - communicator->rank];
        return (AtTurn(*communicator, group) && !messages.empty()) || Killed(*communicator);
      },
      [this, &fabric, communicator, memory = operation.memory, group = operation.group] {
        const UncountedAllocations uncounted;
        const Lock lock(fabric.mutex_);
        if (Killed(*communicator)) return;
        auto& messages = communicator->pair->messages[1 - communicator->rank];
        const std::shared_ptr<FakeNcclFabric::Message> message = messages.front();
        messages.pop_front();
        message->taken = true;
        End(*communicator, group);
        if (message->bytes.size() != memory.bytes) {
          (void)Misuse(Cat("a receive of ", memory.bytes, " bytes met a send of ", message->bytes.size()));
          return;
        }
        std::memcpy(memory.address, message->bytes.data(), memory.bytes);
      });
}

Status FakeNccl::Finalize(NcclCommunicator communicator) {
  const UncountedAllocations uncounted;
  const Lock lock(fabric_.mutex_);
  MOE_ASSIGN_OR_RETURN(const std::shared_ptr<Communicator> found, Find(communicator));
  MOE_RETURN_IF_ERROR(Note(FakeNcclCall::kFinalize, found.get()));
  if (found->state != State::kReady) return Misuse("finalizing a communicator that is not settled");
  if (!found->running.empty()) return Misuse("finalizing a communicator with transfers in flight");
  found->state = State::kFinalizing;
  found->pair->finalized[found->rank] = true;
  found->polls_left = static_cast<int>(random_() % 3);
  return Status::Ok();
}

Status FakeNccl::Destroy(NcclCommunicator communicator) {
  const UncountedAllocations uncounted;
  const Lock lock(fabric_.mutex_);
  MOE_ASSIGN_OR_RETURN(const std::shared_ptr<Communicator> found, Find(communicator));
  MOE_RETURN_IF_ERROR(Note(FakeNcclCall::kDestroy, found.get()));
  if (found->state != State::kFinalizing) return Misuse("destroying a communicator that was not finalized");
  found->state = State::kEnded;
  return Status::Ok();
}

Status FakeNccl::Abort(NcclCommunicator communicator) {
  const UncountedAllocations uncounted;
  const Lock lock(fabric_.mutex_);
  MOE_ASSIGN_OR_RETURN(const std::shared_ptr<Communicator> found, Find(communicator));
  MOE_RETURN_IF_ERROR(Note(FakeNcclCall::kAbort, found.get()));
  if (group_depth_ > 0) return Misuse("aborting within a group");
  found->state = State::kEnded;
  found->pair->aborted[found->rank] = true;
  found->asked.clear();
  return Status::Ok();
}

}  // namespace moe
