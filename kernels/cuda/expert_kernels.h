// The kernels that compute a layer's experts on a device. Pointers are device addresses; every function enqueues one
// launch on `stream` and returns, and DeviceApi::LaunchStatus has what came of it.
//
// A row goes through four of them: its input is made ready (narrowed to 16 bits, or quantised), multiplied by gate and
// up with the activation behind (InnerProduct), quantised again where weights are integers, and multiplied by down
// (OuterProduct). Which rows belong to which slot is read on the device, from `offsets`; so none of the shapes below
// depends on how a step's rows are spread, and a captured graph serves every step of up to `max_rows` rows.
//
// Each output element is one sum in a fixed order, whatever the rows beside it: over steps of 16 inputs (bf16, f16)
// inside of which the tensor core adds; over groups of inputs (int8, int4) as kernels/kernels.h says, to the same bits
// as on the CPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/device_api.h"
#include "kernels/quantize.h"
#include "kernels/weight_type.h"

namespace moe::cuda {

/// As model/config.h's Activation, of the experts that are served.
enum class ExpertActivation : std::uint8_t { kSiluGated, kClampedSwiGlu, kRelu };

/// Inputs that one product of tiles takes: 32 bytes of a row.
constexpr std::size_t StepInputs(WeightType type) { return IsQuantized(type) ? 32 : 16; }
/// Columns of a row as products read it: whole steps and, of integers, whole groups. Those past the last are zeros.
constexpr std::size_t PaddedInputs(std::size_t cols, WeightType type) {
  const std::size_t unit = IsQuantized(type) ? GroupSize(type) : StepInputs(type);
  return (cols + unit - 1) / unit * unit;
}
constexpr std::size_t RowBytes(std::size_t cols, WeightType type) {
  return PaddedInputs(cols, type) * (IsQuantized(type) ? 1 : 2);
}

/// One matrix (outputs, inputs) for each slot of a layer, one behind the other, each in the form of
/// kernels/cuda/device_matrix.h.
struct SlotMatrices {
  const std::byte* weights = nullptr;
  std::size_t slot_bytes = 0;   // from one slot's matrix to the next
  std::size_t panel_bytes = 0;  // from 16 outputs to the next
  std::size_t value_bytes = 0;  // int8, int4: of a panel, before its scales
  const float* bias = nullptr;  // (slots, outputs), or null
};

/// Rows as products read them.
struct ProductRows {
  std::byte* values = nullptr;  // (rows, PaddedInputs): bf16, f16 or int8
  float* scales = nullptr;      // (rows, groups) where they are int8
};

/// What the launches of a layer have in common.
struct SlotRows {
  const std::uint32_t* offsets = nullptr;  // (slots + 1), exclusive: slot s has rows [offsets[s], offsets[s + 1])
  std::uint32_t slots = 0;
  std::uint32_t max_rows = 0;  // offsets[slots] may be less
};

/// `in` (rows, cols) of fp32 to what products with weights of `type` read.
void MakeReady(const SlotRows& rows, const float* in, std::size_t cols, WeightType type, const ProductRows& out,
               DeviceStream stream);

struct InnerProductTask {
  SlotRows rows;
  WeightType type = WeightType::kBf16;
  ProductRows in;     // (rows, hidden)
  SlotMatrices gate;  // no weights: an expert that is not gated
  SlotMatrices up;
  std::size_t hidden = 0;
  std::size_t intermediate = 0;
  ExpertActivation activation = ExpertActivation::kSiluGated;
  float limit = 0;           // kClampedSwiGlu
  float* inner = nullptr;    // (rows, intermediate) of fp32: int8 and int4, which MakeReady then quantises
  ProductRows narrow_inner;  // bf16, f16
};
/// activation(gate in, up in)
void InnerProduct(const InnerProductTask& task, DeviceStream stream);

struct OuterProductTask {
  SlotRows rows;
  WeightType type = WeightType::kBf16;
  ProductRows in;  // (rows, intermediate)
  SlotMatrices down;
  std::size_t hidden = 0;
  std::size_t intermediate = 0;
  float* out = nullptr;  // (rows, hidden)
};
/// down in
void OuterProduct(const OuterProductTask& task, DeviceStream stream);

// What is left to do beside cuBLAS on the exact-size path, for bf16 and f16.

struct ActivateTask {
  SlotRows rows;
  WeightType type = WeightType::kBf16;
  const std::byte* gate = nullptr;  // (rows, intermediate), 16 bits, without bias; null: an expert that is not gated
  const std::byte* up = nullptr;
  const float* gate_bias = nullptr;  // (slots, intermediate), or null
  const float* up_bias = nullptr;
  std::size_t intermediate = 0;
  ExpertActivation activation = ExpertActivation::kSiluGated;
  float limit = 0;
  ProductRows inner;  // (rows, intermediate)
};
void ActivateRows(const ActivateTask& task, DeviceStream stream);

/// out (rows, cols) = in, widened, + bias (slots, cols), if there is one.
void WidenRows(const SlotRows& rows, const std::byte* in, std::size_t cols, WeightType type, const float* bias,
               float* out, DeviceStream stream);

/// Each row of `in` (rows, cols) times its factor, in place (Llama 4 weighs an expert's input).
void ScaleRows(const SlotRows& rows, const float* factors, std::size_t cols, float* in, DeviceStream stream);

}  // namespace moe::cuda
