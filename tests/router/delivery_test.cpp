#include "router/delivery.h"

#include <gtest/gtest.h>

#include <future>
#include <memory>
#include <random>
#include <thread>
#include <vector>

namespace moe {
namespace {

// Counts up in steps that the engine thread announces; notes what the delivery thread has seen of it.
class Counted final : public Deliverable {
 public:
  void Deliver() override {
    EXPECT_FALSE(delivering_.exchange(true)) << "delivered by two threads at once";
    ++deliveries_;
    seen_ = made_.load();
    delivering_.store(false);
  }
  void Make() { made_.fetch_add(1); }

  // Once the delivery thread has ended.
  int made() const { return made_.load(); }
  int seen() const { return seen_; }
  int deliveries() const { return deliveries_; }

 private:
  std::atomic<int> made_{0};
  std::atomic<bool> delivering_{false};
  int seen_ = 0;
  int deliveries_ = 0;
};

TEST(DeliveryTest, WhatIsAnnouncedLastIsAlwaysSeen) {
  constexpr std::size_t kDeliverables = 9;
  std::vector<std::shared_ptr<Counted>> deliverables;
  {
    Delivery delivery(kDeliverables);
    std::vector<std::shared_ptr<OutputListener>> listeners;
    for (std::size_t i = 0; i < kDeliverables; ++i) {
      deliverables.push_back(std::make_shared<Counted>());
      listeners.push_back(delivery.Listener(deliverables.back()));
    }
    std::thread engine([&] {
      std::mt19937_64 random(4);
      for (int n = 0; n < 100'000; ++n) {
        // Bursts on one, and all in turn: rings that are nearly empty and full.
        const std::size_t i = n % 1000 < 500 ? random() % kDeliverables : static_cast<std::size_t>(n) % kDeliverables;
        deliverables[i]->Make();
        listeners[i]->OnOutput();
      }
    });
    engine.join();
  }  // returns when everything announced is delivered
  for (const auto& deliverable : deliverables) {
    EXPECT_GT(deliverable->made(), 0);
    EXPECT_EQ(deliverable->seen(), deliverable->made());
    EXPECT_LE(deliverable->deliveries(), deliverable->made());
  }
}

// Holds the delivery thread until it is let go.
class Gate final : public Deliverable {
 public:
  void Deliver() override {
    ++deliveries_;
    entered_.set_value();
    open_.get_future().wait();
  }
  void WaitEntered() { entered_.get_future().wait(); }
  void Open() { open_.set_value(); }
  int deliveries() const { return deliveries_; }

 private:
  std::promise<void> entered_;
  std::promise<void> open_;
  int deliveries_ = 0;
};

TEST(DeliveryTest, ManyAnnouncementsBeforeADeliveryAreOneDelivery) {
  const auto gate = std::make_shared<Gate>();
  const auto counted = std::make_shared<Counted>();
  {
    Delivery delivery(2);
    const auto gate_listener = delivery.Listener(gate);
    const auto listener = delivery.Listener(counted);
    gate_listener->OnOutput();
    gate->WaitEntered();
    for (int i = 0; i < 1000; ++i) {
      counted->Make();
      listener->OnOutput();
    }
    gate->Open();
  }
  EXPECT_EQ(gate->deliveries(), 1);
  EXPECT_EQ(counted->deliveries(), 1);
  EXPECT_EQ(counted->seen(), 1000);
}

TEST(DeliveryTest, WhatIsAnnouncedDuringADeliveryIsDeliveredAgain) {
  // The gate's own output grows while it is being delivered.
  class Growing final : public Deliverable {
   public:
    void Deliver() override {
      if (++deliveries == 1) {
        entered.set_value();
        open.get_future().wait();
      }
    }
    std::promise<void> entered, open;
    int deliveries = 0;
  };
  const auto growing = std::make_shared<Growing>();
  {
    Delivery delivery(1);
    const auto listener = delivery.Listener(growing);
    listener->OnOutput();
    growing->entered.get_future().wait();
    listener->OnOutput();
    growing->open.set_value();
  }
  EXPECT_EQ(growing->deliveries, 2);
}

TEST(DeliveryTest, TheEndWaitsForWhatIsStillInTheRing) {
  for (int round = 0; round < 300; ++round) {
    std::vector<std::shared_ptr<Counted>> deliverables;
    {
      Delivery delivery(5);
      for (int i = 0; i < 5; ++i) {
        deliverables.push_back(std::make_shared<Counted>());
        deliverables.back()->Make();
        delivery.Listener(deliverables.back())->OnOutput();
      }
    }
    for (const auto& deliverable : deliverables) {
      ASSERT_EQ(deliverable->seen(), 1);
      ASSERT_EQ(deliverable.use_count(), 1) << "its ticket is still held";
    }
  }
}

}  // namespace
}  // namespace moe
