// The two roofs of a machine: how fast it reads memory, and how fast it multiplies. A speed says little; its share of
// these says how much is left.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace moe {

struct Roofs {
  double read_bandwidth_bytes_per_s = 0;
  double peak_flops = 0;  // fp32 fused multiply-adds, two operations each
  int threads = 0;
  std::size_t buffer_bytes = 0;  // that were read
};

/// How fast one instruction multiplies and adds, on all threads.
struct DotRoof {
  std::string format;           // "fp32", "bf16", "int8"
  std::string instruction_set;  // "avx512_vnni"
  double operations_per_s = 0;  // a multiplication and an addition are two
};

struct RoofOptions {
  int threads = 0;               // 0: every processor that this process may use
  std::size_t buffer_bytes = 0;  // 0: eight times the last-level cache, at most an eighth of the memory
  double seconds = 0.5;          // for each roof, about
};

/// Measures both, each as the best of several passes after one that is not counted. Nothing else should run meanwhile.
Roofs MeasureRoofs(const RoofOptions& options);

/// Every instruction of bench/engine/dot_instructions.h that this machine has.
std::vector<DotRoof> MeasureDotRoofs(const RoofOptions& options);

/// Eight times the last-level cache, at most an eighth of the memory: what no cache holds.
std::size_t ColdBytes();

}  // namespace moe
