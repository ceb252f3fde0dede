#include "bench/engine/kernel_bench.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "bench/engine/dot_instructions.h"

namespace moe {
namespace {

using testing::HasSubstr;

/// The smallest of everything: one matrix of each shape, once.
KernelBenchOptions Tiny() {
  return {.rows = {1, 3},
          .contexts = {40},
          .weight_types = {WeightType::kBf16},
          .models = {"qwen3-30b-a3b"},
          .threads = 2,
          .seconds = 0,
          .cold_bytes = 1};
}

const auto kQuietly = [](const std::string&) {};

/// Kernels of which two can be wrong.
class WrongKernels final : public Kernels {
 public:
  float product_error = 0;
  float attention_error = 0;

  std::string_view name() const override { return "wrong"; }
  void MatMulPanels(MatrixView<const float> x, const PackedMatrix& w, std::size_t begin, std::size_t end,
                    MatrixView<float> y) const override {
    right_.MatMulPanels(x, w, begin, end, y);
    y(y.rows() - 1, 0) += product_error;
  }
  void MatMulPanels(const QuantizedView& x, const PackedMatrix& w, std::size_t begin, std::size_t end,
                    MatrixView<float> y) const override {
    right_.MatMulPanels(x, w, begin, end, y);
    y(y.rows() - 1, 0) += product_error;
  }
  void QuantizeRow(std::span<const float> x, std::size_t group, const QuantizedGroups& out) const override {
    right_.QuantizeRow(x, group, out);
  }
  void QuantizeWeights(const WeightView&, WeightType, std::span<std::uint8_t>,
                       std::span<std::uint16_t>) const override {}
  void Attention(const AttentionTask& task) const override {
    right_.Attention(task);
    task.out(task.out.rows() - 1, task.out.cols() - 1) += attention_error;
  }
  void RmsNorm(std::span<const float>, std::span<const float>, float, std::span<float>) const override {}
  void Rope(MatrixView<float>, std::span<const float>, std::span<const float>, RopePairing) const override {}
  void SiluMul(std::span<float>, std::span<const float>) const override {}
  void ClampedSwiGlu(std::span<float>, std::span<const float>, float) const override {}
  void Relu(std::span<float>) const override {}
  void Sigmoid(std::span<float>) const override {}
  void Clamp(float, std::span<float>) const override {}
  void Scale(float, std::span<float>) const override {}
  void Add(std::span<const float>, std::span<float>) const override {}
  void AddScaled(float, std::span<const float>, std::span<float>) const override {}
  void Softmax(std::span<float>) const override {}
  float LogSumExp(std::span<const float>) const override { return 0; }

