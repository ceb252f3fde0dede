#include "bench/engine/roofs.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "bench/engine/dot_instructions.h"
#include "bench/engine/roof_kernels.h"
#include "core/aligned_buffer.h"
#include "core/clock.h"
#include "core/machine.h"
#include "core/thread_pool.h"

namespace moe {
namespace {

constexpr int kLeastPasses = 3;
// A round takes about six cycles and a pass some milliseconds, so that waking the threads (5–50 µs) does not show.
constexpr std::size_t kRoundsAPass = std::size_t{1} << 21;

int AllowedProcessors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? std::max(1, CPU_COUNT(&set)) : 1;
}

// The best rate of passes of `work` units each, for about `seconds`.
template <typename Pass>
double BestRate(double seconds, const Pass& pass) {
  (void)pass();  // wakes threads, touches memory, lets the clock of the processor rise
  double best = 0;
  const TimePoint begin = Clock::now();
  for (int i = 0; i < kLeastPasses || Seconds(Clock::now() - begin) < seconds; ++i) {
    const TimePoint start = Clock::now();
    const double units = pass();
    best = std::max(best, units / Seconds(Clock::now() - start));
  }
  return best;
}

// A float of each thread's own, a cache line apart.
class Sinks {
 public:
  explicit Sinks(std::size_t threads) : values_(threads * kStride, 1.0f) {}
  float& operator[](std::size_t thread) { return values_[thread * kStride]; }

 private:
  static constexpr std::size_t kStride = kAlignment / sizeof(float);
  std::vector<float> values_;
};

}  // namespace

std::size_t ColdBytes() {
  constexpr long kUnknownCache = 64 << 20;
  long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
  if (cache <= 0) cache = kUnknownCache;
  return std::min(8 * static_cast<std::size_t>(cache), static_cast<std::size_t>(MachineMemoryBytes()) / 8);
}

Roofs MeasureRoofs(const RoofOptions& options) {
  Roofs roofs;
  roofs.threads = options.threads > 0 ? options.threads : AllowedProcessors();
  roofs.buffer_bytes = options.buffer_bytes > 0 ? options.buffer_bytes : ColdBytes();
  ThreadPool pool(roofs.threads);
  const auto threads = static_cast<std::size_t>(roofs.threads);
  Sinks sinks(threads);

  const std::size_t slice_floats = std::max<std::size_t>(1, roofs.buffer_bytes / sizeof(float) / threads);
  roofs.buffer_bytes = slice_floats * threads * sizeof(float);
  AlignedBuffer<float> buffer(slice_floats * threads);
  const auto slice = [&](std::size_t i) { return buffer.span().subspan(i * slice_floats, slice_floats); };
  // Written once: pages that were never written are all the same page of zeros.
  pool.ParallelFor(threads, [&](std::size_t i, int) { std::fill(slice(i).begin(), slice(i).end(), 1e-3f); });
  roofs.read_bandwidth_bytes_per_s = BestRate(options.seconds, [&] {
    pool.ParallelFor(threads, [&](std::size_t i, int) { sinks[i] = SumOf(slice(i)); });
    return static_cast<double>(buffer.bytes());
  });
  roofs.peak_flops = BestRate(options.seconds, [&] {
    std::atomic<double> operations = 0;
    pool.ParallelFor(threads, [&](std::size_t i, int) {
      sinks[i] = 1;
      operations += MultiplyAdd(kRoundsAPass, sinks[i]);
    });
    return operations.load();
  });
  return roofs;
}

std::vector<DotRoof> MeasureDotRoofs(const RoofOptions& options) {
  ThreadPool pool(options.threads > 0 ? options.threads : AllowedProcessors());
  const auto threads = static_cast<std::size_t>(pool.threads());
  Sinks sinks(threads);
  std::vector<DotRoof> roofs;
  for (const DotInstruction& instruction : DotInstructions()) {
    if (!instruction.available()) continue;
    const double rate = BestRate(options.seconds, [&] {
      std::atomic<double> operations = 0;
      pool.ParallelFor(threads, [&](std::size_t i, int) {
        sinks[i] = 1;
        operations += instruction.run(kRoundsAPass, sinks[i]);
      });
      return operations.load();
    });
    roofs.push_back({.format = std::string(instruction.format),
                     .instruction_set = std::string(instruction.instruction_set),
                     .operations_per_s = rate});
  }
  return roofs;
}

}  // namespace moe
