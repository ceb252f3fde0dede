// The kernels of the experts, on the emulated device, against the CPU's.
#include "kernels/cuda/expert_kernels.h"

#include <cmath>
#include <limits>
#include <ostream>
#include <vector>

#include "kernels/cuda/device_matrix.h"
#include "kernels/kernels.h"
#include "model/mlp_activation.h"
#include "tests/emulation/findings.h"
#include "tests/kernels/cuda/device_array.h"
#include "tests/kernels/kernel_cases.h"

namespace moe::cuda {
namespace {

using emulation::KernelTest;
using emulation::kThreadOrders;
using emulation::ScopedThreadOrder;
using emulation::ThreadOrder;

constexpr WeightType kTypes[] = {WeightType::kBf16, WeightType::kF16, WeightType::kInt8, WeightType::kInt4};
constexpr float kUntouched = 12345.0f;

using Offsets = std::vector<std::uint32_t>;

float Rounded(float value, WeightType type) {
  return type == WeightType::kBf16 ? Bf16ToF32(F32ToBf16(value)) : F16ToF32(F32ToF16(value));
}

/// `values` (rows, cols) as products with weights of `type` read them.
struct ReadyRows {
  ReadyRows(const Offsets& offsets, std::uint32_t max_rows, std::size_t cols, WeightType type)
      : device_offsets(offsets),
        rows{.offsets = device_offsets.data(),
             .slots = static_cast<std::uint32_t>(offsets.size() - 1),
             .max_rows = max_rows},
        values(max_rows * RowBytes(cols, type), std::byte{0x5a}),
        scales(IsQuantized(type) ? max_rows * GroupsOf(cols, type) : 0, kUntouched) {}

  ProductRows product() { return {.values = values.data(), .scales = scales.data()}; }

  DeviceArray<std::uint32_t> device_offsets;
  SlotRows rows;
  DeviceArray<std::byte> values;
  DeviceArray<float> scales;
};

/// The matrices of some slots on the device, and a bias for each output.
class SlotWeights {
 public:
  SlotWeights(std::size_t slots, std::size_t outputs, std::size_t inputs, WeightType type, std::uint32_t seed) {
    for (std::size_t slot = 0; slot < slots; ++slot) {
      const std::vector<float> values = RandomValues(outputs * inputs, seed + static_cast<std::uint32_t>(slot));
      matrices.push_back(PackedMatrix::Pack({.type = WeightType::kF32,
                                             .data = reinterpret_cast<const std::byte*>(values.data()),
                                             .rows = outputs,
                                             .cols = inputs},
                                            type));
    }
    const DeviceMatrixForm form = DeviceForm(matrices[0]);
    device = std::make_unique<DeviceArray<std::byte>>(slots * form.bytes());
    for (std::size_t slot = 0; slot < slots; ++slot)
      for (std::size_t panel = 0; panel < form.panels; ++panel)
        WriteDevicePanel(matrices[slot], panel,
                         device->span().subspan(slot * form.bytes() + panel * form.panel_bytes, form.panel_bytes));
    bias = std::make_unique<DeviceArray<float>>(RandomValues(slots * outputs, seed + 99));
    view = SlotsOf(form, device->data(), bias->data());
  }

