// The device's meaning of kernels/cuda/execution.cuh.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define MOE_KERNEL __global__
#define MOE_DEVICE __device__ __forceinline__
#define MOE_SHARED(type, name, size) __shared__ type name[size]
#define MOE_UNROLL_LOOP _Pragma("unroll")

namespace moe::cuda {

__device__ __forceinline__ Grid BlockIndex() { return {blockIdx.x, blockIdx.y, blockIdx.z}; }
__device__ __forceinline__ unsigned ThreadIndex() { return threadIdx.x; }
__device__ __forceinline__ unsigned BlockThreads() { return blockDim.x; }
__device__ __forceinline__ Grid GridBlocks() { return {gridDim.x, gridDim.y, gridDim.z}; }

__device__ __forceinline__ void Barrier() { __syncthreads(); }

template <typename T>
__device__ __forceinline__ T Shuffle(T value, unsigned lane, unsigned mask = kWholeWarp) {
  return __shfl_sync(mask, value, static_cast<int>(lane));
}
template <typename T>
__device__ __forceinline__ T ShuffleXor(T value, unsigned lanes, unsigned mask = kWholeWarp) {
  return __shfl_xor_sync(mask, value, static_cast<int>(lanes));
}
/// The value of the lane `distance` below; a lane without one keeps its own.
template <typename T>
__device__ __forceinline__ T ShuffleUp(T value, unsigned distance, unsigned mask = kWholeWarp) {
  return __shfl_up_sync(mask, value, distance);
}
__device__ __forceinline__ unsigned Ballot(bool vote, unsigned mask = kWholeWarp) { return __ballot_sync(mask, vote); }
__device__ __forceinline__ unsigned CountBits(unsigned bits) { return static_cast<unsigned>(__popc(bits)); }

template <typename T>
__device__ __forceinline__ T* DynamicShared(unsigned first = 0) {
  extern __shared__ __align__(16) unsigned char moe_dynamic_shared[];
  return reinterpret_cast<T*>(moe_dynamic_shared) + first;
}
template <typename Array>
__device__ __forceinline__ void AtomicAdd(Array&& array, unsigned index, unsigned value) {
  atomicAdd(&array[index], value);
}

__device__ __forceinline__ float Fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ std::uint32_t BitsOf(float value) { return __float_as_uint(value); }
__device__ __forceinline__ float FloatOf(std::uint32_t bits) { return __uint_as_float(bits); }

__device__ __forceinline__ std::uint16_t NarrowBf16(float value) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(value));
}
__device__ __forceinline__ std::uint16_t NarrowF16(float value) { return __half_as_ushort(__float2half_rn(value)); }
__device__ __forceinline__ float WidenBf16(std::uint16_t bits) {
  return __uint_as_float(static_cast<unsigned>(bits) << 16);
}
__device__ __forceinline__ float WidenF16(std::uint16_t bits) { return __half2float(__ushort_as_half(bits)); }

/// Enqueues the kernel; DeviceApi::LaunchStatus has what came of it.
template <typename... Parameters, typename... Arguments>
void Launch(const char* /*name*/, void (*kernel)(Parameters...), const LaunchShape& shape, Arguments... arguments) {
  const dim3 blocks(shape.blocks.x, shape.blocks.y, shape.blocks.z);
  kernel<<<blocks, shape.threads, shape.shared_bytes, static_cast<cudaStream_t>(shape.stream.handle)>>>(arguments...);
}

}  // namespace moe::cuda
