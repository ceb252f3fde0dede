#include "placement/figures.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace moe {
namespace {

using Tokens = std::vector<std::uint64_t>;

TEST(Balancedness, IsTheMeanOverTheLargest) {
  EXPECT_DOUBLE_EQ(Balancedness(Tokens{5, 5, 5, 5}), 1);
  EXPECT_DOUBLE_EQ(Balancedness(Tokens{4, 0, 0, 0}), 0.25);
  EXPECT_DOUBLE_EQ(Balancedness(Tokens{1, 2, 3}), 2.0 / 3);
  EXPECT_DOUBLE_EQ(Balancedness(Tokens{7}), 1);
}

using Shares = std::vector<double>;

TEST(Balancedness, OfSharesIsThatOfTheirMultiples) {
  EXPECT_DOUBLE_EQ(Balancedness(Shares{0.25, 0.5, 0.75}), 2.0 / 3);
  EXPECT_DOUBLE_EQ(Balancedness(Shares{0, 0}), 1);
}

TEST(Imbalance, IsWhatTheLargestHasOverTheMean) {
  EXPECT_DOUBLE_EQ(Imbalance(Shares{2, 2, 2}), 0);
  EXPECT_DOUBLE_EQ(Imbalance(Shares{1, 2, 3}), 0.5);
  EXPECT_DOUBLE_EQ(Imbalance(Shares{0, 0, 0, 8}), 3);
  EXPECT_DOUBLE_EQ(Imbalance(Shares{0, 0}), 0);
}

TEST(CoefficientOfVariation, IsTheDeviationOfAllOverTheMean) {
  EXPECT_DOUBLE_EQ(CoefficientOfVariation(Shares{2, 2, 2}), 0);
  EXPECT_DOUBLE_EQ(CoefficientOfVariation(Shares{1, 3}), 0.5);
  EXPECT_DOUBLE_EQ(CoefficientOfVariation(Shares{0, 0, 0, 8}), std::sqrt(3.0));
  EXPECT_DOUBLE_EQ(CoefficientOfVariation(Shares{0, 0}), 0);
}

TEST(JainIndex, IsOneOverNWhenOneTakesAll) {
  EXPECT_DOUBLE_EQ(JainIndex(Shares{2, 2, 2}), 1);
  EXPECT_DOUBLE_EQ(JainIndex(Shares{0, 0, 0, 8}), 0.25);
  EXPECT_DOUBLE_EQ(JainIndex(Shares{1, 3}), 16.0 / 20);
  EXPECT_DOUBLE_EQ(JainIndex(Shares{0, 0}), 1);
}

TEST(Gini, IsTheShareOfInequality) {
  EXPECT_DOUBLE_EQ(Gini(Shares{2, 2, 2}), 0);
  EXPECT_DOUBLE_EQ(Gini(Shares{8, 0, 0, 0}), 0.75) << "(n − 1) / n when one takes all, in any order";
  EXPECT_DOUBLE_EQ(Gini(Shares{3, 1}), 0.25);
  EXPECT_DOUBLE_EQ(Gini(Shares{0, 0}), 0);
}

TEST(NormalizedEntropy, IsOneWhenUniformAndZeroWhenOneTakesAll) {
  EXPECT_DOUBLE_EQ(NormalizedEntropy(Tokens{3, 3, 3, 3, 3}), 1);
  EXPECT_DOUBLE_EQ(NormalizedEntropy(Tokens{0, 9, 0}), 0);
  // p = 1/4, 3/4: (1/4 ln 4 + 3/4 ln 4/3) / ln 2 = 2 − 3/4 log2 3
  EXPECT_NEAR(NormalizedEntropy(Tokens{1, 3}), 2 - 0.75 * std::log2(3.0), 1e-15);
  // Two of eight share everything: ln 2 / ln 8.
  EXPECT_NEAR(NormalizedEntropy(Tokens{0, 6, 0, 0, 0, 6, 0, 0}), 1.0 / 3, 1e-15);
  EXPECT_DOUBLE_EQ(NormalizedEntropy(Tokens{4}), 1) << "a single expert cannot be uneven";
}

TEST(DeadExperts, CountsThoseWithoutATokenOnceAnybodyHasOne) {
  EXPECT_EQ(DeadExperts(Tokens{1, 0, 2, 0}), 2);
  EXPECT_EQ(DeadExperts(Tokens{1, 1}), 0);
  EXPECT_EQ(DeadExperts(Tokens{0, 0, 0}), 0);
}

TEST(Figures, SayThatNothingIsWrongBeforeTheFirstToken) {
  const Tokens none(8, 0);
  EXPECT_DOUBLE_EQ(Balancedness(none), 1);
  EXPECT_DOUBLE_EQ(NormalizedEntropy(none), 1);
  EXPECT_FALSE(Collapsed(none, 2));
}

TEST(Collapsed, OfTheCollapsedSpecimenAndNotOfTheTrainedModel) {
  // Shares on the held-out text, in the READMEs of the bundled models, as thousandths.
  EXPECT_TRUE(Collapsed(Tokens{0, 0, 0, 500, 0, 0, 500, 0}, 2));
  EXPECT_TRUE(Collapsed(Tokens{0, 1, 0, 499, 0, 1, 0, 499}, 2));
  EXPECT_FALSE(Collapsed(Tokens{127, 124, 127, 127, 122, 120, 125, 127}, 2));
  // The language with the most skewed routing of all: one expert with 25 %, half of what it can have.
  EXPECT_FALSE(Collapsed(Tokens{250, 107, 107, 107, 107, 107, 107, 108}, 2));
}

TEST(Collapsed, WhenEntropyIsUnderOneHalf) {
  // All on s of 16 experts alike: entropy ln s / ln 16, one half at s = 4.
  Tokens tokens(16, 0);
  for (std::size_t s = 1; s <= 16; ++s) {
    tokens[s - 1] = 10;
    EXPECT_EQ(Collapsed(tokens, 2), s < 4) << s << " experts";
  }
}

TEST(Collapsed, WhenFewerThanKExpertsTakeOverNineTenths) {
  Tokens nearly_all(11, 9);
  nearly_all[10] = 1;  // 10 of 11 experts with 90 of 91: fewer than k = 11, and entropy near 1
  EXPECT_GT(NormalizedEntropy(nearly_all), 0.9);
  EXPECT_TRUE(Collapsed(nearly_all, 11));
  EXPECT_FALSE(Collapsed(nearly_all, 10)) << "9 experts have 81 of 91, 0.89";
  // 9 of 10 experts with 90 of 100: not over 90 %.
  EXPECT_FALSE(Collapsed(Tokens{10, 10, 10, 10, 10, 10, 10, 10, 10, 10}, 10));
}

TEST(Collapsed, TopOneRoutingIsJudgedByItsEntropyAlone) {
  EXPECT_TRUE(Collapsed(Tokens{100, 1, 0, 0}, 1));
  EXPECT_FALSE(Collapsed(Tokens{100, 90, 80, 0}, 1));
}

}  // namespace
}  // namespace moe