 private:
  const Kernels& right_ = SimdKernels();
};

TEST(KernelBench, MeasuresEveryShapeWithEveryNumberOfRows) {
  const auto results = RunKernelBench(Tiny(), SimdKernels(), kQuietly);
  ASSERT_TRUE(results.ok()) << results.status().message();
  ASSERT_EQ(results->size(), 3u * 2 + 2);  // expert's two matrices and attention's, then attention over both types
  for (const KernelResult& result : *results) {
    EXPECT_EQ(result.model, "qwen3-30b-a3b");
    EXPECT_GT(result.bytes_per_s, 0) << result.shape;
    EXPECT_LE(result.largest_error, 1) << result.shape;
    // Both rates are of the same seconds: a weight of two bytes is multiplied and added once a row; a key and a value
    // of four bytes each, or two, serve the eight query heads of their group.
    const double key_and_value_bytes = result.type == "f32" ? 8 : 4;
    const double operations_per_byte =
        result.kernel == "matmul" ? static_cast<double>(result.rows) : 4.0 * 8 / key_and_value_bytes;
    EXPECT_NEAR(result.operations_per_s / result.bytes_per_s, operations_per_byte, 1e-9) << result.shape;
  }
  EXPECT_EQ(results->front().shape, "expert gate and up 1536x2048");
  EXPECT_EQ(results->back().shape, "32 heads on 4 of 128, 40 positions");
}

TEST(KernelBench, RefusesAKernelThatIsWrong) {
  WrongKernels kernels;
  ASSERT_TRUE(RunKernelBench(Tiny(), kernels, kQuietly).ok());
  kernels.product_error = 0.1f;
  const Status product = RunKernelBench(Tiny(), kernels, kQuietly).status();
  EXPECT_EQ(product.code(), StatusCode::kInternal);
  EXPECT_THAT(product.message(), HasSubstr("matmul of qwen3-30b-a3b, expert gate and up 1536x2048, in bf16 differs"));
  kernels.product_error = std::nanf("");
  EXPECT_FALSE(RunKernelBench(Tiny(), kernels, kQuietly).ok());
  kernels.product_error = 0;
  kernels.attention_error = 0.01f;
  EXPECT_THAT(RunKernelBench(Tiny(), kernels, kQuietly).status().message(),
              HasSubstr("attention of qwen3-30b-a3b, 32 heads on 4 of 128, 40 positions, in f32 differs"));
}

TEST(KernelBench, RefusesValuesOutOfRangeByName) {
  const auto message = [](const auto& change) {
    KernelBenchOptions options = Tiny();
    change(options);
    return CheckKernelBench(options).message();
  };
  EXPECT_TRUE(CheckKernelBench(Tiny()).ok());
  EXPECT_EQ(message([](auto& o) { o.rows = {4, 0}; }), "--rows 0 is not from 1 to 16384");
  EXPECT_EQ(message([](auto& o) { o.rows = {16385}; }), "--rows 16385 is not from 1 to 16384");
  EXPECT_EQ(message([](auto& o) { o.contexts = {0}; }), "--contexts 0 is not from 1 to 1048576");
  EXPECT_EQ(message([](auto& o) { o.models = {"gpt-5"}; }),
            "--models gpt-5 is unknown (olmoe-1b-7b, mixtral-8x7b, qwen3-30b-a3b)");
  EXPECT_EQ(message([](auto& o) { o.rows = o.contexts = {}; }), "--rows and --contexts leave nothing to measure");
}

TEST(KernelBench, SetsEachKernelBesideWhatItsInstructionDoes) {
  KernelBenchOptions options = Tiny();
  options.weight_types = {WeightType::kF32, WeightType::kInt4};
  const auto results = RunKernelBench(options, SimdKernels(), kQuietly);
  ASSERT_TRUE(results.ok()) << results.status().message();
  for (const KernelResult& result : *results) {
    EXPECT_GT(result.read_bytes_per_s, 0) << result.shape;
    EXPECT_GT(result.share_of_bandwidth, 0) << result.shape;
    const std::string format = result.type == "int4" ? "int8" : "fp32";
    const DotInstruction* const instruction = InstructionOf(SimdKernels().name(), format);
    ASSERT_EQ(result.peak.has_value(), instruction != nullptr);
    if (!instruction) continue;
    EXPECT_EQ(result.peak->instruction, Cat(format, " ", instruction->instruction_set));
    EXPECT_GT(result.peak->operations_per_s, 0) << result.shape;
    EXPECT_GT(result.peak->share, 0) << result.shape;
  }
  const auto unknown = RunKernelBench(options, WrongKernels(), kQuietly);
  ASSERT_TRUE(unknown.ok()) << unknown.status().message();
  EXPECT_FALSE(unknown->front().peak) << "nobody knows what kernels of this name multiply with";
}

KernelResult SomeResult(std::size_t rows = 4, const char* shape = "s") {
  return {.kernel = "matmul",
          .model = "m",
          .shape = shape,
          .type = "int8",
          .rows = rows,
          .largest_error = 0.5,
          .bytes_per_s = 20e9,
          .read_bytes_per_s = 39e9,
          .share_of_bandwidth = 0.5,
          .operations_per_s = 80e9,
          .peak = KernelResult::Peak{.instruction = "int8 avx2", .operations_per_s = 390e9, .share = 0.2}};
}

TEST(KernelBench, ReportsSharesOfTheRoofs) {
  const KernelBenchContext context{
      .dot_roofs = {{.format = "int8", .instruction_set = "avx2", .operations_per_s = 400e9}},
      .kernels = "avx2",
      .threads = 2};
  const auto json = nlohmann::json::parse(KernelResultsJson({SomeResult()}, context));
  EXPECT_EQ(json["target"], "avx2");
  EXPECT_EQ(json["threads"], 2);
  EXPECT_EQ(json["roofs"][0]["operations_per_s"], 400e9);
  const nlohmann::json expected = {{"kernel", "matmul"},
                                   {"model", "m"},
                                   {"shape", "s"},
                                   {"weight_type", "int8"},
                                   {"rows", 4},
                                   {"bytes_per_s", 20e9},
                                   {"read_bytes_per_s", 39e9},
                                   {"share_of_bandwidth", 0.5},
                                   {"operations_per_s", 80e9},
                                   {"peak_instruction", "int8 avx2"},
                                   {"peak_operations_per_s", 390e9},
                                   {"share_of_peak", 0.2},
                                   {"largest_error", 0.5}};
  EXPECT_EQ(json["kernels"][0], expected);
  EXPECT_THAT(KernelTable({SomeResult()}, context),
              testing::EndsWith("matmul, m, s, int8\n"
                                "rows  GB/s  reading  share  Gop/s  int8 avx2  share\n"
                                "---------------------------------------------------\n"
                                "4     20.0     39.0    50%   80.0      390.0    20%\n"));
}

TEST(KernelBench, ReportsNoShareOfAPeakThatIsUnknown) {
  KernelResult result = SomeResult();
  result.peak.reset();
  const auto kernel = nlohmann::json::parse(KernelResultsJson({result}, {}))["kernels"][0];
  for (const char* key : {"peak_instruction", "peak_operations_per_s", "share_of_peak"})
    EXPECT_TRUE(kernel[key].is_null()) << key;
  EXPECT_THAT(KernelTable({result}, {}), testing::EndsWith(" 80.0     -      -\n"));
}

TEST(KernelTable, HasATableForEachShapeWithALineForEachNumberOfRows) {
  const std::string table = KernelTable({SomeResult(), SomeResult(8), SomeResult(4, "t")}, {});
  EXPECT_THAT(table,
              testing::ContainsRegex("matmul, m, s, int8\nrows[^\n]*\n-+\n4 [^\n]*\n8 [^\n]*\n\nmatmul, m, t, int8\n"));
}

TEST(InstructionOf, IsThatOfTheKernelsInstructionSet) {
  for (const DotInstruction& instruction : DotInstructions()) {
    if (!instruction.available() || instruction.format == "bf16") continue;
    // These are Highway's names of the sets that the kernels are compiled for.
    for (const std::string_view kernels : {"avx2", "avx3", "avx3_dl", "amx"}) {
      const DotInstruction* const found = InstructionOf(kernels, instruction.format);
      if (found == nullptr) continue;
      EXPECT_EQ(found->format, instruction.format);
      std::string_view expected = kernels == "avx2" ? "avx2" : "avx512";
      if (found->format == "int8" && kernels == "avx3_dl") expected = "avx512_vnni";
      if (found->format == "int8" && kernels == "amx") expected = "amx_int8";
      EXPECT_EQ(found->instruction_set, expected);
    }
  }
  EXPECT_NE(InstructionOf(SimdKernels().name(), "fp32"), nullptr) << "every machine multiplies floats";
  EXPECT_EQ(InstructionOf("reference", "fp32"), nullptr);
  EXPECT_EQ(InstructionOf("avx2", "fp8"), nullptr);
}

TEST(DotInstructions, DoWhatTheyCount) {
  for (const DotInstruction& instruction : DotInstructions()) {
    if (!instruction.available()) continue;
    float sink = 1;
    const double once = instruction.run(1, sink);
    EXPECT_GT(once, 0) << instruction.instruction_set;
    sink = 1;
    EXPECT_EQ(instruction.run(1000, sink), 1000 * once) << instruction.instruction_set;
    if (instruction.format != "fp32") continue;
    // Each of twelve chains becomes 1e-3 of itself and 2e-3 in a round, and so comes to rest.
    EXPECT_NEAR(sink, 12 * 2e-3 / (1 - 1e-3), 1e-6) << instruction.instruction_set;
  }
}

TEST(MeasureDotRoofs, GivesEveryInstructionThatTheMachineHas) {
  std::size_t available = 0;
  for (const DotInstruction& instruction : DotInstructions()) available += instruction.available();
  const std::vector<DotRoof> roofs = MeasureDotRoofs({.threads = 1, .seconds = 1e-3});
  EXPECT_EQ(roofs.size(), available);
  for (const DotRoof& roof : roofs) EXPECT_GT(roof.operations_per_s, 0) << roof.instruction_set;
}

}  // namespace
}  // namespace moe