  std::vector<PackedMatrix> matrices;
  std::unique_ptr<DeviceArray<std::byte>> device;
  std::unique_ptr<DeviceArray<float>> bias;
  SlotMatrices view;
};

struct Shape {
  Offsets offsets;
  std::size_t hidden = 0;
  std::size_t intermediate = 0;
};

std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  return out << shape.offsets.size() - 1 << " slots, " << shape.offsets.back() << " rows, hidden " << shape.hidden
             << ", intermediate " << shape.intermediate;
}

/// All tails: of outputs, inputs, groups, steps, chunks, tiles of rows; no rows, empty slots, one slot with all of
/// them.
std::vector<Shape> Shapes() {
  return {{{0, 1}, 1, 1},           {{0, 0}, 16, 16},         {{0, 2, 2, 5}, 64, 64}, {{0, 3, 19}, 65, 33},
          {{0, 0, 16, 17}, 31, 70}, {{0, 0, 33, 33}, 60, 44}, {{0, 7}, 129, 16},      {{0, 1, 2, 3, 4}, 256, 17},
          {{0, 70}, 48, 130},       {{0, 5, 9, 9}, 300, 257}, {{0, 0, 290}, 20, 20}};
}

class ExpertKernels : public KernelTest {};

TEST_F(ExpertKernels, MakeReadyQuantizesAsTheCpuDoes) {
  for (const WeightType type : {WeightType::kInt8, WeightType::kInt4}) {
    for (const std::size_t cols : Counts{1, 31, 32, 33, 64, 65, 127, 300}) {
      constexpr std::size_t kRows = 5;
      std::vector<float> in = RandomValues(kRows * cols, 7);
      in[0] = 0x1p-110f;                                              // with the zeros beside it: counts as nothing
      in[cols + cols / 2] = std::numeric_limits<float>::quiet_NaN();  // row 1
      in[2 * cols] = std::numeric_limits<float>::infinity();          // row 2
      for (std::size_t i = 1; i < cols; ++i) in[i] = 0;
      ReadyRows ready({0, 2, kRows}, kRows + 1, cols, type);  // a row more than there is
      MakeReady(ready.rows, DeviceArray<float>(in).data(), cols, type, ready.product(), {});
      QuantizedRows expected(kRows, cols);
      expected.Shape(kRows, cols, type);
      const std::size_t row_bytes = RowBytes(cols, type);
      const std::size_t groups = GroupsOf(cols, type);
      for (std::size_t row = 0; row < kRows; ++row) {
        const QuantizedGroups out = expected.Groups(row, 0, cols);
        SimdKernels().QuantizeRow(std::span(in).subspan(row * cols, cols), GroupSize(type), out);
        const std::span<const std::byte> got = ready.values.span().subspan(row * row_bytes, row_bytes);
        EXPECT_TRUE(std::ranges::equal(got, std::as_bytes(out.values))) << Name(type) << " " << cols << " row " << row;
        for (std::size_t g = 0; g < groups; ++g) {
          const float scale = ready.scales[row * groups + g];
          const float same = out.scales[g * out.stride];
          EXPECT_TRUE(scale == same || (std::isnan(scale) && std::isnan(same))) << row << "," << g;
        }
      }
      EXPECT_EQ(ready.scales[kRows * groups], kUntouched);
      EXPECT_EQ(ready.values[kRows * row_bytes], std::byte{0x5a});
    }
  }
}

TEST_F(ExpertKernels, MakeReadyNarrowsAndPads) {
  for (const WeightType type : {WeightType::kBf16, WeightType::kF16}) {
    for (const std::size_t cols : Counts{1, 15, 16, 17, 130}) {
      const std::vector<float> in = RandomValues(3 * cols, 8);
      ReadyRows ready({0, 3}, 4, cols, type);
      MakeReady(ready.rows, DeviceArray<float>(in).data(), cols, type, ready.product(), {});
      const std::size_t padded = PaddedInputs(cols, type);
      for (std::size_t row = 0; row < 3; ++row) {
        for (std::size_t col = 0; col < padded; ++col) {
          std::uint16_t bits;
          std::memcpy(&bits, ready.values.data() + (row * padded + col) * 2, 2);
          const float value = col < cols ? in[row * cols + col] : 0;
          ASSERT_EQ(bits, type == WeightType::kBf16 ? F32ToBf16(value) : F32ToF16(value)) << row << "," << col;
        }
      }
      EXPECT_EQ(ready.values[3 * padded * 2], std::byte{0x5a});
    }
  }
}

/// y (rows, hidden) of the down-projection of `in` (rows, intermediate), as the device gives it.
std::vector<float> Outer(const Shape& shape, WeightType type, const SlotWeights& down, const std::vector<float>& in,
                         std::uint32_t room, bool bias) {
  ReadyRows ready(shape.offsets, shape.offsets.back() + room, shape.intermediate, type);
  MakeReady(ready.rows, DeviceArray<float>(in).data(), shape.intermediate, type, ready.product(), {});
  DeviceArray<float> out(shape.offsets.back() * shape.hidden, kUntouched);
  SlotMatrices matrices = down.view;
  if (!bias) matrices.bias = nullptr;
  OuterProduct({.rows = ready.rows,
                .type = type,
                .in = ready.product(),
                .down = matrices,
                .hidden = shape.hidden,
                .intermediate = shape.intermediate,
                .out = out.data()},
               {});
  return out.values();
}

/// The same on the CPU.
std::vector<float> OuterOnCpu(const Shape& shape, WeightType type, const SlotWeights& down,
                              const std::vector<float>& in) {
  const std::size_t rows = shape.offsets.back();
  std::vector<float> out(rows * shape.hidden);
  QuantizedRows quantized(rows, shape.intermediate);
  quantized.Shape(rows, shape.intermediate, type);
  for (std::size_t row = 0; row < rows; ++row)
    SimdKernels().QuantizeRow(std::span(in).subspan(row * shape.intermediate, shape.intermediate), GroupSize(type),
                              quantized.Groups(row, 0, shape.intermediate));
  for (std::size_t slot = 0; slot + 1 < shape.offsets.size(); ++slot) {
    const std::size_t begin = shape.offsets[slot];
    const std::size_t count = shape.offsets[slot + 1] - begin;
    const MatrixView<float> y(out.data() + begin * shape.hidden, count, shape.hidden);
    SimdKernels().MatMulPanels(quantized.view().Rows(begin, count), down.matrices[slot], 0,
                               down.matrices[slot].panels(), y);
    for (std::size_t row = 0; row < count; ++row)
      SimdKernels().Add(std::span(down.bias->data() + slot * shape.hidden, shape.hidden), y.row(row));
  }
  return out;
}

TEST_F(ExpertKernels, IntegerProductsHaveTheBitsOfTheCpu) {
  for (const WeightType type : {WeightType::kInt8, WeightType::kInt4}) {
    for (const Shape& shape : Shapes()) {
      const std::size_t slots = shape.offsets.size() - 1;
      const SlotWeights down(slots, shape.hidden, shape.intermediate, type, 3);
      const std::vector<float> in = RandomValues(shape.offsets.back() * shape.intermediate, 5);
      const std::vector<float> expected = OuterOnCpu(shape, type, down, in);
      for (const ThreadOrder order : kThreadOrders) {
        const ScopedThreadOrder scope(order);
        ASSERT_TRUE(SameBits(Outer(shape, type, down, in, 3, true), expected)) << Name(type) << ", " << shape;
      }
    }
  }
}

TEST_F(ExpertKernels, FloatProductsAreSumsOfTheRoundedInputs) {
  for (const WeightType type : {WeightType::kBf16, WeightType::kF16}) {
    for (const Shape& shape : Shapes()) {
      const std::size_t slots = shape.offsets.size() - 1;
      const SlotWeights down(slots, shape.hidden, shape.intermediate, type, 3);
      const std::vector<float> in = RandomValues(shape.offsets.back() * shape.intermediate, 5);
      const std::vector<float> out = Outer(shape, type, down, in, 3, false);
      for (std::size_t slot = 0; slot < slots; ++slot) {
        for (std::size_t row = shape.offsets[slot]; row < shape.offsets[slot + 1]; ++row) {
          for (std::size_t col = 0; col < shape.hidden; ++col) {
            double sum = 0;
            double magnitude = 0;
            for (std::size_t k = 0; k < shape.intermediate; ++k) {
              const double product = static_cast<double>(Rounded(in[row * shape.intermediate + k], type)) *
                                     PackedElement(down.matrices[slot], col, k);
              sum += product;
              magnitude += std::abs(product);
            }
            // Each addition rounds by half an ulp of a partial sum.
            const double tolerance = static_cast<double>(shape.intermediate) * kRoundoff * magnitude;
            ASSERT_NEAR(out[row * shape.hidden + col], sum, tolerance) << Name(type) << ", " << shape;
          }
        }
      }
    }
  }
}

TEST_F(ExpertKernels, RoomForMoreRowsChangesNoBit) {
  // More room is more blocks for each slot, as a captured graph of a larger capacity has them.
  const Shape shape{{0, 40, 40, 130}, 50, 70};
  for (const WeightType type : kTypes) {
    const SlotWeights down(3, shape.hidden, shape.intermediate, type, 3);
    const std::vector<float> in = RandomValues(130 * shape.intermediate, 5);
    const std::vector<float> expected = Outer(shape, type, down, in, 0, true);
    for (const std::uint32_t room : {1u, 100u, 1000u})
      EXPECT_TRUE(SameBits(Outer(shape, type, down, in, room, true), expected)) << Name(type) << ", " << room;
  }
}

struct Kind {
  ExpertActivation device;
  Activation cpu;
};
constexpr Kind kKinds[] = {{ExpertActivation::kSiluGated, Activation::kSiluGated},
                           {ExpertActivation::kClampedSwiGlu, Activation::kClampedSwiGlu},
                           {ExpertActivation::kRelu, Activation::kRelu}};

/// Of integers the fp32 result; of floats what the next product reads, widened.
std::vector<float> Inner(const Shape& shape, WeightType type, const SlotWeights& gate, const SlotWeights& up,
                         const Kind& kind, const std::vector<float>& in) {
  const std::size_t rows = shape.offsets.back();
  ReadyRows ready(shape.offsets, static_cast<std::uint32_t>(rows), shape.hidden, type);
  MakeReady(ready.rows, DeviceArray<float>(in).data(), shape.hidden, type, ready.product(), {});
  DeviceArray<float> inner(IsQuantized(type) ? rows * shape.intermediate : 0, kUntouched);
  ReadyRows narrow(shape.offsets, static_cast<std::uint32_t>(rows), shape.intermediate, type);
  InnerProduct({.rows = ready.rows,
                .type = type,
                .in = ready.product(),
                .gate = kind.cpu == Activation::kRelu ? SlotMatrices{} : gate.view,
                .up = up.view,
                .hidden = shape.hidden,
                .intermediate = shape.intermediate,
                .activation = kind.device,
                .limit = 0.7f,
                .inner = inner.data(),
                .narrow_inner = narrow.product()},
               {});
  if (IsQuantized(type)) return inner.values();
  std::vector<float> widened;
  const std::size_t padded = PaddedInputs(shape.intermediate, type);
  for (std::size_t i = 0; i < rows * padded; ++i) {
    std::uint16_t bits;
    std::memcpy(&bits, narrow.values.data() + i * 2, 2);
    const float value = type == WeightType::kBf16 ? Bf16ToF32(bits) : F16ToF32(bits);
    if (i % padded < shape.intermediate) {
      widened.push_back(value);
    } else {
      EXPECT_EQ(bits, 0) << "padding of row " << i / padded;
    }
  }
  return widened;
}

TEST_F(ExpertKernels, TheActivationBehindTheProductHasTheBitsOfTheCpu) {
  for (const WeightType type : kTypes) {
    for (const Shape& shape : {Shape{{0, 1}, 1, 1}, Shape{{0, 3, 19}, 65, 33}, Shape{{0, 0, 34, 34}, 40, 70}}) {
      const std::size_t slots = shape.offsets.size() - 1;
      const SlotWeights gate(slots, shape.intermediate, shape.hidden, type, 30);
      const SlotWeights up(slots, shape.intermediate, shape.hidden, type, 60);
      const std::vector<float> in = RandomValues(shape.offsets.back() * shape.hidden, 5);
      // The sums are those of Outer, which the tests above are about.
      const Shape flat{shape.offsets, shape.intermediate, shape.hidden};
      for (const Kind& kind : kKinds) {
        const MlpSpec mlp{.activation = kind.cpu, .limit = 0.7f};
        std::vector<float> expected = Outer(flat, type, mlp.gated() ? gate : up, in, 0, true);
        const std::vector<float> other = Outer(flat, type, up, in, 0, true);
        const std::size_t width = shape.intermediate;
        for (std::size_t row = 0; row < shape.offsets.back(); ++row)
          moe::Activate(mlp, SimdKernels(), std::span(expected).subspan(row * width, width),
                        mlp.gated() ? std::span(other).subspan(row * width, width) : std::span<const float>());
        if (!IsQuantized(type))
          for (float& value : expected) value = Rounded(value, type);
        ASSERT_TRUE(SameBits(Inner(shape, type, gate, up, kind, in), expected))
            << Name(type) << ", " << shape << ", activation " << static_cast<int>(kind.cpu);
      }
    }
  }
}

TEST_F(ExpertKernels, ActivateRowsAndWidenRowsAreTheFusedFormsInPieces) {
  const Shape shape{{0, 2, 2, 7}, 35, 35};
  const std::size_t width = shape.intermediate;
  for (const WeightType type : {WeightType::kBf16, WeightType::kF16}) {
    const auto narrow = [&](std::uint32_t seed) {
      std::vector<std::byte> rows(7 * width * 2);
      StoreRow(RandomValues(7 * width, seed), type, rows);
      return rows;
    };
    const auto widened = [&](const std::vector<std::byte>& rows, std::size_t i) {
      std::uint16_t bits;
      std::memcpy(&bits, rows.data() + i * 2, 2);
      return type == WeightType::kBf16 ? Bf16ToF32(bits) : F16ToF32(bits);
    };
    const std::vector<std::byte> gate = narrow(1);
    const std::vector<std::byte> up = narrow(2);
    const std::vector<float> bias = RandomValues(6 * width, 3);  // gate's, then up's
    DeviceArray<std::byte> device_gate(gate);
    DeviceArray<std::byte> device_up(up);
    DeviceArray<float> gate_bias(std::span<const float>(bias).first(3 * width));
    DeviceArray<float> up_bias(std::span<const float>(bias).subspan(3 * width));
    for (const Kind& kind : kKinds) {
      ReadyRows inner(shape.offsets, 9, width, type);
      const MlpSpec mlp{.activation = kind.cpu, .limit = 0.7f};
      ActivateRows({.rows = inner.rows,
                    .type = type,
                    .gate = mlp.gated() ? device_gate.data() : nullptr,
                    .up = device_up.data(),
                    .gate_bias = gate_bias.data(),
                    .up_bias = up_bias.data(),
                    .intermediate = width,
                    .activation = kind.device,
                    .limit = 0.7f,
                    .inner = inner.product()},
                   {});
      DeviceArray<float> wide(7 * width, kUntouched);
      WidenRows(inner.rows, device_up.data(), width, type, up_bias.data(), wide.data(), {});
      for (std::size_t row = 0; row < 7; ++row) {
        const std::size_t slot = row < 2 ? 0 : 2;
        for (std::size_t col = 0; col < width; ++col) {
          float first = widened(gate, row * width + col) + bias[slot * width + col];
          const float second = widened(up, row * width + col) + bias[(3 + slot) * width + col];
          ASSERT_EQ(wide[row * width + col], second);
          if (!mlp.gated()) first = second;
          const std::span<const float> other(&second, mlp.gated() ? 1 : 0);
          moe::Activate(mlp, SimdKernels(), std::span(&first, 1), other);
          std::uint16_t bits;
          std::memcpy(&bits, inner.values.data() + (row * PaddedInputs(width, type) + col) * 2, 2);
          ASSERT_EQ(bits, type == WeightType::kBf16 ? F32ToBf16(first) : F32ToF16(first)) << row << "," << col;
        }
      }
      EXPECT_EQ(inner.values[(2 * PaddedInputs(width, type) - 1) * 2], std::byte{0}) << "padding";
      EXPECT_EQ(inner.values[7 * PaddedInputs(width, type) * 2], std::byte{0x5a}) << "behind the last row";
    }
  }
}

TEST_F(ExpertKernels, ScaleRowsWeighsInputs) {
  constexpr std::size_t kCols = 131;
  const std::vector<float> in = RandomValues(4 * kCols, 1);
  const std::vector<float> factors = RandomValues(4, 2);
  ReadyRows rows({0, 1, 3}, 4, kCols, WeightType::kBf16);
  DeviceArray<float> scaled(in);
  ScaleRows(rows.rows, DeviceArray<float>(factors).data(), kCols, scaled.data(), {});
  for (std::size_t i = 0; i < in.size(); ++i)
    ASSERT_EQ(scaled[i], i / kCols < 3 ? in[i] * factors[i / kCols] : in[i]) << i;
}

TEST_F(ExpertKernels, NothingLaunchesNothing) {
  const std::uint64_t before = emulation::BlocksRun();
  ReadyRows none({0}, 5, 10, WeightType::kInt8);
  ReadyRows no_room({0, 0}, 0, 10, WeightType::kInt8);
  for (ReadyRows* ready : {&none, &no_room}) {
    MakeReady(ready->rows, nullptr, 10, WeightType::kInt8, ready->product(), {});
    InnerProduct({.rows = ready->rows, .type = WeightType::kInt8}, {});
    OuterProduct({.rows = ready->rows, .type = WeightType::kInt8}, {});
    ActivateRows({.rows = ready->rows}, {});
    WidenRows(ready->rows, nullptr, 10, WeightType::kBf16, nullptr, nullptr, {});
    ScaleRows(ready->rows, nullptr, 10, nullptr, {});
  }
  EXPECT_EQ(emulation::BlocksRun(), before);
}

}  // namespace
}  // namespace moe::cuda
