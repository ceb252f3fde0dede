#include "placement/rebalance_policy.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "core/check.h"

namespace moe {
namespace {

double RowsOf(const LayerLoad& load) { return std::accumulate(load.mean.begin(), load.mean.end(), 0.0); }

/// The mean over layers of `figure`(layer of from, its rows, layer of to, its rows). A layer without rows on either
/// side says nothing, so that it counts 0.
template <typename Figure>
double MeanOverLayers(const std::vector<LayerLoad>& from, const std::vector<LayerLoad>& to, const Figure& figure) {
  MOE_CHECK(from.size() == to.size());
  double sum = 0;
  for (std::size_t i = 0; i < from.size(); ++i) {
    MOE_CHECK(from[i].mean.size() == to[i].mean.size());
    const double from_rows = RowsOf(from[i]);
    const double to_rows = RowsOf(to[i]);
    if (from_rows > 0 && to_rows > 0) sum += figure(from[i].mean, from_rows, to[i].mean, to_rows);
  }
  return from.empty() ? 0 : sum / static_cast<double>(from.size());
}

}  // namespace

double LoadDrift(const std::vector<LayerLoad>& from, const std::vector<LayerLoad>& to) {
  return MeanOverLayers(from, to, [](const auto& a, double rows_a, const auto& b, double rows_b) {
    double sum = 0;
    for (std::size_t e = 0; e < a.size(); ++e) sum += std::abs(a[e] / rows_a - b[e] / rows_b);
    return sum / 2;
  });
}

double ChanceDrift(const std::vector<LayerLoad>& from, const std::vector<LayerLoad>& to) {
  // A share of n rows deviates by sqrt(p (1 − p) / n), nearly normally, whose mean size is sqrt(2 / π) of that.
  return MeanOverLayers(from, to, [](const auto& a, double rows_a, const auto& b, double rows_b) {
    double sum = 0;
    for (std::size_t e = 0; e < a.size(); ++e) {
      const double p = (a[e] + b[e]) / (rows_a + rows_b);
      sum += std::sqrt(p * (1 - p) * (1 / rows_a + 1 / rows_b));
    }
    return std::sqrt(2 / std::numbers::pi) * sum / 2;
  });
}

RebalancePolicy::Decision RebalancePolicy::Look(TimePoint now, bool says_yes, const std::vector<LayerLoad>& loads) {
  confirmed_ = says_yes ? confirmed_ + 1 : 0;
  if (!says_yes) return Decision::kVerdictIsNo;
  if (!moved_for_.empty() && Same(moved_for_.back(), loads)) return Decision::kSameLoad;
  if (confirmed_ < options_.confirmations) return Decision::kUnconfirmed;
  const int doublings = std::min(kMostDoublings, Returns(loads) + failures_);
  if (moved_ever_ && now - last_ < options_.cooldown * (1 << doublings)) return Decision::kCoolingDown;
  return Decision::kMove;
}

void RebalancePolicy::OnMoved(TimePoint now, const std::vector<LayerLoad>& loads) {
  moved_ever_ = true;
  last_ = now;
  failures_ = 0;
  confirmed_ = 0;
  if (moved_for_.size() == kRemembered) moved_for_.pop_front();
  std::vector<LayerLoad>& kept = moved_for_.emplace_back(loads);
  for (LayerLoad& load : kept) load.samples.clear();
}

void RebalancePolicy::OnFailed(TimePoint now) {
  moved_ever_ = true;
  last_ = now;
  failures_ = std::min(failures_ + 1, kMostDoublings);
  confirmed_ = 0;
}

bool RebalancePolicy::Same(const std::vector<LayerLoad>& one, const std::vector<LayerLoad>& other) const {
  const double drift = LoadDrift(one, other);
  return drift <= options_.least_drift || drift <= options_.noise_factor * ChanceDrift(one, other);
}

int RebalancePolicy::Returns(const std::vector<LayerLoad>& loads) const {
  if (moved_for_.empty()) return 0;
  return static_cast<int>(std::count_if(moved_for_.begin(), std::prev(moved_for_.end()),
                                        [&](const std::vector<LayerLoad>& moved) { return Same(moved, loads); }));
}

std::string_view Name(RebalancePolicy::Decision decision) {
  switch (decision) {
    case RebalancePolicy::Decision::kMove: return "move";
    case RebalancePolicy::Decision::kVerdictIsNo: return "verdict_is_no";
    case RebalancePolicy::Decision::kUnconfirmed: return "unconfirmed";
    case RebalancePolicy::Decision::kCoolingDown: return "cooling_down";
    case RebalancePolicy::Decision::kSameLoad: return "same_load";
  }
  return "unknown";
}

}  // namespace moe
