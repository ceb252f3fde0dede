// Memory of a device that is played by the CPU: of the exact size, so that the address sanitizer finds what lies beside
// it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <span>
#include <vector>

namespace moe::cuda {

template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t size, T value = {}) : memory_(new T[size]), size_(size) {
    std::fill_n(memory_.get(), size, value);
  }
  explicit DeviceArray(std::span<const T> values) : DeviceArray(values.size()) {
    std::ranges::copy(values, memory_.get());
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(std::span<const T>(values)) {}

  T* data() { return memory_.get(); }
  std::span<T> span() { return {memory_.get(), size_}; }
  std::vector<T> values() { return {memory_.get(), memory_.get() + size_}; }
  T& operator[](std::size_t i) { return memory_[i]; }
  std::size_t size() const { return size_; }

 private:
  std::unique_ptr<T[]> memory_;
  std::size_t size_;
};

}  // namespace moe::cuda
