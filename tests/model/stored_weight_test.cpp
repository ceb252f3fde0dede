// Every form in which a checkpoint may keep a weight, element by element against the format's specification.
#include "model/stored_weight.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/text.h"
#include "tests/model/model_files.h"

namespace moe {
namespace {

using ::testing::HasSubstr;

using Shape = std::vector<std::int64_t>;

template <typename T>
std::string BytesOf(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

/// A folder with these tensors, opened.
struct Stored {
  explicit Stored(const std::vector<TestTensor>& tensors) : checkpoint(Write(folder, tensors)) {}

  static Checkpoint Write(const TemporaryFolder& folder, const std::vector<TestTensor>& tensors) {
    folder.Write("model.safetensors", Safetensors(tensors));
    Result<Checkpoint> opened = Checkpoint::Open(folder.path());
    MOE_CHECK(opened.ok(), opened.status().message());
    return *std::move(opened);
  }

  TemporaryFolder folder;
  Checkpoint checkpoint;
};

TensorSpec Matrix(const std::string& name, Shape shape, StoredEncoding encoding = StoredEncoding::kPlain) {
  TensorSpec spec{.role = TensorRole::kMlpUp, .part = ModelPart::kExperts, .shape = shape, .name = name};
  spec.stored_shape = std::move(shape);
  spec.encoding = encoding;
  return spec;
}

/// All rows, read `at_a_time`.
std::vector<float> ReadAll(const Checkpoint& checkpoint, const TensorSpec& spec, std::size_t at_a_time = 3) {
  const Result<StoredMatrix> matrix = StoredMatrix::Map(checkpoint, spec);
  EXPECT_TRUE(matrix.ok()) << matrix.status().message();
  if (!matrix.ok()) return {};
  EXPECT_EQ(static_cast<std::int64_t>(matrix->rows()), spec.shape[0]);
  EXPECT_EQ(static_cast<std::int64_t>(matrix->cols()), spec.shape[1]);
  std::vector<float> values(matrix->rows() * matrix->cols());
  for (std::size_t row = 0; row < matrix->rows(); row += at_a_time) {
    const std::size_t rows = std::min(at_a_time, matrix->rows() - row);
    matrix->ReadRows(row, MatrixView<float>(values.data() + row * matrix->cols(), rows, matrix->cols()));
  }
  return values;
}

std::string Error(const Checkpoint& checkpoint, const TensorSpec& spec) {
  const Result<StoredForm> form = CheckStored(checkpoint, spec);
  const Result<StoredMatrix> matrix = StoredMatrix::Map(checkpoint, spec);
  EXPECT_EQ(form.ok(), matrix.ok());
  return form.ok() ? "no error" : form.status().message();
}

bool SameFloat(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) || std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
}

/// The bytes of 0, 1, 2, … as floats.
std::vector<float> Counting(std::size_t count) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<float>(i);
  return values;
}

// OCP 8-bit Floating Point Specification (OFP8) 1.0, table 1 and 2: e4m3 has bias 7; S.0000.000 is zero, S.0000.001 …
// S.0000.111 are 2^-9 … 7 * 2^-9, the largest is S.1111.110 = 448, S.1111.111 is not a number. The first code of each
// exponent and its step, positive:
struct E4m3Row {
  float first;
  float step;
};
constexpr std::array<E4m3Row, 16> kE4m3 = {{{0, 0.001953125f},
                                            {0.015625f, 0.001953125f},
                                            {0.03125f, 0.00390625f},
                                            {0.0625f, 0.0078125f},
                                            {0.125f, 0.015625f},
                                            {0.25f, 0.03125f},
                                            {0.5f, 0.0625f},
                                            {1, 0.125f},
                                            {2, 0.25f},
                                            {4, 0.5f},
                                            {8, 1},
                                            {16, 2},
                                            {32, 4},
                                            {64, 8},
                                            {128, 16},
                                            {256, 32}}};

float E4m3(std::size_t code) {
  const E4m3Row& row = kE4m3[code / 8 % 16];
  const float size = row.first + static_cast<float>(code % 8) * row.step;
  if (code % 128 == 127) return std::numeric_limits<float>::quiet_NaN();
  return code >= 128 ? -size : size;
}

TEST(StoredWeight, Fp8HasAllCodesTimesTheScaleOfTheirBlock) {
  // 131 × 260 elements: two by three blocks of 128 × 128, the last of them 3 × 4. All codes are in every whole block.
  const std::size_t rows = 131;
  const std::size_t cols = 260;
  std::vector<std::uint8_t> codes(rows * cols);
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>(i * 7 + i / cols);
  const std::vector<float> scales = {1, 0.5f, 3.3f, 1e-4f, 7e10f, 0.1f};
  const Stored stored(
      {{"w.weight", "F8_E4M3", {131, 260}, BytesOf(codes)}, {"w.weight_scale_inv", "F32", {2, 3}, BytesOf(scales)}});
  const TensorSpec spec = Matrix("w.weight", {131, 260}, StoredEncoding::kFp8Blocks);

  const Result<StoredForm> form = CheckStored(stored.checkpoint, spec);
  ASSERT_TRUE(form.ok()) << form.status().message();
  EXPECT_EQ(form->exact_type, WeightType::kF32);
  EXPECT_EQ(form->weights, rows * cols);
  EXPECT_EQ(form->tensors, (std::vector<std::string>{"w.weight", "w.weight_scale_inv"}));

  std::array<bool, 256> seen{};
  const std::vector<float> values = ReadAll(stored.checkpoint, spec);
  ASSERT_EQ(values.size(), codes.size());
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t col = 0; col < cols; ++col) {
      const std::uint8_t code = codes[row * cols + col];
      seen[code] = true;
      const float scale = scales[(row < 128 ? 0u : 3u) + (col < 128 ? 0u : col < 256 ? 1u : 2u)];
      ASSERT_TRUE(SameFloat(values[row * cols + col], E4m3(code) * scale))
          << row << ", " << col << ": code " << int{code} << " is " << values[row * cols + col];
    }
  }
  EXPECT_THAT(seen, ::testing::Each(true));
  EXPECT_EQ(E4m3(0x7e), 448);
}

