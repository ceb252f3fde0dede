#include "bench/engine/roofs.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>

#include "bench/engine/roof_kernels.h"
#include "bench/statistics.h"
#include "core/clock.h"
#include "core/machine.h"

namespace moe {
namespace {

constexpr int kLeastPasses = 3;
// A thread that is held up by another program leaves its share to the others; to fetch a piece takes a part in a
// hundred of the time to read it.
constexpr std::size_t kPieceBytes = std::size_t{1} << 20;
// A round takes about six cycles and a pass some milliseconds, so that waking the threads (5–50 µs) does not show.
constexpr std::size_t kRoundsAPass = std::size_t{1} << 21;

int ThreadsOf(const RoofOptions& options) {
  return options.threads > 0 ? options.threads : static_cast<int>(AllowedProcessors().size());
}

/// The rates of passes for about `seconds`, after one that wakes threads and lets the clock of the processor rise.
template <typename Pass>
std::vector<double> RatesOf(double seconds, const Pass& pass) {
  (void)pass();
  std::vector<double> rates;
  const TimePoint begin = Clock::now();
  while (static_cast<int>(rates.size()) < kLeastPasses || Seconds(Clock::now() - begin) < seconds)
    rates.push_back(pass());
  return rates;
}

template <typename Pass>
double MedianRate(double seconds, const Pass& pass) {
  return Summarize(RatesOf(seconds, pass))->median;
}

}  // namespace

void ReadRoof::Add(std::span<const std::byte> memory) {
  bytes_ += memory.size();
  for (; !memory.empty(); memory = memory.subspan(pieces_.back().size()))
    pieces_.push_back(memory.first(std::min(memory.size(), kPieceBytes)));
}

ReadRoof::Reading ReadRoof::Pass(ThreadPool& pool) const {
  std::atomic<std::uint32_t> sum = 0;
  const TimePoint begin = Clock::now();
  pool.ParallelFor(pieces_.size(), [&](std::size_t i, int) { sum += SumOf(pieces_[i]); });
  return {.bytes_per_s = static_cast<double>(bytes_) / Seconds(Clock::now() - begin), .sum = sum};
}

double DotPass(ThreadPool& pool, const DotInstruction& instruction) {
  std::atomic<double> operations = 0;
  const TimePoint begin = Clock::now();
  pool.ParallelFor(static_cast<std::size_t>(pool.threads()), [&](std::size_t, int) {
    float sink = 1;
    operations += instruction.run(kRoundsAPass, sink);
  });
  return operations / Seconds(Clock::now() - begin);
}

std::vector<DotRoof> MeasureDotRoofs(const RoofOptions& options) {
  ThreadPool pool(ThreadsOf(options));
  std::vector<DotRoof> roofs;
  for (const DotInstruction& instruction : DotInstructions()) {
    if (!instruction.available()) continue;
    const std::vector<double> rates = RatesOf(options.seconds, [&] { return DotPass(pool, instruction); });
    roofs.push_back({.format = std::string(instruction.format),
                     .instruction_set = std::string(instruction.instruction_set),
                     .operations_per_s = *std::ranges::max_element(rates)});
  }
  return roofs;
}

MachineRates Mean(const MachineRates& a, const MachineRates& b) {
  const auto mean = [](const std::optional<double>& x, const std::optional<double>& y) -> std::optional<double> {
    if (!x || !y) return std::nullopt;
    return (*x + *y) / 2;
  };
  return {.read_bytes_per_s = (a.read_bytes_per_s + b.read_bytes_per_s) / 2,
          .fp32_operations_per_s = mean(a.fp32_operations_per_s, b.fp32_operations_per_s),
          .int8_operations_per_s = mean(a.int8_operations_per_s, b.int8_operations_per_s)};
}

MachineProbe::MachineProbe(const RoofOptions& options, std::string_view kernels)
    : seconds_(options.seconds),
      fp32_(InstructionOf(kernels, "fp32")),
      int8_(InstructionOf(kernels, "int8")),
      pool_(ThreadsOf(options)),
      buffer_(options.buffer_bytes > 0 ? options.buffer_bytes : ColdBytes()) {
  read_.Add(buffer_.span());
  // Written once: pages that were never written are all the same page of zeros.
  const auto threads = static_cast<std::size_t>(pool_.threads());
  pool_.ParallelFor(threads, [&](std::size_t i, int) {
    const std::size_t first = i * buffer_.size() / threads;
    std::ranges::fill(buffer_.span().subspan(first, (i + 1) * buffer_.size() / threads - first), std::byte{1});
  });
}

MachineRates MachineProbe::Measure() {
  const auto dots = [&](const DotInstruction* instruction) -> std::optional<double> {
    if (instruction == nullptr) return std::nullopt;
    return MedianRate(seconds_, [&] { return DotPass(pool_, *instruction); });
  };
  return {.read_bytes_per_s = MedianRate(seconds_, [&] { return read_.Pass(pool_).bytes_per_s; }),
          .fp32_operations_per_s = dots(fp32_),
          .int8_operations_per_s = dots(int8_)};
}

std::size_t ColdBytes() {
  constexpr long kUnknownCache = 64 << 20;
  long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
  if (cache <= 0) cache = kUnknownCache;
  return std::min(8 * static_cast<std::size_t>(cache), static_cast<std::size_t>(MachineMemoryBytes()) / 8);
}

}  // namespace moe
