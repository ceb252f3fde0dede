// The emulation's meaning of kernels/cuda/execution.cuh, which includes this file where there is no nvcc.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <tuple>
#include <type_traits>

#include "kernels/weight_type.h"
#include "tests/emulation/block.h"
#include "tests/emulation/launch.h"
#include "tests/emulation/shared_memory.h"

#define MOE_KERNEL
#define MOE_DEVICE inline
#define MOE_SHARED(type, name, size) static thread_local ::moe::emulation::SharedArray<type, size> name(#name)
#define MOE_UNROLL_LOOP

namespace moe::cuda {

using Site = std::source_location;
using emulation::Block;

inline Grid AsGrid(emulation::Index3 index) { return {index.x, index.y, index.z}; }
inline Grid BlockIndex() { return AsGrid(Block::Current().index()); }
inline Grid GridBlocks() { return AsGrid(Block::Current().grid()); }
inline unsigned ThreadIndex() { return Block::Current().thread(); }
inline unsigned BlockThreads() { return Block::Current().threads(); }

inline void Barrier(const Site& site = Site::current()) { Block::Current().Barrier(site); }

/// The values that the lanes of `mask` bring.
template <typename T>
std::array<T, kWarpLanes> GatherLanes(const T& mine, unsigned mask, const Site& site) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= Block::kMaxLaneBytes);
  const Block::Lanes& lanes = Block::Current().Gather(mask, &mine, sizeof(T), site);
  std::array<T, kWarpLanes> values{};
  for (unsigned lane = 0; lane < kWarpLanes; ++lane)
    if ((mask >> lane & 1) != 0) std::memcpy(&values[lane], lanes[lane].data(), sizeof(T));
  return values;
}

template <typename T>
T ValueOf(const std::array<T, kWarpLanes>& values, unsigned lane, unsigned mask) {
  if (lane < kWarpLanes && (mask >> lane & 1) != 0) return values[lane];
  Block::Current().Report(Cat("asks lane ", lane, " for a value, which does not take part"));
  return {};
}

template <typename T>
T Shuffle(T value, unsigned lane, unsigned mask = kWholeWarp, const Site& site = Site::current()) {
  return ValueOf(GatherLanes(value, mask, site), lane, mask);
}
template <typename T>
T ShuffleXor(T value, unsigned lanes, unsigned mask = kWholeWarp, const Site& site = Site::current()) {
  const unsigned lane = ThreadIndex() % kWarpLanes;
  return ValueOf(GatherLanes(value, mask, site), lane ^ lanes, mask);
}
/// The value of the lane `distance` below; a lane without one keeps its own.
template <typename T>
T ShuffleUp(T value, unsigned distance, unsigned mask = kWholeWarp, const Site& site = Site::current()) {
  const unsigned lane = ThreadIndex() % kWarpLanes;
  const std::array<T, kWarpLanes> values = GatherLanes(value, mask, site);
  return lane < distance ? value : ValueOf(values, lane - distance, mask);
}
inline unsigned Ballot(bool vote, unsigned mask = kWholeWarp, const Site& site = Site::current()) {
  const std::array<unsigned char, kWarpLanes> votes = GatherLanes(static_cast<unsigned char>(vote ? 1 : 0), mask, site);
  unsigned bits = 0;
  for (unsigned lane = 0; lane < kWarpLanes; ++lane) bits |= static_cast<unsigned>(votes[lane]) << lane;
  return bits;
}
inline unsigned CountBits(unsigned bits) { return static_cast<unsigned>(std::popcount(bits)); }

template <typename T>
emulation::SharedView<T> DynamicShared(unsigned first = 0) {
  return emulation::DynamicSharedView<T>(first);
}
template <typename T>
void AtomicAdd(const emulation::SharedView<T>& array, unsigned index, std::type_identity_t<T> value) {
  array.Add(index, value);
}

inline float Fma(float a, float b, float c) { return std::fma(a, b, c); }
inline std::uint32_t BitsOf(float value) { return std::bit_cast<std::uint32_t>(value); }
inline float FloatOf(std::uint32_t bits) { return std::bit_cast<float>(bits); }
inline std::uint16_t NarrowBf16(float value) { return F32ToBf16(value); }
inline std::uint16_t NarrowF16(float value) { return F32ToF16(value); }
inline float WidenBf16(std::uint16_t bits) { return FloatOf(static_cast<std::uint32_t>(bits) << 16); }
inline float WidenF16(std::uint16_t bits) { return F16ToF32(bits); }

/// Enqueues the kernel with copies of its arguments, as a device does.
template <typename... Parameters, typename... Arguments>
void Launch(const char* name, void (*kernel)(Parameters...), const LaunchShape& shape, Arguments... arguments) {
  emulation::Enqueue(shape.stream, name, [name, kernel, shape, copies = std::tuple<Parameters...>(arguments...)] {
    const emulation::Index3 blocks = {shape.blocks.x, shape.blocks.y, shape.blocks.z};
    const auto body = [&] { std::apply(kernel, copies); };
    emulation::RunGrid(name, blocks, shape.threads, shape.shared_bytes, body);
  });
}

}  // namespace moe::cuda
