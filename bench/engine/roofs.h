// What the machine could do at best: how fast it reads memory, and how fast it multiplies. A speed says little; its
// share of these roofs says how much is left. On a shared machine both change within minutes, so each is measured a
// pass at a time, right beside what is set against it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bench/engine/dot_instructions.h"
#include "core/aligned_buffer.h"
#include "core/thread_pool.h"

namespace moe {

/// Memory that is read as fast as the machine can.
class ReadRoof {
 public:
  /// `memory` outlives this.
  void Add(std::span<const std::byte> memory);

  struct Reading {
    double bytes_per_s = 0;
    std::uint32_t sum = 0;  // of SumOf of the pieces: what was really read
  };
  /// Reads all of it once, on all threads.
  Reading Pass(ThreadPool& pool) const;

 private:
  std::vector<std::span<const std::byte>> pieces_;  // that threads share out
  std::size_t bytes_ = 0;
};

/// One pass of some milliseconds on all threads; operations a second, of which a multiplication and an addition are
/// two.
double DotPass(ThreadPool& pool, const DotInstruction& instruction);

struct RoofOptions {
  int threads = 0;               // 0: every processor that this thread may use
  std::size_t buffer_bytes = 0;  // 0: ColdBytes()
  double seconds = 0.05;         // for each roof, about
};

/// How fast one instruction multiplies and adds, on all threads.
struct DotRoof {
  std::string format;           // "fp32", "bf16", "int8"
  std::string instruction_set;  // "avx512_vnni"
  double operations_per_s = 0;
};

/// Every instruction of bench/engine/dot_instructions.h that this machine has, each as the best of several passes.
std::vector<DotRoof> MeasureDotRoofs(const RoofOptions& options);

/// What a machine does at one moment, on all threads: medians of some passes.
struct MachineRates {
  double read_bytes_per_s = 0;
  // Operations with the instructions that the kernels in use multiply floats and integers with; none: no loop for them.
  std::optional<double> fp32_operations_per_s;
  std::optional<double> int8_operations_per_s;
};

/// Of `a` and `b`, taken before and after what is set against them.
MachineRates Mean(const MachineRates& a, const MachineRates& b);

/// Measures the machine again and again, with threads and a buffer that it keeps.
class MachineProbe {
 public:
  /// `kernels` is Kernels::name. The threads may run where the calling one may now.
  MachineProbe(const RoofOptions& options, std::string_view kernels);

  MachineRates Measure();

 private:
  const double seconds_;
  const DotInstruction* const fp32_;
  const DotInstruction* const int8_;
  ThreadPool pool_;
  AlignedBuffer<std::byte> buffer_;
  ReadRoof read_;
};

/// Eight times the last-level cache, at most an eighth of the memory: what no cache holds.
std::size_t ColdBytes();

}  // namespace moe
