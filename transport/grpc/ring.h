// A queue of fixed capacity.
#pragma once

#include <cstddef>
#include <vector>

#include "core/check.h"

namespace moe {

template <typename T>
class Ring {
 public:
  explicit Ring(std::size_t capacity) : items_(capacity) {}

  bool empty() const { return count_ == 0; }
  std::size_t size() const { return count_; }
  const T& front() const { return items_[first_]; }
  void Push(const T& item) {
    MOE_CHECK(count_ < items_.size(), "a ring that is full");
    items_[(first_ + count_++) % items_.size()] = item;
  }
  T Pop() {
    MOE_CHECK(count_ > 0, "a ring that is empty");
    const T item = items_[first_];
    first_ = (first_ + 1) % items_.size();
    --count_;
    return item;
  }
  /// Drops all but the first `count`.
  void Truncate(std::size_t count) { count_ = count < count_ ? count : count_; }

 private:
  std::vector<T> items_;
  std::size_t first_ = 0;
  std::size_t count_ = 0;
};

}  // namespace moe
