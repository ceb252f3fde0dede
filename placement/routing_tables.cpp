#include "placement/routing_tables.h"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <utility>

#include "core/check.h"
#include "core/split_mix.h"

namespace moe {
namespace {

// Probabilities are in units of 2^-32, so that what a table's entries come to is exact.
constexpr int kUnitBits = 32;
constexpr std::uint64_t kOne = std::uint64_t{1} << kUnitBits;
constexpr double kLeastWeight = 1e-12;  // of experts that a grouped gate may have to fall back on
// Orders of a layer's experts among which a token's hash chooses: two experts that are neighbours in one are seldom
// taken together by it, which evens out over several. Fewer for very many experts, so that a layer takes about 1 MB.
constexpr std::size_t kMaxOrders = 64;
constexpr std::size_t kMinOrders = 8;
constexpr std::size_t kEntriesOfLayer = 1 << 16;

/// SplitMix64's numbers below a bound.
class Shuffler {
 public:
  explicit Shuffler(std::uint64_t seed) : state_(seed) {}

  // The small lean to lower numbers does not matter to an order.
  std::uint64_t Below(std::uint64_t bound) { return MixBits(state_ += kSplitMixStep) % bound; }

  template <typename T>
  void Shuffle(std::vector<T>& values) {
    for (std::size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[Below(i)]);
  }

 private:
  std::uint64_t state_;
};

/// Running sums of `probabilities`, in units, the last exactly count * kOne and no step above kOne.
std::vector<std::uint64_t> RunningSums(std::span<const double> probabilities, int count) {
  std::vector<std::uint64_t> steps;
  for (const double p : probabilities)
    steps.push_back(std::min(kOne, static_cast<std::uint64_t>(p * static_cast<double>(kOne))));
  // What rounding down has lost goes to the first that have room.
  std::uint64_t missing =
      static_cast<std::uint64_t>(count) * kOne - std::accumulate(steps.begin(), steps.end(), std::uint64_t{0});
  for (std::uint64_t& step : steps) {
    const std::uint64_t more = step == 0 ? 0 : std::min(missing, kOne - step);
    step += more;
    missing -= more;
  }
  MOE_CHECK(missing == 0, "fewer experts than a token takes");
  std::partial_sum(steps.begin(), steps.end(), steps.begin());
  return steps;
}

/// One layer: several orders of experts with their running sums.
class LayerTables {
 public:
  LayerTables(std::span<const double> popularity, const GateSpec& gate, std::uint64_t seed) {
    Shuffler shuffler(seed);
    std::vector<std::int32_t> by_rank(popularity.size());
    std::iota(by_rank.begin(), by_rank.end(), 0);
    shuffler.Shuffle(by_rank);
    std::vector<double> weights(popularity.size());  // by expert
    for (std::size_t rank = 0; rank < by_rank.size(); ++rank)
      weights[static_cast<std::size_t>(by_rank[rank])] = popularity[rank];
    orders_ = std::clamp(kEntriesOfLayer / popularity.size(), kMinOrders, kMaxOrders);
    const Groups groups(weights, gate, shuffler);
    for (std::size_t i = 0; i < orders_; ++i) AddOrder(groups.Of(i, orders_), gate.experts_per_token, shuffler);
    size_ = experts_.size() / orders_;
  }

  void Draw(std::uint64_t hash, std::span<std::int32_t> ids) const {
    const std::size_t begin = (hash >> kUnitBits) % orders_ * size_;
    const auto sums = std::span(sums_).subspan(begin, size_);
    std::uint64_t point = hash & (kOne - 1);
    auto at = sums.begin();
    for (std::int32_t& id : ids) {
      at = std::upper_bound(at, sums.end(), point);
      id = experts_[begin + static_cast<std::size_t>(at - sums.begin())];
      ++at;  // no step is above one, so the next point lies past this expert
      point += kOne;
    }
  }

 private:
  struct Candidate {
    std::int32_t expert = 0;
    double weight = 0;
  };

  /// Whom a token may choose from: everybody, or the experts of a few groups, which are drawn in the same manner by the
  /// popularity of all their experts together.
  class Groups {
   public:
    Groups(std::span<const double> weights, const GateSpec& gate, Shuffler& shuffler)
        : weights_(weights),
          count_(static_cast<std::size_t>(gate.groups)),
          size_(weights.size() / count_),
          taken_(gate.top_groups) {
      if (count_ == 1) return;
      std::vector<double> sums(count_);
      for (std::size_t g = 0; g < count_; ++g)
        for (std::size_t i = 0; i < size_; ++i) sums[g] += weights[g * size_ + i] + kLeastWeight;
      probabilities_ = InclusionProbabilities(sums, taken_);
      order_.resize(count_);
      std::iota(order_.begin(), order_.end(), std::size_t{0});
      shuffler.Shuffle(order_);
      std::vector<double> ordered;
      for (const std::size_t g : order_) ordered.push_back(probabilities_[g]);
      sums_ = RunningSums(ordered, taken_);
    }

