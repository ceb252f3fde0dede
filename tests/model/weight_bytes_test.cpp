#include "model/weight_bytes.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/text.h"
#include "kernels/quantize.h"
#include "model/weight_types.h"
#include "tests/model/small_model.h"

namespace moe {
namespace {

constexpr WeightType kF32 = WeightType::kF32;
constexpr WeightType kBf16 = WeightType::kBf16;
constexpr WeightType kInt8 = WeightType::kInt8;
constexpr WeightType kInt4 = WeightType::kInt4;
constexpr WeightType kAllTypes[] = {kF32, kBf16, WeightType::kF16, kInt8, kInt4};

/// By role: what a weight is held in when `--weight-type` is each of kAllTypes.
struct Expected {
  TensorRole role;
  WeightType held[5];
};

constexpr Expected kExpected[] = {
    {TensorRole::kEmbedding, {kF32, kBf16, WeightType::kF16, kBf16, kBf16}},
    {TensorRole::kKvUp, {kF32, kBf16, WeightType::kF16, kBf16, kBf16}},
    {TensorRole::kHead, {kF32, kBf16, WeightType::kF16, kInt8, kInt8}},
    {TensorRole::kQuery, {kF32, kBf16, WeightType::kF16, kInt8, kInt8}},
    {TensorRole::kQueryDown, {kF32, kBf16, WeightType::kF16, kInt8, kInt8}},
    {TensorRole::kKvDown, {kF32, kBf16, WeightType::kF16, kInt8, kInt8}},
    {TensorRole::kAttentionOut, {kF32, kBf16, WeightType::kF16, kInt8, kInt8}},
    {TensorRole::kCrossKey, {kF32, kBf16, WeightType::kF16, kInt8, kInt8}},
    {TensorRole::kMlpGate, {kF32, kBf16, WeightType::kF16, kInt8, kInt4}},
    {TensorRole::kMlpUp, {kF32, kBf16, WeightType::kF16, kInt8, kInt4}},
    {TensorRole::kMlpDown, {kF32, kBf16, WeightType::kF16, kInt8, kInt4}},
    {TensorRole::kRouter, {kF32, kF32, kF32, kF32, kF32}},
    {TensorRole::kSharedRouter, {kF32, kF32, kF32, kF32, kF32}},
};

TEST(HeldType, IsByRole) {
  for (const Expected& expected : kExpected) {
    const TensorSpec matrix{.role = expected.role, .shape = {32, 64}};
    const TensorSpec bias{.role = expected.role, .shape = {32}, .bias = true};
    for (std::size_t i = 0; i < 5; ++i) {
      EXPECT_EQ(HeldType(matrix, kAllTypes[i]), expected.held[i])
          << "role " << static_cast<int>(expected.role) << " as " << Name(kAllTypes[i]);
      EXPECT_EQ(HeldType(bias, kAllTypes[i]), kF32);
    }
  }
}

TEST(HeldType, TakesAttentionOfItsOwnType) {
  WeightTypes types = kInt4;
  types.attention = kF32;
  EXPECT_EQ(HeldType({.role = TensorRole::kMlpUp, .shape = {4, 4}}, types), kInt4);
  EXPECT_EQ(HeldType({.role = TensorRole::kQuery, .shape = {4, 4}}, types), kF32);
  EXPECT_EQ(HeldType({.role = TensorRole::kHead, .shape = {4, 4}}, types), kF32);
  EXPECT_EQ(HeldType({.role = TensorRole::kEmbedding, .shape = {4, 4}}, types), kF32);
}

TEST(HeldBytes, CountsWholeGroupsAndScales) {
  const TensorSpec up{.role = TensorRole::kMlpUp, .shape = {3, 65}};
  EXPECT_EQ(HeldBytes(up, kF32), 3u * 65 * 4);
  EXPECT_EQ(HeldBytes(up, kBf16), 3u * 65 * 2);
  EXPECT_EQ(HeldBytes(up, kInt8), 3u * 2 * (64 + 2));
  EXPECT_EQ(HeldBytes(up, kInt4), 3u * 3 * (16 + 2));
  EXPECT_EQ(HeldBytes({.role = TensorRole::kMlpUp, .shape = {3}, .bias = true}, kInt8), 12u);
}

/// Bytes of a matrix as it is held, by the documented layout: whole panels of 16 outputs, whole groups, and scales that
/// fill whole lines of 64 bytes.
std::uint64_t PackedBytes(std::uint64_t rows, std::uint64_t cols, WeightType type) {
  const std::uint64_t panels = (rows + 15) / 16;
  if (!IsQuantized(type)) return panels * 16 * cols * BytesPerWeight(type);
  const std::uint64_t groups = type == kInt8 ? (cols + 63) / 64 : (cols + 31) / 32;
  return panels * (groups * 16 * (type == kInt8 ? 64 : 16) + (groups * 32 + 63) / 64 * 64);
}

/// What the panels add to the bytes of a matrix.
std::uint64_t Padding(const PackedMatrix& matrix) {
  EXPECT_EQ(matrix.bytes(), PackedBytes(matrix.rows(), matrix.cols(), matrix.type()));
  return matrix.bytes() - MatrixBytes(matrix.rows(), matrix.cols(), matrix.type());
}

std::uint64_t Padding(const MlpWeights& mlp) {
  std::uint64_t padding = 0;
  for (const PackedMatrix* matrix : {&mlp.gate, &mlp.up, &mlp.down})
    if (!matrix->empty()) padding += Padding(*matrix);
  return padding;
}

std::uint64_t Padding(const DenseWeights& weights) {
  std::uint64_t padding = Padding(weights.head);
  for (const LayerWeights& layer : weights.layers) {
    const AttentionWeights& attention = layer.attention;
    std::vector<const PackedMatrix*> all = {&attention.projection, &attention.out, &attention.query_up, &layer.gate,
                                            &layer.shared_gate};
    if (layer.cross) {
      const CrossAttentionWeights& cross = *layer.cross;
      all.insert(all.end(), {&cross.query, &cross.key_value, &cross.out});
    }
    for (const PackedMatrix& matrix : attention.key_up) all.push_back(&matrix);
    for (const PackedMatrix& matrix : attention.value_up) all.push_back(&matrix);
    for (const PackedMatrix* matrix : all)
      if (!matrix->empty()) padding += Padding(*matrix);
    padding += Padding(layer.mlp);
  }
  return padding;
}

Opened OpenCase(const std::string& folder) { return OpenModel(InRepository(folder)); }

TEST(WeightBytes, AreThoseOfTheLoadedWeightsWithoutThePadding) {
  for (const char* folder :
       {"models/eight-languages-moe", "tests/goldens/mixtral", "tests/goldens/deepseek_v3", "tests/goldens/gpt_oss",
        "tests/goldens/qwen2_moe", "tests/goldens/switch_base", "tests/goldens/llama"}) {
    const Opened model = OpenCase(folder);
    for (const WeightType type : kAllTypes) {
      const DenseWeights dense = LoadDense(model, type);
      EXPECT_EQ(DenseBytes(model.config, type), dense.bytes - Padding(dense)) << folder << " as " << Name(type);
      for (const int layer : model.config.sparse_layers()) {
        const Result<MlpWeights> expert = LoadExpertWeights(model.config, model.checkpoint, layer, 1, type);
        ASSERT_TRUE(expert.ok()) << expert.status().message();
        EXPECT_EQ(expert->up.type(), type);
        EXPECT_EQ(ExpertBytes(model.config, layer, type), expert->bytes() - Padding(*expert))
            << folder << " as " << Name(type);
      }
    }
  }
}

TEST(WeightBytes, OfWholeGroupsAndPanelsHaveNoPadding) {
  const Opened model = OpenCase("models/eight-languages-moe");  // 128 x 256
  for (const WeightType type : {kInt8, kInt4}) {
    const Result<MlpWeights> expert = LoadExpertWeights(model.config, model.checkpoint, 0, 0, type);
    ASSERT_TRUE(expert.ok());
    const std::uint64_t bits = type == kInt8 ? 66 : 36;  // of 8 weights: 8.25 and 4.5 each
    EXPECT_EQ(expert->bytes(), std::uint64_t{3} * 128 * 256 / 64 * bits);
    EXPECT_EQ(ExpertBytes(model.config, 0, type), expert->bytes());
  }
}

TEST(LoadDenseWeights, HoldsPartsInTheirTypes) {
  const DenseWeights int4 = LoadDense(OpenCase("tests/goldens/deepseek_v3"), kInt4);
  EXPECT_EQ(int4.embedding_type, kBf16);
  EXPECT_EQ(int4.head.type(), kInt8);
  for (const LayerWeights& layer : int4.layers) {
    EXPECT_EQ(layer.attention.projection.type(), kInt8);
    EXPECT_EQ(layer.attention.out.type(), kInt8);
    EXPECT_EQ(layer.attention.query_up.type(), kInt8);
    ASSERT_FALSE(layer.attention.key_up.empty());
    EXPECT_EQ(layer.attention.key_up.front().type(), kBf16);
    EXPECT_EQ(layer.attention.value_up.front().type(), kBf16);
    EXPECT_EQ(layer.mlp.up.type(), kInt4) << "shared experts and dense layers";
    EXPECT_EQ(layer.gate.type(), kF32);
  }
}

}  // namespace
}  // namespace moe
