// Memory that another process of the same user on the same machine can map, and that goes with the last of them: there
// is nothing to clean up after a process that was killed.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "core/status.h"

namespace moe {

class SharedMemory {
 public:
  /// Zeroed; takes memory where it is touched only. RESOURCE_EXHAUSTED when the kernel refuses.
  static Result<SharedMemory> Create(std::size_t bytes);

  /// Maps what another process has made, or this one, which must still have it. NOT_FOUND when it is not to be had
  /// here: another machine, or containers that do not see each other's processes. INVALID_ARGUMENT when it is not a
  /// name, or what is there is not of this user, not of `bytes` bytes or could still change its length.
  static Result<SharedMemory> Open(std::string_view name, std::size_t bytes);

  SharedMemory(SharedMemory&& other) noexcept
      : file_(std::exchange(other.file_, -1)),
        memory_(std::exchange(other.memory_, {})),
        name_(std::move(other.name_)) {}
  SharedMemory& operator=(SharedMemory&& other) noexcept;
  ~SharedMemory();

  /// Page-aligned.
  std::span<std::byte> span() const { return memory_; }
  /// What Open takes, printable ASCII.
  const std::string& name() const { return name_; }

 private:
  SharedMemory(int file, std::span<std::byte> memory, std::string name)
      : file_(file), memory_(memory), name_(std::move(name)) {}

  int file_ = -1;  // of the one who made it
  std::span<std::byte> memory_;
  std::string name_;
};

}  // namespace moe
