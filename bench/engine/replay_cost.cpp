#include "bench/engine/replay_cost.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/check.h"

namespace moe {
namespace {

// x of the n · n equations `a` x = `b`, by Gauss with row pivots; 0 for what nothing determines.
std::vector<double> Solve(std::vector<double> a, std::vector<double> b) {
  const std::size_t n = b.size();
  std::vector<double> x(n);
  std::vector<std::uint8_t> determined(n, 1);
  for (std::size_t i = 0; i < n; ++i) {
    std::size_t pivot = i;
    for (std::size_t row = i + 1; row < n; ++row)
      if (std::abs(a[row * n + i]) > std::abs(a[pivot * n + i])) pivot = row;
    // Columns are scaled to length 1, so this is far below what rounding leaves of equal ones.
    if (std::abs(a[pivot * n + i]) < 1e-12) {
      determined[i] = 0;
      continue;
    }
    for (std::size_t column = 0; column < n; ++column) std::swap(a[i * n + column], a[pivot * n + column]);
    std::swap(b[i], b[pivot]);
    for (std::size_t row = i + 1; row < n; ++row) {
      const double factor = a[row * n + i] / a[i * n + i];
      for (std::size_t column = i; column < n; ++column) a[row * n + column] -= factor * a[i * n + column];
      b[row] -= factor * b[i];
    }
  }
  for (std::size_t i = n; i-- > 0;) {
    if (determined[i] == 0) continue;
    double rest = b[i];
    for (std::size_t column = i + 1; column < n; ++column) rest -= a[i * n + column] * x[column];
    x[i] = rest / a[i * n + i];
  }
  return x;
}

// Weighted least squares over the columns in `use`; 0 for the others.
std::vector<double> LeastSquares(std::span<const double> rows, std::span<const double> y,
                                 std::span<const double> weights, std::size_t columns,
                                 const std::vector<std::size_t>& use) {
  const std::size_t n = use.size();
  std::vector<double> scale(n), normal(n * n), right(n);
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t r = 0; r < y.size(); ++r) {
      const double value = rows[r * columns + use[i]] * weights[r];
      scale[i] += value * value;
    }
    scale[i] = scale[i] > 0 ? 1 / std::sqrt(scale[i]) : 0;
  }
  for (std::size_t r = 0; r < y.size(); ++r) {
    for (std::size_t i = 0; i < n; ++i) {
      const double value = rows[r * columns + use[i]] * weights[r] * scale[i];
      right[i] += value * y[r] * weights[r];
      for (std::size_t j = 0; j < n; ++j)
        normal[i * n + j] += value * rows[r * columns + use[j]] * weights[r] * scale[j];
    }
  }
  const std::vector<double> scaled = Solve(std::move(normal), std::move(right));
  std::vector<double> x(columns);
  for (std::size_t i = 0; i < n; ++i) x[use[i]] = scaled[i] * scale[i];
  return x;
}

std::vector<double> NonNegative(std::span<const double> rows, std::span<const double> y,
                                std::span<const double> weights, std::size_t columns) {
  std::vector<std::size_t> use(columns);
  for (std::size_t i = 0; i < columns; ++i) use[i] = i;
  while (true) {
    std::vector<double> x = LeastSquares(rows, y, weights, columns, use);
    const auto lowest = std::ranges::min_element(use, {}, [&](std::size_t column) { return x[column]; });
    if (lowest == use.end() || x[*lowest] >= 0) return x;
    use.erase(lowest);
  }
}

double Dot(std::span<const double> row, std::span<const double> x) {
  double sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) sum += row[i] * x[i];
  return sum;
}

// Measured values, each with the quantities that they are fitted to.
template <std::size_t N>
class Observations {
 public:
  void Add(const std::array<double, N>& row, double seconds) {
    rows_.insert(rows_.end(), row.begin(), row.end());
    seconds_.push_back(seconds);
  }
  std::array<double, N> Fit() const {
    const std::vector<double> x = FitRelative(rows_, seconds_, N);
    std::array<double, N> coefficients = {};
    std::ranges::copy(x, coefficients.begin());
    return coefficients;
  }

 private:
  std::vector<double> rows_;
  std::vector<double> seconds_;
};

std::array<double, 3> RowOf(const ExchangeWork::OfWorker& work) {
  return {1, static_cast<double>(work.pairs), static_cast<double>(work.expert_bytes)};
}

