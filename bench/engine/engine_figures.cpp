// What the repetitions of a test come to.
#include <functional>
#include <utility>

#include "bench/engine/engine_bench.h"
#include "bench/statistics.h"
#include "core/check.h"

namespace moe {
namespace {

// Of what `figure` gives for each element; none when it gives nothing for one, or there are none.
template <typename T, typename Figure>
std::optional<double> MedianOf(const std::vector<T>& elements, const Figure& figure) {
  std::vector<double> values;
  for (const T& element : elements) {
    const std::optional<double> value = std::invoke(figure, element);
    if (!value) return std::nullopt;
    values.push_back(*value);
  }
  const std::optional<Summary> summary = Summarize(std::move(values));
  return summary ? std::optional(summary->median) : std::nullopt;
}

}  // namespace

std::optional<double> Repetition::s_mbu() const {
  if (!machine) return std::nullopt;
  return work.bytes() / seconds / machine->read_bytes_per_s;
}

std::optional<double> Repetition::s_mfu() const {
  if (!machine) return std::nullopt;
  double least_seconds = 0;
  for (const auto& [operations, peak] : {std::pair(work.operations.fp32, machine->fp32_operations_per_s),
                                         std::pair(work.operations.int8, machine->int8_operations_per_s)}) {
    if (operations == 0) continue;
    if (!peak) return std::nullopt;
    least_seconds += operations / *peak;
  }
  return least_seconds / seconds;
}

double EngineTestResult::seconds() const {
  double sum = 0;
  for (const Repetition& repetition : repetitions) sum += repetition.seconds;
  return sum;
}

Work EngineTestResult::work() const {
  Work sum;
  for (const Repetition& repetition : repetitions) sum += repetition.work;
  return sum;
}

std::array<std::uint64_t, kMaxMicroBatches> EngineTestResult::micro_batch_steps() const {
  std::array<std::uint64_t, kMaxMicroBatches> sum = {};
  for (const Repetition& repetition : repetitions)
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += repetition.micro_batch_steps[i];
  return sum;
}

std::vector<double> EngineTestResult::tokens_per_s() const {
  std::vector<double> speeds;
  for (const Repetition& repetition : repetitions) speeds.push_back(repetition.tokens_per_s);
  return speeds;
}

double EngineTestResult::mean_tokens_per_s() const { return Summarize(tokens_per_s())->mean; }
double EngineTestResult::stddev_tokens_per_s() const { return Summarize(tokens_per_s())->std; }
std::optional<double> EngineTestResult::s_mbu() const { return MedianOf(repetitions, &Repetition::s_mbu); }
std::optional<double> EngineTestResult::s_mfu() const { return MedianOf(repetitions, &Repetition::s_mfu); }

std::optional<Binding> EngineTestResult::binding() const {
  const auto allowed = [&](std::optional<double> (Repetition::*share)() const) {
    return MedianOf(repetitions, [share](const Repetition& repetition) -> std::optional<double> {
      const std::optional<double> reached = (repetition.*share)();
      if (!reached) return std::nullopt;
      return repetition.tokens_per_s / *reached;
    });
  };
  const std::optional<double> bandwidth = allowed(&Repetition::s_mbu), arithmetic = allowed(&Repetition::s_mfu);
  if (!bandwidth || !arithmetic) return std::nullopt;
  return Binding{.bandwidth_tokens_per_s = *bandwidth, .arithmetic_tokens_per_s = *arithmetic};
}

double TraceCost(const EngineTestResult& traced, const EngineTestResult& plain) {
  MOE_CHECK(traced.repetitions.size() == plain.repetitions.size() && !plain.repetitions.empty());
  std::vector<double> ratios;
  for (std::size_t i = 0; i < plain.repetitions.size(); ++i)
    ratios.push_back(traced.repetitions[i].seconds / plain.repetitions[i].seconds);
  return Summarize(std::move(ratios))->median - 1;
}

std::optional<MachineRates> MedianMachine(const std::vector<EngineTestResult>& results) {
  std::vector<MachineRates> rates;
  for (const EngineTestResult& result : results)
    for (const Repetition& repetition : result.repetitions)
      if (repetition.machine) rates.push_back(*repetition.machine);
  const std::optional<double> read = MedianOf(rates, &MachineRates::read_bytes_per_s);
  if (!read) return std::nullopt;
  return MachineRates{.read_bytes_per_s = *read,
                      .fp32_operations_per_s = MedianOf(rates, &MachineRates::fp32_operations_per_s),
                      .int8_operations_per_s = MedianOf(rates, &MachineRates::int8_operations_per_s)};
}

}  // namespace moe
