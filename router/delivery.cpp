#include "router/delivery.h"

#include <bit>

#include "core/check.h"

namespace moe {

class Delivery::Ticket final : public OutputListener, public std::enable_shared_from_this<Ticket> {
 public:
  Ticket(Delivery& delivery, std::shared_ptr<Deliverable> deliverable)
      : delivery_(delivery), deliverable_(std::move(deliverable)) {}

  void OnOutput() override {
    if (!queued_.exchange(true)) delivery_.Push(shared_from_this());
  }

  void Deliver() {
    // From here on new output queues the ticket again, so that what Deliver does not see yet is not missed.
    queued_.store(false);
    deliverable_->Deliver();
  }

 private:
  Delivery& delivery_;
  const std::shared_ptr<Deliverable> deliverable_;
  std::atomic<bool> queued_{false};
};

// A power of two, so that places follow one another where the counts wrap round. One place is for the last ticket.
Delivery::Delivery(std::size_t capacity) : ring_(std::bit_ceil(capacity + 1)), thread_([this] { Run(); }) {}

Delivery::~Delivery() {
  Push(nullptr);  // the last one: whoever pushes has ended
  thread_.join();
}

std::shared_ptr<OutputListener> Delivery::Listener(std::shared_ptr<Deliverable> deliverable) {
  return std::make_shared<Ticket>(*this, std::move(deliverable));
}

void Delivery::Push(std::shared_ptr<Ticket> ticket) {
  const std::uint32_t pushed = pushed_.load();
  MOE_CHECK(pushed - popped_.load() < ring_.size(), "a call is in the delivery ring twice");
  ring_[pushed % ring_.size()] = std::move(ticket);
  pushed_.store(pushed + 1);
  pushed_.notify_one();
}

void Delivery::Run() {
  std::uint32_t next = 0;
  while (true) {
    pushed_.wait(next);
    while (next != pushed_.load()) {
      const std::shared_ptr<Ticket> ticket = std::move(ring_[next % ring_.size()]);
      popped_.store(++next);
      if (ticket == nullptr) return;
      ticket->Deliver();
    }
  }
}

}  // namespace moe
