// Memory for vector kernels: 64-byte aligned, huge pages advised when large, zeroed.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>

#include "core/check.h"

namespace moe {

inline constexpr std::size_t kAlignment = 64;  // a cache line, and an AVX-512 register

/// Zeroed, aligned memory of at least `bytes` bytes; aborts when the machine has none (the callers check sizes against
/// the machine beforehand). Large blocks are advised to be huge pages and are not touched before first use.
void* AllocateAligned(std::size_t bytes);
void FreeAligned(void* memory, std::size_t bytes);

/// A fixed number of elements of a trivial type.
template <typename T>
class AlignedBuffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(std::size_t size)
      : data_(size == 0 ? nullptr : static_cast<T*>(AllocateAligned(size * sizeof(T))), Free{size * sizeof(T)}),
        size_(size) {}
  AlignedBuffer(AlignedBuffer&& other) noexcept : data_(std::move(other.data_)), size_(std::exchange(other.size_, 0)) {}
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    data_ = std::move(other.data_);
    size_ = std::exchange(other.size_, 0);
    return *this;
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  std::size_t size() const { return size_; }
  std::size_t bytes() const { return size_ * sizeof(T); }
  std::span<T> span() { return {data_.get(), size_}; }
  std::span<const T> span() const { return {data_.get(), size_}; }
  T& operator[](std::size_t i) { return data_.get()[i]; }
  const T& operator[](std::size_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    std::size_t bytes = 0;
    void operator()(T* memory) const { FreeAligned(memory, bytes); }
  };
  std::unique_ptr<T, Free> data_;
  std::size_t size_ = 0;
};

}  // namespace moe
