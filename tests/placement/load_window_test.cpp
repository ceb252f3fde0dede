#include "placement/load_window.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <deque>
#include <numeric>
#include <random>
#include <vector>

namespace moe {
namespace {

constexpr std::size_t kBuckets = LoadWindow::kBuckets;

/// Every step of the past, summed over as many as the window says it covers, and the step under way.
class History {
 public:
  explicit History(std::size_t counts) : steps_(1, std::vector<std::uint64_t>(counts)) {}

  void Add(std::size_t i, std::uint64_t tokens) { steps_.front()[i] += tokens; }
  void EndStep() { steps_.emplace_front(steps_.front().size()); }
  std::uint64_t Sum(std::size_t i, std::size_t ended_steps) const {
    std::uint64_t sum = 0;
    for (std::size_t s = 0; s <= ended_steps; ++s) sum += steps_.at(s)[i];
    return sum;
  }

 private:
  std::deque<std::vector<std::uint64_t>> steps_;  // the one under way first
};

class LoadWindowOfSteps : public ::testing::TestWithParam<std::size_t> {};

TEST_P(LoadWindowOfSteps, HoldsTheSumsOfTheLastSteps) {
  constexpr std::size_t kLayers = 2;
  constexpr std::size_t kExperts = 3;
  const std::size_t wanted = GetParam();
  const std::size_t bucket = std::max<std::size_t>(1, wanted / kBuckets);
  LoadWindow window(kLayers, kExperts, wanted);
  History history(kLayers * kExperts);
  std::mt19937 random(7);
  for (std::size_t step = 0; step < 4 * kBuckets * bucket; ++step) {
    // The last kBuckets − 1 whole buckets and what the one being filled has.
    ASSERT_EQ(window.steps(), std::min(step, (kBuckets - 1) * bucket + step % bucket));
    for (int adds = 0; adds < 4; ++adds) {
      const std::size_t i = random() % (kLayers * kExperts);
      const std::uint64_t tokens = random() % 1000;
      window.Add(i / kExperts, i % kExperts, tokens);
      history.Add(i, tokens);
    }
    for (std::size_t i = 0; i < kLayers * kExperts; ++i)
      ASSERT_EQ(window.layer(i / kExperts)[i % kExperts], history.Sum(i, window.steps())) << "step " << step;
    window.EndStep();
    history.EndStep();
  }
}

INSTANTIATE_TEST_SUITE_P(AnyLength, LoadWindowOfSteps, ::testing::Values(0, 1, 15, 16, 17, 31, 32, 100, 160));

TEST(LoadWindow, ForgetsEverythingOnceIdleLongEnough) {
  LoadWindow window(1, 2, 32);
  window.Add(0, 1, 12345);
  for (std::size_t step = 0; step < 32; ++step) window.EndStep();
  EXPECT_EQ(window.layer(0)[0], 0u);
  EXPECT_EQ(window.layer(0)[1], 0u);
}

TEST(LoadWindow, StartsEmptyWithAsManyExpertsAsAsked) {
  const LoadWindow window(3, 5, 64);
  EXPECT_EQ(window.steps(), 0u);
  for (std::size_t layer = 0; layer < 3; ++layer) {
    ASSERT_EQ(window.layer(layer).size(), 5u);
    EXPECT_EQ(std::accumulate(window.layer(layer).begin(), window.layer(layer).end(), std::uint64_t{0}), 0u);
  }
}

TEST(LoadWindowDeathTest, RefusesAnExpertOrLayerThatIsNotThere) {
  LoadWindow window(2, 4, 16);
  EXPECT_DEATH(window.Add(0, 4, 1), "broken invariant") << "would count for the next layer's first expert";
  EXPECT_DEATH(window.Add(2, 0, 1), "broken invariant");
}

TEST(LoadWindow, LetsGoOfWhatIsTooOld) {
  using std::chrono::milliseconds;
  LoadWindow window(1, 2, 1 << 20, milliseconds(1600));  // buckets of 100 ms
  const TimePoint begin = Clock::now();
  const auto step = [&](int at_ms) {
    window.Advance(begin + milliseconds(at_ms));
    window.Add(0, 0, 1);
    window.EndStep();
  };
  for (int at_ms = 0; at_ms < 1500; at_ms += 10) step(at_ms);
  EXPECT_EQ(window.steps(), 150u);
  EXPECT_NEAR(window.seconds(), 1.49, 1e-9);
  step(1600);
  EXPECT_EQ(window.steps(), 141u) << "the first bucket is gone";
  EXPECT_EQ(window.layer(0)[0], 141u);
  EXPECT_NEAR(window.seconds(), 1.5, 1e-9);
  step(60'000);
  EXPECT_EQ(window.steps(), 1u) << "after a long time nothing of before counts";
  EXPECT_EQ(window.layer(0)[0], 1u);
  EXPECT_EQ(window.seconds(), 0);
  EXPECT_EQ(window.tokens_ever(0), 152u);
}

TEST(LoadWindow, WithoutAnAgeNothingIsTooOld) {
  LoadWindow window(1, 1, 1024);
  const TimePoint begin = Clock::now();
  for (int hour = 0; hour < 3; ++hour) {
    window.Advance(begin + std::chrono::hours(hour));
    window.Add(0, 0, 1);
    window.EndStep();
  }
  EXPECT_EQ(window.steps(), 3u);
  EXPECT_EQ(window.seconds(), 7200);
}

TEST(LoadWindow, ItsBucketsAreTheSamplesOfItsLoads) {
  LoadWindow window(2, 3, 32);  // two steps a bucket
  for (std::uint64_t step = 0; step < 5; ++step) {
    window.Advance({});
    window.Add(0, step % 3, 10);
    window.Add(1, 2, step == 4 ? 1 : 20);
    window.EndStep();
  }
  const std::vector<LayerLoad> loads = LoadsOf(window, {4, 7});
  ASSERT_EQ(loads.size(), 2u);
  EXPECT_EQ(loads[0].layer, 4);
  EXPECT_EQ(loads[1].layer, 7);
  EXPECT_EQ(loads[0].mean, (std::vector<double>{20, 20, 10}));
  EXPECT_EQ(loads[1].mean, (std::vector<double>{0, 0, 81}));
  // The one being filled has 11 rows, those before 60 each.
  EXPECT_EQ(loads[0].samples, (std::vector<std::vector<double>>{{10, 10, 0}, {10, 0, 10}}));
  EXPECT_EQ(loads[1].samples, (std::vector<std::vector<double>>{{0, 0, 40}, {0, 0, 40}}));
  EXPECT_TRUE(LoadsOf(LoadWindow(2, 3, 32), {4, 7})[0].samples.empty());
}

}  // namespace
}  // namespace moe
