// Who hosts which experts of one layer while a placement is being made, and how long that keeps each worker busy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace moe {

/// The workers that share a layer's experts.
struct WorkerRoom {
  std::vector<double> speeds;  // (workers)
  std::vector<int> slots;      // (workers): most experts of each
  int total_slots = 0;         // most of all together

  int workers() const { return static_cast<int>(slots.size()); }
};

/// Each replica of an expert takes an equal share of its load; a worker's time is the sum of its shares over its speed.
/// Adding and removing cost time in proportion to the expert's replicas; nothing allocates after construction.
class LayerAssignment {
 public:
  /// `room` and `load`, (experts), outlive it. Nobody hosts anything at first.
  LayerAssignment(const WorkerRoom& room, std::span<const double> load);

  int experts() const { return static_cast<int>(load_.size()); }
  int workers() const { return room_->workers(); }
  const WorkerRoom& room() const { return *room_; }
  std::span<const double> load() const { return load_; }

  bool Hosts(int worker, int expert) const { return hosted_[At(worker, expert)] != 0; }
  /// By worker, nonzero where it hosts the expert.
  std::span<const std::uint8_t> hosts(int expert) const {
    return std::span(hosted_).subspan(At(0, expert), static_cast<std::size_t>(workers()));
  }
  std::span<const int> slots(int worker) const {
    return std::span(slots_).subspan(static_cast<std::size_t>(worker) * stride_,
                                     static_cast<std::size_t>(sizes_[static_cast<std::size_t>(worker)]));
  }
  int replicas(int expert) const { return replicas_[static_cast<std::size_t>(expert)]; }
  /// Of the expert's load, to each replica.
  double share(int expert) const { return shares_[static_cast<std::size_t>(expert)]; }
  double share_of(int expert, int replicas) const { return load_[static_cast<std::size_t>(expert)] / replicas; }
  double speed(int worker) const { return room_->speeds[static_cast<std::size_t>(worker)]; }
  double load_on(int worker) const { return loads_[static_cast<std::size_t>(worker)]; }
  double time(int worker) const { return loads_[static_cast<std::size_t>(worker)] / speed(worker); }
  int total() const { return total_; }
  /// Of this worker, and of all together.
  bool HasSlot(int worker) const {
    return sizes_[static_cast<std::size_t>(worker)] < room_->slots[static_cast<std::size_t>(worker)];
  }
  bool HasTotal() const { return total_ < room_->total_slots; }

  /// The worker that takes longest, the lowest of several.
  int slowest() const;
  double slowest_time() const { return time(slowest()); }

  /// The worker does not host the expert yet, and has a free slot.
  void Add(int worker, int expert);
  /// The worker hosts it.
  void Remove(int worker, int expert);

 private:
  std::size_t At(int worker, int expert) const {
    return static_cast<std::size_t>(expert) * static_cast<std::size_t>(workers()) + static_cast<std::size_t>(worker);
  }
  void ShareAmong(int expert, int replicas);

  const WorkerRoom* room_;
  std::span<const double> load_;
  std::size_t stride_ = 0;
  std::vector<std::uint8_t> hosted_;  // (experts, workers)
  std::vector<int> slots_;            // (workers, stride): the first sizes_[w] of each
  std::vector<int> sizes_;            // (workers)
  std::vector<int> replicas_;         // (experts)
  std::vector<double> shares_;        // (experts)
  std::vector<double> loads_;         // (workers)
  int total_ = 0;
};

}  // namespace moe
