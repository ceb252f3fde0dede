#include "model/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "tests/kernels/kernel_cases.h"

namespace moe {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Ids = std::vector<std::uint32_t>;
using Set = std::set<std::uint32_t>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::uint32_t SampleOnce(std::span<const float> logits, const SamplingParams& params,
                         const TokenCounts* counts = nullptr, DrawPosition at = {}) {
  Sampler sampler(logits.size(), SimdKernels());
  return sampler.Sample(logits, params, counts, at);
}

/// The tokens that can come out: those of 4,000 positions. A token of probability 0.005 is missed with 2e-9.
Set Support(std::span<const float> logits, const SamplingParams& params, const TokenCounts* counts = nullptr) {
  Sampler sampler(logits.size(), SimdKernels());
  Set tokens;
  for (std::uint64_t position = 0; position < 4000; ++position)
    tokens.insert(sampler.Sample(logits, params, counts, {.position = position}));
  return tokens;
}

std::vector<float> LogOf(std::vector<float> probabilities) {
  for (float& p : probabilities) p = std::log(p);
  return probabilities;
}

// Descending: tokens 2, 3, 0, 1.
const std::vector<float> kLogits = LogOf({0.2f, 0.1f, 0.4f, 0.3f});

TEST(Greedy, TakesTheLargestAndOfEqualsTheLowerId) {
  EXPECT_EQ(SampleOnce(std::vector<float>{1, 3, 2}, {}), 1u);
  EXPECT_EQ(SampleOnce(std::vector<float>{1, 3, 3, 3}, {}), 1u);
  EXPECT_EQ(SampleOnce(std::vector<float>{-5, -5}, {}), 0u);
  EXPECT_EQ(SampleOnce(std::vector<float>{-kInfinity, -kInfinity, -7}, {}), 2u);
  EXPECT_EQ(SampleOnce(std::vector<float>{0.0f, -0.0f}, {}), 0u);
}

TEST(Greedy, DoesNotLookAtTheOtherFilters) {
  const SamplingParams params{.temperature = 0, .top_k = 3, .top_p = 0.9f, .min_p = 0.1f, .seed = 5};
  for (std::uint64_t position = 0; position < 100; ++position)
    EXPECT_EQ(SampleOnce(kLogits, params, nullptr, {.position = position}), 2u);
}

TEST(Sampling, WithoutFiltersEveryTokenCanCome) { EXPECT_EQ(Support(kLogits, {.temperature = 1}), (Set{0, 1, 2, 3})); }

TEST(Sampling, ATokenOfProbabilityZeroNeverComes) {
  EXPECT_EQ(Support(std::vector<float>{-kInfinity, 1, -kInfinity, 1}, {.temperature = 1}), (Set{1, 3}));
}

TEST(TopK, KeepsTheLargestAndOfEqualsTheLowerIds) {
  EXPECT_EQ(Support(kLogits, {.temperature = 1, .top_k = 1}), (Set{2}));
  EXPECT_EQ(Support(kLogits, {.temperature = 1, .top_k = 2}), (Set{2, 3}));
  EXPECT_EQ(Support(kLogits, {.temperature = 1, .top_k = 3}), (Set{0, 2, 3}));
  EXPECT_EQ(Support(kLogits, {.temperature = 1, .top_k = 4}), (Set{0, 1, 2, 3}));
  EXPECT_EQ(Support(kLogits, {.temperature = 1, .top_k = 4'000'000'000}), (Set{0, 1, 2, 3}));
  EXPECT_EQ(Support(std::vector<float>{1, 2, 2, 2}, {.temperature = 1, .top_k = 2}), (Set{1, 2}));
}

TEST(TopP, KeepsTheFewestWhoseSumReachesIt) {
  EXPECT_EQ(Support(kLogits, {.temperature = 1, .top_p = 1e-6f}), (Set{2})) << "one always stays";
  EXPECT_EQ(Support(kLogits, {.temperature = 1, .top_p = 0.39f}), (Set{2}));
  EXPECT_EQ(Support(kLogits, {.temperature = 1, .top_p = 0.41f}), (Set{2, 3}));
  EXPECT_EQ(Support(kLogits, {.temperature = 1, .top_p = 0.69f}), (Set{2, 3}));
  EXPECT_EQ(Support(kLogits, {.temperature = 1, .top_p = 0.71f}), (Set{0, 2, 3}));
  EXPECT_EQ(Support(kLogits, {.temperature = 1, .top_p = 0.91f}), (Set{0, 1, 2, 3}));
  EXPECT_EQ(Support(std::vector<float>{2, 2, 2, 2}, {.temperature = 1, .top_p = 0.49f}), (Set{0, 1}));
}

TEST(MinP, KeepsThoseOfAtLeastThatShareOfTheLargest) {
  EXPECT_EQ(Support(kLogits, {.temperature = 1, .min_p = 0.24f}), (Set{0, 1, 2, 3}));
  EXPECT_EQ(Support(kLogits, {.temperature = 1, .min_p = 0.26f}), (Set{0, 2, 3}));
  EXPECT_EQ(Support(kLogits, {.temperature = 1, .min_p = 0.51f}), (Set{2, 3}));
  EXPECT_EQ(Support(kLogits, {.temperature = 1, .min_p = 0.76f}), (Set{2}));
  EXPECT_EQ(Support(std::vector<float>{1, 4, 4}, {.temperature = 1, .min_p = 1}), (Set{1, 2}));
}

// Each neighbouring pair of the order, by a case in which the other order gives another set.

TEST(Order, PenaltiesBeforeTemperature) {
  TokenCounts counts(2);
  counts.AddOutput(0);
  // (2 − 1.9) / 0.2 = 0.5 against 0: both likely. 2 / 0.2 − 1.9 = 8.1 would leave token 1 under 0.1 of the largest.
  const SamplingParams params{.temperature = 0.2f, .min_p = 0.1f, .presence_penalty = 1.9f};
  EXPECT_EQ(Support(std::vector<float>{2, 0}, params, &counts), (Set{0, 1}));
}

TEST(Order, TemperatureBeforeTopP) {
  // At temperature 2 the shares are 0.325, 0.282, 0.230, 0.163: two have 0.607. At 1 two have 0.7.
  EXPECT_EQ(Support(kLogits, {.temperature = 2, .top_p = 0.65f}), (Set{0, 2, 3}));
}

TEST(Order, TemperatureBeforeMinP) {
  // sqrt(0.1 / 0.4) = 0.5.
  EXPECT_EQ(Support(kLogits, {.temperature = 2, .min_p = 0.4f}), (Set{0, 1, 2, 3}));
}

TEST(Order, TopKBeforeTopP) {
  // Of the two that top_k leaves, token 2 has 0.57; of all it has 0.4, and top_p 0.5 would keep two.
  EXPECT_EQ(Support(kLogits, {.temperature = 1, .top_k = 2, .top_p = 0.5f}), (Set{2}));
}

TEST(Order, TopPBeforeMinP) {
  // 0.4 of all is under 0.55, so two stay; of the two that min_p would leave, one alone has 0.57.
  EXPECT_EQ(Support(kLogits, {.temperature = 1, .top_p = 0.55f, .min_p = 0.6f}), (Set{2, 3}));
}

TEST(Penalties, RepetitionShrinksPositiveAndGrowsNegativeLogitsOfAllThatWasSeen) {
  TokenCounts counts(4);
  counts.AddPrompt(0);
  counts.AddOutput(2);
  const SamplingParams params{.repetition_penalty = 2};
  // 4 / 2 = 2 < 3, token 1 was not seen.
  EXPECT_EQ(SampleOnce(std::vector<float>{4, 3, 0, 0}, params, &counts), 1u);
  EXPECT_EQ(SampleOnce(std::vector<float>{0, 3, 4, 0}, params, &counts), 1u);
  EXPECT_EQ(SampleOnce(std::vector<float>{6.5f, 3, 0, 0}, params, &counts), 0u);
  // −1 * 2 = −2 < −1.5.
  EXPECT_EQ(SampleOnce(std::vector<float>{-1, -1.5f, -1, -9}, params, &counts), 1u);
  // Under 1 it favours what was seen: 2 / 0.5 = 4.
  EXPECT_EQ(SampleOnce(std::vector<float>{2, 3.5f, 0, 0}, {.repetition_penalty = 0.5f}, &counts), 0u);
}

TEST(Penalties, RepetitionDoesNotCount) {
  TokenCounts counts(2);
  for (int i = 0; i < 5; ++i) counts.AddOutput(0);
  counts.AddPrompt(0);
  EXPECT_EQ(SampleOnce(std::vector<float>{7, 3}, {.repetition_penalty = 2}, &counts), 0u);  // 3.5, not 7 / 2^6
}

TEST(Penalties, PresenceIsTakenOnceForEachTokenOfTheOutput) {
  TokenCounts counts(3);
  counts.AddPrompt(0);
  counts.AddOutput(1);
  counts.AddOutput(1);
  const SamplingParams params{.presence_penalty = 1};
  EXPECT_EQ(SampleOnce(std::vector<float>{3, 3.5f, 0}, params, &counts), 0u);  // the prompt does not count
  EXPECT_EQ(SampleOnce(std::vector<float>{3, 4.5f, 0}, params, &counts), 1u);  // once, not twice
  EXPECT_EQ(SampleOnce(std::vector<float>{3, 2.5f, 0}, {.presence_penalty = -1}, &counts), 1u);
}

TEST(Penalties, FrequencyIsTakenForEachOccurrenceInTheOutput) {
  TokenCounts counts(3);
  counts.AddPrompt(0);
  for (int i = 0; i < 3; ++i) counts.AddOutput(1);
  const SamplingParams params{.frequency_penalty = 0.5f};
  EXPECT_EQ(SampleOnce(std::vector<float>{3, 4.4f, 0}, params, &counts), 0u);  // 4.4 − 1.5
  EXPECT_EQ(SampleOnce(std::vector<float>{3, 4.6f, 0}, params, &counts), 1u);
}

TEST(Penalties, AddUp) {
  TokenCounts counts(2);
  counts.AddOutput(0);
  counts.AddOutput(0);
  const SamplingParams params{.repetition_penalty = 2, .presence_penalty = 1, .frequency_penalty = 0.25f};
  EXPECT_EQ(SampleOnce(std::vector<float>{8, 2.4f}, params, &counts), 0u);  // 8 / 2 − 1 − 0.5 = 2.5
  EXPECT_EQ(SampleOnce(std::vector<float>{8, 2.6f}, params, &counts), 1u);
}

TEST(Penalties, LeaveTheCallersLogitsAlone) {
  TokenCounts counts(2);
  counts.AddOutput(0);
  const std::vector<float> logits = {2, 1};
  const SamplingParams params{.temperature = 0.5f, .presence_penalty = 3};
  EXPECT_EQ(SampleOnce(logits, params, &counts, {.position = 1}), SampleOnce(logits, params, &counts, {.position = 1}));
  EXPECT_THAT(logits, ElementsAre(2, 1));
}

// Allowed, and no use: what is asked for is still defined.

TEST(Extremes, ATemperatureNearZeroIsGreedy) {
  const std::vector<float> logits = {1, 30, 29.5f, -4};
  for (const float temperature : {1e-3f, 1e-30f, 1e-38f, std::numeric_limits<float>::denorm_min()}) {
    EXPECT_EQ(Support(logits, {.temperature = temperature}), (Set{1})) << temperature;
    EXPECT_EQ(Support(logits, {.temperature = temperature, .top_k = 2, .top_p = 0.9f}), (Set{1})) << temperature;
  }
}

TEST(Extremes, AnImmenseTemperatureIsUniform) {
  EXPECT_EQ(Support(std::vector<float>{0, 50, 100}, {.temperature = std::numeric_limits<float>::max()}),
            (Set{0, 1, 2}));
}

TEST(Extremes, PenaltiesThatOverflowStillOrderTheTokens) {
  TokenCounts counts(4);
  counts.AddOutput(1);
  counts.AddOutput(2);
  const std::vector<float> logits = {9, 3, 4, 1};
  for (const float temperature : {0.0f, 1.0f}) {
    // 3 / 1e-40 and 4 / 1e-40 are both over the range: one of them, never an unseen token.
    for (const std::uint32_t token :
         Support(logits, {.temperature = temperature, .repetition_penalty = 1e-40f}, &counts))
      EXPECT_TRUE(token == 1 || token == 2) << token;
    const float most = std::numeric_limits<float>::max();
    const SamplingParams both{
        .temperature = temperature, .repetition_penalty = 1e-40f, .presence_penalty = most, .frequency_penalty = most};
    for (const std::uint32_t token : Support(logits, both, &counts)) EXPECT_LT(token, 4u);
    EXPECT_EQ(Support(logits, {.temperature = temperature, .top_k = 1, .presence_penalty = most}, &counts), (Set{0}));
  }
}

struct Bad {
  SamplingParams params;
  std::string field;
  std::string value;
};

TEST(CheckSampling, NamesTheFieldAndTheValueThatIsOutOfRange) {
  const std::vector<Bad> all = {
      {{.temperature = -0.5f}, "temperature", "-0.5"},
      {{.temperature = kNan}, "temperature", "nan"},
      {{.temperature = kInfinity}, "temperature", "inf"},
      {{.top_p = 0}, "top_p", "0"},
      {{.top_p = -0.25f}, "top_p", "-0.25"},
      {{.top_p = 1.5f}, "top_p", "1.5"},
      {{.top_p = kNan}, "top_p", "nan"},
      {{.min_p = -0.125f}, "min_p", "-0.125"},
      {{.min_p = 1.25f}, "min_p", "1.25"},
      {{.min_p = kNan}, "min_p", "nan"},
      {{.repetition_penalty = 0}, "repetition_penalty", "0"},
      {{.repetition_penalty = -2}, "repetition_penalty", "-2"},
      {{.repetition_penalty = kInfinity}, "repetition_penalty", "inf"},
      {{.repetition_penalty = kNan}, "repetition_penalty", "nan"},
      {{.presence_penalty = kInfinity}, "presence_penalty", "inf"},
      {{.presence_penalty = kNan}, "presence_penalty", "nan"},
      {{.frequency_penalty = -kInfinity}, "frequency_penalty", "-inf"},
      {{.frequency_penalty = kNan}, "frequency_penalty", "nan"},
  };
  for (const Bad& bad : all) {
    const Status status = CheckSampling(bad.params);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << bad.field << " " << bad.value;
    EXPECT_THAT(status.message(), HasSubstr("sampling." + bad.field + " " + bad.value + " "));
  }
}

TEST(CheckSampling, TakesTheEdgesOfEveryRange) {
  EXPECT_TRUE(CheckSampling({}).ok());
  EXPECT_TRUE(CheckSampling({.temperature = 1e30f, .top_k = 4'000'000'000, .top_p = 1e-30f, .min_p = 1}).ok());
  EXPECT_TRUE(CheckSampling({.repetition_penalty = 1e-30f, .presence_penalty = -2, .frequency_penalty = -1e30f}).ok());
}

TEST(Largest, AreInDescendingOrderWithTiesToTheLowerId) {
  Sampler sampler(6, SimdKernels());
  const std::vector<float> logits = {1, 5, -2, 5, 9, 1};
  Ids ids(6);
  for (std::size_t count = 0; count <= 6; ++count) {
    sampler.Largest(logits, std::span(ids).first(count));
    const Ids expected = {4, 1, 3, 0, 5, 2};
    EXPECT_TRUE(std::equal(expected.begin(), expected.begin() + static_cast<std::ptrdiff_t>(count), ids.begin()));
  }
}

// Philox4x32-10 as its paper has it (section 3.2 and table 2), on words and with explicit halves of the products.
using Words = std::array<std::uint32_t, 4>;
Words Philox(Words counter, std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t m0 = 0xD2511F53ull * counter[0];
    const std::uint64_t m1 = 0xCD9E8D57ull * counter[2];
    const auto high = [](std::uint64_t product) { return static_cast<std::uint32_t>(product >> 32); };
    const auto low = [](std::uint64_t product) { return static_cast<std::uint32_t>(product & 0xffffffffu); };
    counter = {high(m1) ^ counter[1] ^ key[0], low(m1), high(m0) ^ counter[3] ^ key[1], low(m0)};
    key = {key[0] + 0x9E3779B9u, key[1] + 0xBB67AE85u};
  }
  return counter;
}

/// The first two words of a Philox block as 53 bits in [0, 1).
double ToUnit(const Words& words) {
  const std::uint64_t bits = (std::uint64_t{words[0]} << 32) | words[1];
  return std::ldexp(static_cast<double>(bits >> 11), -53);
}

TEST(UniformDraw, TheReferenceHasThePublishedAnswers) {
  // The known-answer tests that the authors publish with Random123.
  EXPECT_EQ(Philox({0, 0, 0, 0}, {0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr std::uint32_t kOnes = 0xffffffff;
  EXPECT_EQ(Philox({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(UniformDraw, IsThePhiloxBlockOfSeedPositionAndSequence) {
  EXPECT_EQ(UniformDraw(0, {}), ToUnit({0x6627e8d5, 0xe169c58d, 0, 0}));
  std::mt19937_64 random(1);
  for (int i = 0; i < 1000; ++i) {
    const std::uint64_t seed = random() >> (random() % 64);
    const std::uint64_t position = random() >> (random() % 64);
    const auto sequence = static_cast<std::uint32_t>(random());
    const auto low = [](std::uint64_t v) { return static_cast<std::uint32_t>(v); };
    const auto high = [](std::uint64_t v) { return static_cast<std::uint32_t>(v >> 32); };
    EXPECT_EQ(UniformDraw(seed, {.sequence = sequence, .position = position}),
              ToUnit(Philox({low(position), high(position), sequence, 0}, {low(seed), high(seed)})));
  }
}

/// Σ (observed − expected)² / expected.
double ChiSquare(std::span<const std::size_t> observed, std::span<const double> expected) {
  double sum = 0;
  for (std::size_t i = 0; i < observed.size(); ++i) {
    const double difference = static_cast<double>(observed[i]) - expected[i];
    sum += difference * difference / expected[i];
  }
  return sum;
}

TEST(UniformDraw, NeighbouringDrawsAreIndependent) {
  constexpr std::size_t kBins = 8;
  constexpr std::size_t kDraws = 100'000;
  const auto bin = [](double u) { return static_cast<std::size_t>(u * kBins); };
  // By position, by sequence and by seed: pairs of neighbours fall evenly into 64 cells.
  for (const int axis : {0, 1, 2}) {
    Counts cells(kBins * kBins);
    for (std::uint32_t i = 0; i < kDraws; ++i) {
      const auto draw = [&](std::uint32_t step) {
        return UniformDraw(axis == 2 ? step : 9,
                           {.sequence = axis == 1 ? step : 3, .position = axis == 0 ? std::uint64_t{step} : 40});
      };
      ++cells[bin(draw(2 * i)) * kBins + bin(draw(2 * i + 1))];
    }
    // 63 degrees of freedom: under 120 but for one seed in 50,000.
    EXPECT_LT(ChiSquare(cells, std::vector<double>(cells.size(), 1.0 * kDraws / (kBins * kBins))), 120) << axis;
  }
}

TEST(Sampling, FrequenciesAreTheSoftmax) {
  constexpr std::size_t kVocab = 40;
  constexpr std::size_t kDraws = 200'000;
  const std::vector<float> logits = RandomValues(kVocab, 5);
  for (const std::uint32_t top_k : {0u, 12u}) {
    const SamplingParams params{.temperature = 0.8f, .top_k = top_k, .seed = 77};
    Sampler sampler(kVocab, SimdKernels());
    Counts drawn(kVocab);
    for (std::size_t i = 0; i < kDraws; ++i) {
      const DrawPosition at{.sequence = static_cast<std::uint32_t>(i % 4), .position = i / 4};
      ++drawn[sampler.Sample(logits, params, nullptr, at)];
    }
    Ids kept(top_k == 0 ? kVocab : top_k);
    sampler.Largest(logits, kept);
    Counts observed;
    std::vector<double> expected;
    double sum = 0;
    for (const std::uint32_t token : kept) {
      observed.push_back(drawn[token]);
      expected.push_back(std::exp(static_cast<double>(logits[token]) / 0.8));
      sum += expected.back();
    }
    for (double& e : expected) e *= kDraws / sum;
    // The mean of a chi-square is its degrees of freedom n − 1, its variance twice that: 5 deviations.
    const double freedom = static_cast<double>(kept.size() - 1);
    EXPECT_LT(ChiSquare(observed, expected), freedom + 5 * std::sqrt(2 * freedom)) << "top_k " << top_k;
  }
}

TEST(Sampling, DependsOnSeedSequenceAndPositionAlone) {
  const std::vector<float> logits = RandomValues(100, 1);
  const std::vector<float> others = RandomValues(100, 2);
  const SamplingParams params{.temperature = 1.3f, .top_k = 60, .top_p = 0.95f, .min_p = 0.01f, .seed = 4};
  Ids fresh;
  for (std::uint64_t position = 0; position < 200; ++position)
    fresh.push_back(SampleOnce(logits, params, nullptr, {.sequence = 2, .position = position}));

  Sampler busy(100, SimdKernels());
  for (std::uint64_t position = 200; position-- > 0;) {  // another order, other work between
    busy.Sample(others, {.temperature = 0.1f * static_cast<float>(position + 1)}, nullptr, {});
    EXPECT_EQ(busy.Sample(logits, params, nullptr, {.sequence = 2, .position = position}), fresh[position]);
  }
  const auto differs = [&](std::uint64_t seed, std::uint32_t sequence) {
    SamplingParams other = params;
    other.seed = seed;
    int different = 0;
    for (std::uint64_t position = 0; position < 200; ++position)
      different +=
          SampleOnce(logits, other, nullptr, {.sequence = sequence, .position = position}) != fresh[position] ? 1 : 0;
    return different;
  };
  EXPECT_EQ(differs(4, 2), 0);
  EXPECT_GT(differs(5, 2), 100);
  EXPECT_GT(differs(4 + (std::uint64_t{1} << 32), 2), 100) << "the high half of the seed counts";
  EXPECT_GT(differs(4, 3), 100);
}

TEST(SamplerDeathTest, PenaltiesNeedCounts) {
  EXPECT_DEATH(SampleOnce(kLogits, {.presence_penalty = 1}), "broken invariant");
  const TokenCounts other(3);
  EXPECT_DEATH(SampleOnce(kLogits, {.presence_penalty = 1}, &other), "broken invariant");
}

}  // namespace
}  // namespace moe
