// What a kernel may use of the machine it runs on, with two meanings: under nvcc the device, otherwise the emulation of
// one on the CPU (tests/emulation/), which checks what a device would not say. Kernels use nothing else of CUDA, so
// that the very sources that run on a device are tested without one.
//
// Both meanings define, in moe::cuda:
//   MOE_KERNEL, MOE_DEVICE          before a kernel, and before a function that kernels call
//   MOE_SHARED(type, name, size)    an array that the threads of a block share
//   DynamicShared<T>(first)         the one whose bytes the launch has given, from element `first` on
//   BlockIndex(), GridBlocks(), ThreadIndex(), BlockThreads()
//   Barrier()                       all threads of a block meet; what they wrote to shared memory is then seen
//   Shuffle, ShuffleXor, ShuffleUp, Ballot   among the lanes of `mask`, all of which take part
//   AtomicAdd                       on shared memory; integers only, so that the order does not show
//   Fma                             nothing else fuses (--fmad=false)
//   BitsOf, FloatOf, NarrowBf16, NarrowF16, WidenBf16, WidenF16   as kernels/weight_type.h converts
//   Launch(name, kernel, shape, arguments…)
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/device_api.h"

namespace moe::cuda {

inline constexpr unsigned kWarpLanes = 32;
inline constexpr unsigned kWholeWarp = 0xffffffffu;

/// Blocks of a launch, or one of them.
struct Grid {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
};

struct LaunchShape {
  Grid blocks;
  unsigned threads = 0;  // of a block; whole warps
  std::size_t shared_bytes = 0;
  DeviceStream stream;
};

}  // namespace moe::cuda

#ifdef __CUDACC__
#include "kernels/cuda/device_execution.cuh"
#else
#include MOE_CUDA_EMULATION  // tests/emulation/execution.h; named by the build of the tests
#endif

namespace moe::cuda {

MOE_DEVICE unsigned LaneIndex() { return ThreadIndex() % kWarpLanes; }
MOE_DEVICE unsigned WarpIndex() { return ThreadIndex() / kWarpLanes; }

/// The largest of the warp's values, in every lane. Of no use where one may be NaN.
MOE_DEVICE float WarpMax(float value) {
  for (unsigned distance = kWarpLanes / 2; distance > 0; distance /= 2) {
    const float other = ShuffleXor(value, distance);
    value = other > value ? other : value;
  }
  return value;
}

}  // namespace moe::cuda
