// Hands finished and growing outputs from the engine thread to gRPC on a thread of its own, so that a step neither
// allocates nor waits for a stream.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "router/sequence.h"

namespace moe {

/// Something that can carry on once more of its output is there.
class Deliverable {
 public:
  virtual ~Deliverable() = default;
  /// Sends what can be sent now. By the delivery thread only.
  virtual void Deliver() = 0;
};

/// A ring from one engine thread to one delivery thread. Every deliverable is in it at most once, so its capacity, the
/// limit of open calls, cannot be exceeded.
class Delivery {
 public:
  explicit Delivery(std::size_t capacity);
  /// Not before the engine thread has ended.
  ~Delivery();
  Delivery(const Delivery&) = delete;
  Delivery& operator=(const Delivery&) = delete;

  /// Listens on behalf of one deliverable; shared by its sequences.
  std::shared_ptr<OutputListener> Listener(std::shared_ptr<Deliverable> deliverable);

 private:
  class Ticket;
  void Push(std::shared_ptr<Ticket> ticket);  // null ends the thread
  void Run();

  std::vector<std::shared_ptr<Ticket>> ring_;
  std::atomic<std::uint32_t> pushed_{0};  // by the engine thread; the delivery thread waits on it
  std::atomic<std::uint32_t> popped_{0};  // by the delivery thread
  std::thread thread_;
};

}  // namespace moe