TEST(StoredWeight, Fp8NeedsScalesOfItsBlocks) {
  const TensorSpec spec = Matrix("w.weight", {129, 128}, StoredEncoding::kFp8Blocks);
  const TestTensor codes = {"w.weight", "F8_E4M3", {129, 128}, std::string(129 * 128, '\0')};
  const auto error = [&](const TestTensor& scales) { return Error(Stored({codes, scales}).checkpoint, spec); };
  EXPECT_EQ(error({"w.weight_scale_inv", "F32", {2, 1}, std::string(8, '\0')}), "no error");
  EXPECT_THAT(error({"w.weight_scale_inv", "F32", {1, 1}, std::string(4, '\0')}),
              HasSubstr("tensor w.weight_scale_inv has shape (1, 1), but config.json describes (2, 1)"));
  EXPECT_THAT(error({"w.weight_scale_inv", "BF16", {2, 1}, std::string(4, '\0')}),
              HasSubstr("tensor w.weight_scale_inv has dtype BF16, not F32"));
  EXPECT_THAT(error({"w.scale", "F32", {2, 1}, std::string(8, '\0')}), "tensor w.weight_scale_inv is missing");
  // FP8 is for configurations that say so.
  EXPECT_THAT(Error(Stored({codes}).checkpoint, Matrix("w.weight", {129, 128})),
              HasSubstr("tensor w.weight has dtype F8_E4M3, not F32, BF16 or F16"));
}

TEST(StoredWeight, Fp8ConfigurationMayKeepAWeightPlain) {
  const Stored stored({{"w.weight", "BF16", {2, 3}, std::string(12, '\0')}});
  const Result<StoredForm> form =
      CheckStored(stored.checkpoint, Matrix("w.weight", {2, 3}, StoredEncoding::kFp8Blocks));
  ASSERT_TRUE(form.ok()) << form.status().message();
  EXPECT_EQ(form->encoding, StoredEncoding::kPlain);
  EXPECT_EQ(form->exact_type, WeightType::kBf16);
}