    /// For the i-th of `of` orders, at equal distances over all draws.
    std::vector<Candidate> Of(std::size_t i, std::size_t of) const {
      std::vector<Candidate> candidates;
      if (count_ == 1) {
        for (std::size_t e = 0; e < weights_.size(); ++e)
          candidates.push_back({static_cast<std::int32_t>(e), weights_[e]});
        return candidates;
      }
      std::uint64_t point = kOne / of * i + kOne / of / 2;
      for (int taken = 0; taken < taken_; ++taken, point += kOne) {
        const auto at = std::upper_bound(sums_.begin(), sums_.end(), point) - sums_.begin();
        const std::size_t group = order_[static_cast<std::size_t>(at)];
        for (std::size_t e = group * size_; e < (group + 1) * size_; ++e)
          candidates.push_back({static_cast<std::int32_t>(e), (weights_[e] + kLeastWeight) / probabilities_[group]});
      }
      return candidates;
    }

   private:
    const std::span<const double> weights_;
    const std::size_t count_;
    const std::size_t size_;  // experts of a group
    const int taken_;
    std::vector<double> probabilities_;  // by group
    std::vector<std::size_t> order_;
    std::vector<std::uint64_t> sums_;
  };

  void AddOrder(std::vector<Candidate> candidates, int count, Shuffler& shuffler) {
    shuffler.Shuffle(candidates);
    std::vector<double> weights;
    for (const Candidate& candidate : candidates) {
      experts_.push_back(candidate.expert);
      weights.push_back(candidate.weight);
    }
    const std::vector<std::uint64_t> sums = RunningSums(InclusionProbabilities(weights, count), count);
    sums_.insert(sums_.end(), sums.begin(), sums.end());
  }

  std::size_t orders_ = 0;
  std::size_t size_ = 0;               // experts of an order
  std::vector<std::int32_t> experts_;  // (orders, size)
  std::vector<std::uint64_t> sums_;    // (orders, size)
};

class RoutingTables final : public RoutingOverride {
 public:
  RoutingTables(std::span<const double> popularity, std::uint64_t seed, const ModelConfig& config) : seed_(seed) {
    index_.resize(config.layers.size());
    for (const int layer : config.sparse_layers()) {
      const auto at = static_cast<std::size_t>(layer);
      index_[at] = layers_.size();
      layers_.emplace_back(popularity, config.layers[at].moe->gate, HashOf(seed, at));
    }
  }

  void Choose(std::size_t layer, std::uint32_t token, std::uint32_t position,
              std::span<std::int32_t> ids) const override {
    layers_[index_[layer]].Draw(HashOf(seed_, layer, token, position), ids);
  }

 private:
  const std::uint64_t seed_;
  std::vector<std::size_t> index_;  // by layer, of the sparse ones
  std::vector<LayerTables> layers_;
};

}  // namespace

std::uint64_t HashOf(std::uint64_t seed, std::uint64_t a, std::uint64_t b, std::uint64_t c) {
  std::uint64_t hash = MixBits(seed + kSplitMixStep);
  for (const std::uint64_t part : {a, b, c}) hash = MixBits((hash ^ part) + kSplitMixStep);
  return hash;
}

std::vector<double> InclusionProbabilities(std::span<const double> weights, int count) {
  std::vector<std::size_t> order(weights.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t i, std::size_t j) { return weights[i] > weights[j]; });
  // From the smallest up, so that what is left beside large ones is exact enough.
  std::vector<double> rest(weights.size() + 1);
  for (std::size_t i = order.size(); i-- > 0;) rest[i] = rest[i + 1] + weights[order[i]];
  std::vector<double> probabilities(weights.size());
  double left = count;
  bool capped = true;  // from the largest down, as long as a proportional part would be above 1
  double factor = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    const double weight = weights[order[i]];
    if (capped) {
      factor = rest[i] > 0 ? left / rest[i] : 0;
      capped = factor * weight > 1;
    }
    probabilities[order[i]] = capped ? 1 : factor * weight;
    if (capped) left -= 1;
  }
  return probabilities;
}

std::shared_ptr<const RoutingOverride> MakeRoutingTables(std::span<const double> popularity, std::uint64_t seed,
                                                         const ModelConfig& config) {
  return std::make_shared<RoutingTables>(popularity, seed, config);
}

}  // namespace moe
