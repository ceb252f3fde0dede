// Little-endian numbers in bytes, for both halves of the trace format.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace moe {

static_assert(std::endian::native == std::endian::little, "traces are written as the machine holds them");

template <typename T>
void PutNumber(T value, std::span<std::byte> out, std::size_t at) {
  std::memcpy(out.subspan(at, sizeof(T)).data(), &value, sizeof(T));
}

template <typename T>
T GetNumber(std::span<const std::byte> in, std::size_t at) {
  T value{};
  std::memcpy(&value, in.subspan(at, sizeof(T)).data(), sizeof(T));
  return value;
}

}  // namespace moe