/// gpt-oss's: expert `expert` of (experts, inputs, outputs), in blocks of (experts, outputs, inputs / 32, 16).
TensorSpec Blocks(Shape stored, int expert, std::int64_t outputs, std::int64_t first = 0, std::int64_t step = 1) {
  TensorSpec spec = Matrix("w", {outputs, stored[1]}, StoredEncoding::kMxfp4);
  spec.stored_shape = std::move(stored);
  spec.slice = {.expert = expert, .transposed = true, .first = first, .step = step};
  return spec;
}

TEST(StoredWeight, Mxfp4HasAllCodesTimesPowersOfTwo) {
  // OCP Microscaling Formats (MX) 1.0: e2m1 (table 5, bias 1, no infinity, no NaN), e8m0 (section 5.4.1, bias 127).
  constexpr std::array<float, 16> kE2m1 = {0,     0.5f,  1,     1.5f,  2,     3,     4,     6,
                                           -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
  const std::vector<std::uint8_t> exponents = {127, 0, 1, 126, 128, 252, 3, 254, 120, 131, 255, 127};
  // 2 experts × 3 outputs × 2 blocks of 32 inputs; block b begins with code b, and then all codes come in turn.
  std::string bytes;
  for (std::size_t block = 0; block < 12; ++block) {
    for (std::size_t i = 0; i < 16; ++i) {
      const std::size_t low = (block + 2 * i) % 16;
      const std::size_t high = (block + 2 * i + 1) % 16;
      bytes += static_cast<char>(low | high << 4);
    }
  }
  const Stored stored({{"w_blocks", "U8", {2, 3, 2, 16}, bytes}, {"w_scales", "U8", {2, 3, 2}, BytesOf(exponents)}});
  for (const int expert : {0, 1}) {
    const TensorSpec spec = Blocks({2, 64, 3}, expert, 3);
    const std::vector<float> values = ReadAll(stored.checkpoint, spec, 2);
    ASSERT_EQ(values.size(), 3u * 64);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const std::size_t block = static_cast<std::size_t>(expert) * 6 + i / 32;
      const int exponent = exponents[block];
      const float scale = exponent == 255 ? std::numeric_limits<float>::quiet_NaN() : std::ldexp(1.0f, exponent - 127);
      ASSERT_TRUE(SameFloat(values[i], kE2m1[(block + i % 32) % 16] * scale)) << expert << ", " << i;
      // The claim that bf16 holds them all, but where the largest scale leaves the range of both types.
      ASSERT_TRUE(SameFloat(Bf16ToF32(F32ToBf16(values[i])), values[i])) << values[i];
    }
  }
  const Result<StoredForm> form = CheckStored(stored.checkpoint, Blocks({2, 64, 3}, 0, 3));
  ASSERT_TRUE(form.ok()) << form.status().message();
  EXPECT_EQ(form->exact_type, WeightType::kBf16);
  EXPECT_EQ(form->weights, 2u * 3 * 64);
}

TEST(StoredWeight, Mxfp4RowsOfGateAndUpAlternate) {
  // One block an output; the scale says which output it is.
  std::vector<std::uint8_t> scales = {127, 128, 129, 130, 131, 132};
  const Stored stored({{"w_blocks", "U8", {1, 6, 1, 16}, std::string(6 * 16, '\x22')},  // all 1
                       {"w_scales", "U8", {1, 6, 1}, BytesOf(scales)}});
  const std::vector<float> gate = ReadAll(stored.checkpoint, Blocks({1, 32, 6}, 0, 3, 0, 2), 1);
  const std::vector<float> up = ReadAll(stored.checkpoint, Blocks({1, 32, 6}, 0, 3, 1, 2), 2);
  for (std::size_t i = 0; i < 96; ++i) {
    const float first = std::ldexp(1.0f, static_cast<int>(i / 32) * 2);  // outputs 0, 2, 4
    EXPECT_EQ(gate[i], first);
    EXPECT_EQ(up[i], 2 * first);
  }
}

