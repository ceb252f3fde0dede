// The SIMD implementation, compiled once per instruction set, and the choice among them at run time.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd_kernels.cpp"
// Without a fused multiply-add in hardware the portable form is as good; AVX3_DL is off by default.
#ifndef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
#endif
#ifndef HWY_WANT_AVX3_DL
#define HWY_WANT_AVX3_DL
#endif
// The portable form too, even where the compiler is told of a better baseline.
#ifndef HWY_COMPILE_ALL_ATTAINABLE
#define HWY_COMPILE_ALL_ATTAINABLE
#endif
#include <hwy/foreach_target.h>
// After foreach_target.h: the code per target.
#include <hwy/highway.h>

#include "kernels/amx.h"
#include "kernels/attention-inl.h"
#include "kernels/elementwise-inl.h"
#include "kernels/int_matmul-inl.h"
#include "kernels/kernels.h"
#include "kernels/matmul-inl.h"
#include "kernels/quantize-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moe {
namespace HWY_NAMESPACE {

class TargetKernels : public Kernels {
 public:
  std::string_view name() const override {
#if MOE_PORTABLE_LANES
    return "portable";
#elif HWY_TARGET == HWY_AVX2
    return "avx2";
#elif HWY_TARGET == HWY_AVX3
    return "avx3";
#elif HWY_TARGET == HWY_AVX3_DL
    return "avx3_dl";
#else
    return hwy::TargetName(HWY_TARGET);
#endif
  }
  void MatMulPanels(MatrixView<const float> x, const PackedMatrix& w, std::size_t panel_begin, std::size_t panel_end,
                    MatrixView<float> y) const override {
    HWY_NAMESPACE::MatMulPanels(x, w, panel_begin, panel_end, y);
  }
  void MatMulPanels(const QuantizedView& x, const PackedMatrix& w, std::size_t panel_begin, std::size_t panel_end,
                    MatrixView<float> y) const override {
    HWY_NAMESPACE::MatMulPanels<DotTiles>(x, w, panel_begin, panel_end, y);
  }
  void QuantizeRow(std::span<const float> x, std::size_t group, const QuantizedGroups& out) const override {
    HWY_NAMESPACE::QuantizeRow(x, group, out);
  }
  void QuantizeWeights(const WeightView& row, WeightType type, std::span<std::uint8_t> values,
                       std::span<std::uint16_t> scales) const override {
    HWY_NAMESPACE::QuantizeWeights(row, type, values, scales);
  }
  void RmsNorm(std::span<const float> x, std::span<const float> weight, float eps, std::span<float> y) const override {
    HWY_NAMESPACE::RmsNorm(x, weight, eps, y);
  }
  void Rope(MatrixView<float> heads, std::span<const float> cos, std::span<const float> sin,
            RopePairing pairing) const override {
    HWY_NAMESPACE::Rope(heads, cos, sin, pairing);
  }
  void SiluMul(std::span<float> gate, std::span<const float> up) const override { HWY_NAMESPACE::SiluMul(gate, up); }
  void ClampedSwiGlu(std::span<float> gate, std::span<const float> up, float limit) const override {
    HWY_NAMESPACE::ClampedSwiGlu(gate, up, limit);
  }
  void Relu(std::span<float> x) const override { HWY_NAMESPACE::Relu(x); }
  void Sigmoid(std::span<float> x) const override { HWY_NAMESPACE::Sigmoid(x); }
  void Clamp(float limit, std::span<float> x) const override { HWY_NAMESPACE::Clamp(limit, x); }
  void Scale(float factor, std::span<float> x) const override { HWY_NAMESPACE::Scale(factor, x); }
  void Add(std::span<const float> x, std::span<float> y) const override { HWY_NAMESPACE::Add(x, y); }
  void AddScaled(float scale, std::span<const float> x, std::span<float> y) const override {
    HWY_NAMESPACE::AddScaled(scale, x, y);
  }
  void Softmax(std::span<float> x) const override { HWY_NAMESPACE::Softmax(x); }
  float LogSumExp(std::span<const float> x) const override { return HWY_NAMESPACE::LogSumExp(x); }
  void Attention(const AttentionTask& task) const override { HWY_NAMESPACE::Attention(task); }
};

const Kernels& GetTargetKernels() {
  static const TargetKernels kernels;
  return kernels;
}

#if HWY_TARGET == HWY_AVX3_DL
/// Those, but many rows of integers by the tiles of AMX.
class AmxKernels final : public TargetKernels {
 public:
  using TargetKernels::MatMulPanels;
  std::string_view name() const override { return "amx"; }
  void MatMulPanels(const QuantizedView& x, const PackedMatrix& w, std::size_t panel_begin, std::size_t panel_end,
                    MatrixView<float> y) const override {
    HWY_NAMESPACE::MatMulPanels<AmxTiles>(x, w, panel_begin, panel_end, y);
  }
};

const Kernels& GetAmxKernels() {
  static const AmxKernels kernels;
  return kernels;
}
#endif

}  // namespace HWY_NAMESPACE
}  // namespace moe
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moe {

std::vector<const Kernels*> AvailableSimdKernels() {
  std::vector<const Kernels*> available;
  [[maybe_unused]] const std::int64_t supported = hwy::SupportedTargets();
#if HWY_TARGETS & HWY_AVX3_DL
  if ((supported & HWY_AVX3_DL) != 0) {
    if (AmxIsUsable()) available.push_back(&N_AVX3_DL::GetAmxKernels());
    available.push_back(&N_AVX3_DL::GetTargetKernels());
  }
#endif
#if HWY_TARGETS & HWY_AVX3
  if ((supported & HWY_AVX3) != 0) available.push_back(&N_AVX3::GetTargetKernels());
#endif
#if HWY_TARGETS & HWY_AVX2
  if ((supported & HWY_AVX2) != 0) available.push_back(&N_AVX2::GetTargetKernels());
#endif
#if HWY_TARGETS & HWY_EMU128
  available.push_back(&N_EMU128::GetTargetKernels());
#else
  available.push_back(&N_SCALAR::GetTargetKernels());
#endif
  return available;
}

const Kernels& SimdKernels() {
  static const Kernels& best = *AvailableSimdKernels().front();
  return best;
}

}  // namespace moe
#endif  // HWY_ONCE
