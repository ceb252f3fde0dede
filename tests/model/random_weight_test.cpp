// Made-up weights: the same numbers for ever, of the size that activations need, each by itself.
#include "model/random_weight.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <string>
#include <vector>

namespace moe {
namespace {

TensorSpec Matrix(const std::string& name, std::int64_t rows, std::int64_t cols,
                  ModelPart part = ModelPart::kAttention) {
  return {.role = TensorRole::kQuery, .part = part, .shape = {rows, cols}, .name = name, .stored_shape = {rows, cols}};
}

std::vector<float> Row(const TensorSpec& spec, std::size_t row) {
  std::vector<float> values(static_cast<std::size_t>(spec.shape.back()));
  RandomWeight(spec).ReadRow(row, values);
  return values;
}

// The recipe, written a second time from its description: SplitMix64's finaliser (Steele, Lea, Flood 2014) over the
// expert, the first output and the name; then over the row; then over each four columns, 16 bits a number.
std::uint64_t Finalise(std::uint64_t x) {
  x ^= x >> 30;
  x *= 13787848793156543929u;
  x ^= x >> 27;
  x *= 10723151780598845931u;
  return x ^ x >> 31;
}

float Expected(const std::string& name, std::uint64_t expert_and_one, std::uint64_t first, std::uint64_t row,
               std::uint64_t col, float amplitude) {
  constexpr std::uint64_t kStep = 11400714819323198485u;  // 2^64 over the golden ratio
  std::uint64_t seed = Finalise(expert_and_one * kStep + first + 1);
  for (const char c : name) seed = Finalise(seed + kStep + static_cast<std::uint64_t>(c));
  const std::uint64_t bits = Finalise(seed + Finalise(row + 1) + (col / 4 + 1) * kStep);
  std::int64_t number = static_cast<std::int64_t>(bits >> (16 * (col % 4)) & 65535);
  if (number >= 32768) number -= 65536;
  return amplitude * (static_cast<float>(number) / 32768);
}

TEST(RandomWeight, NumbersFollowTheRecipe) {
  TensorSpec spec = Matrix("model.layers.3.mlp.experts.gate_up_proj", 5, 48);
  spec.slice = {.expert = 6, .first = 1, .step = 2};
  for (const std::size_t row : {0u, 1u, 4u}) {
    const std::vector<float> values = Row(spec, row);
    for (std::size_t col = 0; col < values.size(); ++col) {
      EXPECT_EQ(values[col], Expected(spec.name, 7, 1, row, col, 0.25f)) << row << ", " << col;
    }
  }
}

TEST(RandomWeight, NumbersAreTheSameForEver) {
  // Benchmarks of different versions compare runs of the same model.
  const std::vector<float> values = Row(Matrix("model.layers.0.self_attn.q_proj.weight", 4, 12), 2);
  EXPECT_EQ(values,
            (std::vector<float>{-0.438385009765625f, -0.403656005859375f, -0.110443115234375f, -0.317779541015625f,
                                -0.0845794677734375f, -0.193817138671875f, 0.1463165283203125f, -0.256591796875f,
                                0.06353759765625f, -0.2095489501953125f, 0.466705322265625f, -0.174530029296875f}));
}

double Variance(const TensorSpec& spec, double& mean) {
  double sum = 0;
  double squares = 0;
  double count = 0;
  for (std::size_t row = 0; row < static_cast<std::size_t>(spec.shape.front()); ++row) {
    for (const float value : Row(spec, row)) {
      sum += value;
      squares += static_cast<double>(value) * value;
      count += 1;
    }
  }
  mean = sum / count;
  return squares / count - mean * mean;
}

TEST(RandomWeight, MatricesHaveVarianceOneOverInputs) {
  // Of n uniform numbers the mean of squares deviates by sqrt(4/5 / n) of itself, the mean by sqrt(1 / n) of a
  // deviation: 0.0028 and 0.0031 for 400 * 256; five times that is allowed.
  for (const char* name : {"a", "b", "model.layers.7.mlp.up_proj.weight"}) {
    double mean = 0;
    EXPECT_NEAR(Variance(Matrix(name, 400, 256), mean) * 256, 1, 0.014) << name;
    EXPECT_NEAR(mean * 16, 0, 0.016) << name;
    EXPECT_NEAR(Variance(Matrix(name, 400, 256, ModelPart::kEmbedding), mean), 1, 0.014) << name;
  }
}

TEST(RandomWeight, VectorsAreSmallAndNormsAreNearOne) {
  TensorSpec vector = {.role = TensorRole::kAttentionNorm, .part = ModelPart::kNorms, .shape = {4000}, .name = "norm"};
  const auto expect_near = [&](float center) {
    float least = 10;
    float most = -10;
    for (const float value : Row(vector, 0)) {
      least = std::min(least, value);
      most = std::max(most, value);
    }
    EXPECT_GE(least, center - 0.1f);
    EXPECT_LE(most, center + 0.1f);
    EXPECT_LT(least, center - 0.09f);
    EXPECT_GT(most, center + 0.09f);
  };
  expect_near(1);
  vector.bias = true;
  expect_near(0);
  vector.bias = false;
  vector.part = ModelPart::kAttention;  // sinks
  expect_near(0);
}

TEST(RandomWeight, RowsDoNotDependOnOneAnother) {
  const TensorSpec spec = Matrix("w", 64, 9);
  const RandomWeight weight(spec);
  std::vector<float> again(9);
  for (std::size_t row = 64; row > 0; --row) {
    weight.ReadRow(row - 1, again);
    EXPECT_EQ(again, Row(spec, row - 1));
  }
  // A row is the beginning of the same row of a wider matrix of as many inputs' variance.
  std::vector<float> beginning(5);
  weight.ReadRow(3, beginning);
  EXPECT_TRUE(std::equal(beginning.begin(), beginning.end(), Row(spec, 3).begin()));
}

TEST(RandomWeight, OtherRowsNamesExpertsAndHalvesAreOtherNumbers) {
  std::set<std::vector<float>> rows;
  std::size_t count = 0;
  for (const char* name : {"a", "b", "ab", "ba", "a.1", "a.11"}) {
    for (const int expert : {-1, 0, 1, 2}) {
      for (const std::int64_t first : {0, 1, 64}) {
        TensorSpec spec = Matrix(name, 8, 6);
        spec.slice = {.expert = expert, .first = first};
        for (std::size_t row = 0; row < 8; ++row, ++count) rows.insert(Row(spec, row));
      }
    }
  }
  EXPECT_EQ(rows.size(), count);
}

TEST(RandomWeight, NothingButNameAndPlaceMatters) {
  TensorSpec spec = Matrix("w", 8, 6);
  const std::vector<float> values = Row(spec, 5);
  spec.stored_shape = {99, 6, 8};
  spec.encoding = StoredEncoding::kMxfp4;
  spec.slice.transposed = true;
  spec.slice.step = 2;
  spec.role = TensorRole::kMlpDown;
  spec.part = ModelPart::kExperts;
  spec.shape[0] = 1000;
  EXPECT_EQ(Row(spec, 5), values);
}

}  // namespace
}  // namespace moe