std::array<double, 4> WaitRow(const CostModel& model, const ExchangeWork& work) {
  double longest = 0, sum = 0;
  for (const ExchangeWork::OfWorker& worker : work.workers) {
    const double seconds = model.Worker(worker);
    longest = std::max(longest, seconds);
    sum += seconds;
  }
  return {1, static_cast<double>(work.request_bytes + work.reply_bytes), longest, sum};
}

}  // namespace

std::vector<double> FitRelative(std::span<const double> rows, std::span<const double> y, std::size_t columns) {
  MOE_CHECK(rows.size() == y.size() * columns);
  std::vector<double> weights(y.size());
  for (std::size_t i = 0; i < y.size(); ++i) weights[i] = y[i] > 0 ? 1 / y[i] : 0;
  const std::vector<double> first = NonNegative(rows, y, weights, columns);
  // Over what is measured, a value that happens to be small would weigh most, and the fit would be too low.
  for (std::size_t i = 0; i < y.size(); ++i) {
    const double fitted = Dot(rows.subspan(i * columns, columns), first);
    weights[i] = y[i] > 0 && fitted > 0 ? 1 / fitted : 0;
  }
  return NonNegative(rows, y, weights, columns);
}

double CostModel::Worker(const ExchangeWork::OfWorker& work) const {
  return work.pairs == 0 ? 0 : Dot(RowOf(work), worker);
}

double CostModel::Seconds(const ExchangeWork& work) const {
  return dispatch[0] + dispatch[1] * static_cast<double>(work.request_bytes) + Dot(WaitRow(*this, work), wait) +
         combine[0] + combine[1] * static_cast<double>(work.reply_bytes);
}

void CostFit::Add(const ExchangeWork& work, const ExchangeSeconds& seconds) {
  MOE_CHECK(work.workers.size() == seconds.busy.size() && observed_.size() < kMostExchanges);
  observed_.push_back({work, seconds});
}

Result<CostModel> CostFit::Fit() const {
  if (observed_.empty()) return InvalidArgument("no exchange was measured that costs could be taken from");
  CostModel model;
  Observations<3> worker;
  Observations<2> dispatch, combine;
  for (const auto& [work, seconds] : observed_) {
    for (std::size_t w = 0; w < work.workers.size(); ++w)
      if (work.workers[w].pairs > 0) worker.Add(RowOf(work.workers[w]), seconds.busy[w]);
    dispatch.Add({1, static_cast<double>(work.request_bytes)}, seconds.dispatch);
    combine.Add({1, static_cast<double>(work.reply_bytes)}, seconds.combine);
  }
  model.worker = worker.Fit();
  model.dispatch = dispatch.Fit();
  model.combine = combine.Fit();
  Observations<4> wait;  // of what the workers should take, not of what they took: that is all a prediction has
  for (const auto& [work, seconds] : observed_) wait.Add(WaitRow(model, work), seconds.wait);
  model.wait = wait.Fit();
  return model;
}

void WorkCounter::Count(const DispatchPlan& plan, std::size_t workers, std::uint64_t bytes_per_expert,
                        ExchangeWork& work) {
  work.workers.assign(workers, {});
  work.request_bytes = work.reply_bytes = 0;
  for (std::size_t w = 0; w < workers; ++w) {
    const DispatchPlan::Part& part = plan.part(WorkerId(static_cast<int>(w)));
    if (part.pairs.empty()) continue;
    ++call_;
    std::uint64_t distinct = 0;
    for (const DispatchPair& pair : part.pairs) {
      if (pair.slot >= seen_.size()) seen_.resize(pair.slot + 1);
      if (seen_[pair.slot] != call_) ++distinct;
      seen_[pair.slot] = call_;
    }
    work.workers[w] = {.pairs = part.pairs.size(), .expert_bytes = distinct * bytes_per_expert};
    const DispatchShape shape{.rows = static_cast<std::uint32_t>(part.tokens.size()),
                              .pairs = static_cast<std::uint32_t>(part.pairs.size()),
                              .hidden = static_cast<std::uint32_t>(hidden_),
                              .type = type_};
    work.request_bytes += DispatchBytes(shape);
    work.reply_bytes += DispatchReplyBytes(shape);
  }
}

}  // namespace moe