TEST(StoredWeight, Mxfp4RefusesOtherShapesAndTypes) {
  const TensorSpec spec = Blocks({1, 64, 2}, 0, 2);
  const TestTensor blocks = {"w_blocks", "U8", {1, 2, 2, 16}, std::string(64, '\0')};
  const TestTensor scales = {"w_scales", "U8", {1, 2, 2}, std::string(4, '\0')};
  EXPECT_EQ(Error(Stored({blocks, scales}).checkpoint, spec), "no error");
  EXPECT_EQ(Error(Stored({blocks}).checkpoint, spec), "tensor w_scales is missing");
  EXPECT_EQ(Error(Stored({scales}).checkpoint, spec), "tensor w_blocks is missing");
  const TestTensor flat = {"w_blocks", "U8", {1, 2, 32}, std::string(64, '\0')};
  EXPECT_THAT(Error(Stored({flat, scales}).checkpoint, spec), HasSubstr("describes (1, 2, 2, 16)"));
  const TestTensor typed = {"w_scales", "F8_E8M0", {1, 2, 2}, std::string(4, '\0')};
  EXPECT_THAT(Error(Stored({blocks, typed}).checkpoint, spec), HasSubstr("w_scales has dtype F8_E8M0, not U8"));
  EXPECT_THAT(Error(Stored({blocks, scales}).checkpoint, Blocks({1, 65, 2}, 0, 2)),
              HasSubstr("tensor w_blocks has 65 inputs, which blocks of 32 do not divide"));
}

TEST(StoredWeight, Mxfp4ModelMayHaveBeenSavedPlain) {
  const Stored stored({{"w", "F32", {1, 2, 3}, BytesOf(Counting(6))}});
  const TensorSpec spec = Blocks({1, 2, 3}, 0, 3);
  EXPECT_EQ(ReadAll(stored.checkpoint, spec), (std::vector<float>{0, 3, 1, 4, 2, 5}));
}

/// 2 experts of (inputs 3, outputs 4) or (outputs 4, inputs 3), counted through.
TEST(StoredWeight, ExpertsAreSlicesOfATensor) {
  const Stored stored({{"w", "F32", {2, 4, 3}, BytesOf(Counting(24))}});
  TensorSpec spec = Matrix("w", {4, 3});
  spec.stored_shape = {2, 4, 3};
  spec.slice.expert = 1;
  const std::vector<float> values = ReadAll(stored.checkpoint, spec);
  for (std::size_t i = 0; i < 12; ++i) EXPECT_EQ(values[i], static_cast<float>(12 + i));
  EXPECT_TRUE(StoredMatrix::Map(stored.checkpoint, spec)->plain().has_value());
  EXPECT_EQ(CheckStored(stored.checkpoint, spec)->weights, 24u);
}

TEST(StoredWeight, HalvesAreRowsFromTheMiddleOn) {
  const Stored stored({{"w", "F32", {2, 4, 3}, BytesOf(Counting(24))}});
  TensorSpec spec = Matrix("w", {2, 3});
  spec.stored_shape = {2, 4, 3};
  spec.slice = {.expert = 1, .first = 2};
  EXPECT_EQ(ReadAll(stored.checkpoint, spec), (std::vector<float>{18, 19, 20, 21, 22, 23}));
  const Result<StoredMatrix> matrix = StoredMatrix::Map(stored.checkpoint, spec);
  ASSERT_TRUE(matrix->plain().has_value());
  EXPECT_EQ(matrix->plain()->at(1, 2), 23);
  EXPECT_EQ(matrix->plain()->rows, 2u);
}

TEST(StoredWeight, TransposedTensorsAreReadByColumns) {
  const Stored stored({{"w", "F32", {2, 3, 4}, BytesOf(Counting(24))}});
  TensorSpec spec = Matrix("w", {4, 3});
  spec.stored_shape = {2, 3, 4};
  spec.slice = {.expert = 1, .transposed = true};
  EXPECT_EQ(ReadAll(stored.checkpoint, spec), (std::vector<float>{12, 16, 20, 13, 17, 21, 14, 18, 22, 15, 19, 23}));
  EXPECT_FALSE(StoredMatrix::Map(stored.checkpoint, spec)->plain().has_value());
  // Halves of the outputs, as Llama 4 has gate and up, and every second one, as gpt-oss has them.
  spec.shape = {2, 3};
  spec.slice.first = 2;
  EXPECT_EQ(ReadAll(stored.checkpoint, spec), (std::vector<float>{14, 18, 22, 15, 19, 23}));
  spec.slice = {.expert = 0, .transposed = true, .first = 1, .step = 2};
  EXPECT_EQ(ReadAll(stored.checkpoint, spec), (std::vector<float>{1, 5, 9, 3, 7, 11}));
}

