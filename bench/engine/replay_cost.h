// What an exchange with the expert workers should take, from its counts alone: rows, distinct experts, bytes. The
// coefficients come from measured exchanges; docs/benchmarks.md has the formulas.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/status.h"
#include "router/dispatch_plan.h"

namespace moe {

/// One layer of one step, as the dispatch plan has it.
struct ExchangeWork {
  struct OfWorker {
    std::uint64_t pairs = 0;         // (token, expert)
    std::uint64_t expert_bytes = 0;  // weights of the distinct experts among them
  };
  std::vector<OfWorker> workers;
  std::uint64_t request_bytes = 0;  // payload to all workers
  std::uint64_t reply_bytes = 0;    // and back
};

/// What that took, seconds.
struct ExchangeSeconds {
  double dispatch = 0;  // planning and copying rows out
  double wait = 0;
  double combine = 0;
  std::vector<double> busy;  // (workers): computing, as each says itself
};

/// Coefficients that are all at least 0.
struct CostModel {
  // A worker's computing: fixed + per_pair · pairs + per_expert_byte · bytes of its distinct experts.
  std::array<double, 3> worker = {};
  // The router's: fixed + per byte of the requests, and of the replies.
  std::array<double, 2> dispatch = {};
  std::array<double, 2> combine = {};
  // Waiting: fixed + per byte both ways + longest · the longest worker's computing + sum · that of all workers. Where
  // each worker has processors of its own, `longest` is about 1 and `sum` 0; where they share P processors, `sum` is
  // about the threads of a worker / P.
  std::array<double, 4> wait = {};

  /// Seconds of a worker with any pairs.
  double Worker(const ExchangeWork::OfWorker& work) const;
  double Seconds(const ExchangeWork& work) const;
};

/// Measured exchanges, each with its counts, and the coefficients that fit them: least squares of the relative error,
/// with the coefficients that would be below 0 left out.
class CostFit {
 public:
  /// More would take memory and time and add nothing to the coefficients.
  static constexpr std::size_t kMostExchanges = std::size_t{1} << 14;

  /// At most kMostExchanges.
  void Add(const ExchangeWork& work, const ExchangeSeconds& seconds);
  std::size_t exchanges() const { return observed_.size(); }
  /// INVALID_ARGUMENT when there are none.
  Result<CostModel> Fit() const;

 private:
  struct Observed {
    ExchangeWork work;
    ExchangeSeconds seconds;
  };
  std::vector<Observed> observed_;
};

/// Non-negative x that minimises Σ ((rows · x − y) / y)², approximately: columns whose coefficient comes out negative
/// are left out one after the other. `rows` is (n, columns); a y that is not above 0 is left out.
std::vector<double> FitRelative(std::span<const double> rows, std::span<const double> y, std::size_t columns);

/// Counts what a plan has been built of last: all tokens of one layer, whose experts take so many bytes each.
class WorkCounter {
 public:
  WorkCounter(std::size_t hidden, ExchangeType type) : hidden_(hidden), type_(type) {}
  void Count(const DispatchPlan& plan, std::size_t workers, std::uint64_t bytes_per_expert, ExchangeWork& work);

 private:
  const std::size_t hidden_;
  const ExchangeType type_;
  std::vector<std::uint64_t> seen_;  // by slot: the last call that met it
  std::uint64_t call_ = 0;
};

}  // namespace moe