TEST(StoredWeight, InterleavedRowsAreNotPlain) {
  const Stored stored({{"w", "F32", {1, 4, 2}, BytesOf(Counting(8))}});
  TensorSpec spec = Matrix("w", {2, 2});
  spec.stored_shape = {1, 4, 2};
  spec.slice = {.expert = 0, .first = 1, .step = 2};
  EXPECT_EQ(ReadAll(stored.checkpoint, spec), (std::vector<float>{2, 3, 6, 7}));
  EXPECT_FALSE(StoredMatrix::Map(stored.checkpoint, spec)->plain().has_value());
}

TEST(StoredWeight, VectorsAreSlicesToo) {
  const Stored stored({{"b", "F32", {2, 4}, BytesOf(Counting(8))}});
  TensorSpec spec{.role = TensorRole::kMlpUp, .part = ModelPart::kExperts, .shape = {2}, .bias = true, .name = "b"};
  spec.stored_shape = {2, 4};
  const auto read = [&](const TensorSlice& slice) {
    spec.slice = slice;
    return *ReadVector(stored.checkpoint, spec);
  };
  EXPECT_EQ(read({.expert = 0, .first = 2}), (std::vector<float>{2, 3}));
  EXPECT_EQ(read({.expert = 1, .first = 0, .step = 2}), (std::vector<float>{4, 6}));
  EXPECT_EQ(read({.expert = 1, .first = 1, .step = 2}), (std::vector<float>{5, 7}));
}

TEST(StoredWeight, PlainTypesAreReadExactly) {
  // 1, −2, the smallest subnormal, the largest finite value, infinity; bits by IEEE 754 and bfloat16's definition.
  const std::vector<std::uint16_t> f16 = {0x3c00, 0xc000, 0x0001, 0x7bff, 0x7c00};
  const std::vector<std::uint16_t> bf16 = {0x3f80, 0xc000, 0x0001, 0x7f7f, 0x7f80};
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> f16_values = {1, -2, 5.9604644775390625e-8f, 65504, infinity};
  const std::vector<float> bf16_values = {1, -2, std::ldexp(1.0f, -133), 3.38953138925153547590470800371487866880e38f,
                                          infinity};
  const std::vector<float> f32_values = {1, -2, 1e-45f, 3.4028234663852886e38f, infinity};
  const Stored stored({{"h", "F16", {1, 5}, BytesOf(f16)},
                       {"odd", "U8", {1}, "x"},  // what follows is not aligned
                       {"b", "BF16", {1, 5}, BytesOf(bf16)},
                       {"f", "F32", {1, 5}, BytesOf(f32_values)},
                       {"d", "F64", {1, 5}, std::string(40, '\0')}});
  const auto type = [&](const char* name) { return CheckStored(stored.checkpoint, Matrix(name, {1, 5}))->exact_type; };
  EXPECT_EQ(ReadAll(stored.checkpoint, Matrix("h", {1, 5})), f16_values);
  EXPECT_EQ(ReadAll(stored.checkpoint, Matrix("b", {1, 5})), bf16_values);
  EXPECT_EQ(ReadAll(stored.checkpoint, Matrix("f", {1, 5})), f32_values);
  EXPECT_EQ(type("h"), WeightType::kF16);
  EXPECT_EQ(type("b"), WeightType::kBf16);
  EXPECT_EQ(type("f"), WeightType::kF32);
  EXPECT_THAT(Error(stored.checkpoint, Matrix("d", {1, 5})), HasSubstr("tensor d has dtype F64, not F32, BF16 or F16"));
  EXPECT_THAT(Error(stored.checkpoint, Matrix("h", {5, 1})), HasSubstr("tensor h has shape (1, 5)"));
}

}  // namespace
}  // namespace moe
