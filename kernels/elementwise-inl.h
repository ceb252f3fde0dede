// Normalisation, activation, rotary embedding, softmax: everything that goes over its values once or twice. Tails are
// loaded with zeros beside them and go through the same vector code.
#if defined(MOE_KERNELS_ELEMENTWISE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOE_KERNELS_ELEMENTWISE_INL_H_
#undef MOE_KERNELS_ELEMENTWISE_INL_H_
#else
#define MOE_KERNELS_ELEMENTWISE_INL_H_
#endif

#include <limits>
#include <span>

#include "core/check.h"
#include "core/matrix.h"
#include "kernels/kernels.h"
#include "kernels/lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moe {
namespace HWY_NAMESPACE {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline void RmsNorm(std::span<const float> x, std::span<const float> weight, float eps, std::span<float> y) {
  MOE_CHECK((weight.empty() || weight.size() == x.size()) && y.size() == x.size());
  const std::size_t size = x.size();
  Lanes squares = Broadcast(0);
  for (std::size_t i = 0; i < size; i += kLanes) {
    const Lanes values = LoadUpTo16(x.data() + i, size - i);
    squares = Fma(values, values, squares);
  }
  const float mean = SumOfLanes(squares) / static_cast<float>(size);
  const Lanes inverse = Broadcast(1.0f / std::sqrt(mean + eps));
  for (std::size_t i = 0; i < size; i += kLanes) {
    Lanes normed = Mul(LoadUpTo16(x.data() + i, size - i), inverse);
    if (!weight.empty()) normed = Mul(LoadUpTo16(weight.data() + i, size - i), normed);
    StoreUpTo16(normed, y.data() + i, size - i);
  }
}

/// Pairs (i, i + half) of one head.
inline void RotateHalves(std::span<float> head, std::span<const float> cos, std::span<const float> sin) {
  const std::size_t half = cos.size();
  float* first = head.data();
  float* second = first + half;
  for (std::size_t i = 0; i < half; i += kLanes) {
    const std::size_t count = half - i;
    const Lanes a = LoadUpTo16(first + i, count);
    const Lanes b = LoadUpTo16(second + i, count);
    const Lanes c = LoadUpTo16(cos.data() + i, count);
    const Lanes s = LoadUpTo16(sin.data() + i, count);
    StoreUpTo16(Fma(a, c, Neg(Mul(b, s))), first + i, count);
    StoreUpTo16(Fma(b, c, Mul(a, s)), second + i, count);
  }
}

/// Pairs (2i, 2i + 1) of one head. One value at a time: a few hundred per token.
inline void RotateNeighbours(std::span<float> head, std::span<const float> cos, std::span<const float> sin) {
  for (std::size_t i = 0; i < cos.size(); ++i) {
    const float a = head[2 * i];
    const float b = head[2 * i + 1];
    head[2 * i] = std::fma(a, cos[i], -(b * sin[i]));
    head[2 * i + 1] = std::fma(b, cos[i], a * sin[i]);
  }
}

inline void Rope(MatrixView<float> heads, std::span<const float> cos, std::span<const float> sin, RopePairing pairing) {
  MOE_CHECK(sin.size() == cos.size() && 2 * cos.size() <= heads.cols());
  for (std::size_t head = 0; head < heads.rows(); ++head) {
    if (pairing == RopePairing::kHalfSplit) {
      RotateHalves(heads.row(head), cos, sin);
    } else {
      RotateNeighbours(heads.row(head), cos, sin);
    }
  }
}

inline void SiluMul(std::span<float> gate, std::span<const float> up) {
  MOE_CHECK(gate.size() == up.size());
  for (std::size_t i = 0; i < gate.size(); i += kLanes) {
    const std::size_t count = gate.size() - i;
    const Lanes z = LoadUpTo16(gate.data() + i, count);
    const Lanes silu = Div(z, Add(Broadcast(1), Exp(Neg(z))));
    StoreUpTo16(Mul(silu, LoadUpTo16(up.data() + i, count)), gate.data() + i, count);
  }
}

inline void ClampedSwiGlu(std::span<float> gate, std::span<const float> up, float limit) {
  MOE_CHECK(gate.size() == up.size());
  const Lanes highest = Broadcast(limit);
  const Lanes lowest = Broadcast(-limit);
  for (std::size_t i = 0; i < gate.size(); i += kLanes) {
    const std::size_t count = gate.size() - i;
    const Lanes z = AtMost(LoadUpTo16(gate.data() + i, count), highest);
    const Lanes other = AtLeast(AtMost(LoadUpTo16(up.data() + i, count), highest), lowest);
    const Lanes swish = Div(z, Add(Broadcast(1), Exp(Mul(Broadcast(-1.702f), z))));
    StoreUpTo16(Fma(other, swish, swish), gate.data() + i, count);
  }
}

inline void Relu(std::span<float> x) {
  for (std::size_t i = 0; i < x.size(); i += kLanes) {
    const std::size_t count = x.size() - i;
    StoreUpTo16(AtLeast(LoadUpTo16(x.data() + i, count), Broadcast(0)), x.data() + i, count);
  }
}

inline void Sigmoid(std::span<float> x) {
  for (std::size_t i = 0; i < x.size(); i += kLanes) {
    const std::size_t count = x.size() - i;
    const Lanes divisor = Add(Broadcast(1), Exp(Neg(LoadUpTo16(x.data() + i, count))));
    StoreUpTo16(Div(Broadcast(1), divisor), x.data() + i, count);
  }
}

inline void Clamp(float limit, std::span<float> x) {
  MOE_CHECK(limit >= 0);
  const Lanes highest = Broadcast(limit);
  const Lanes lowest = Broadcast(-limit);
  for (std::size_t i = 0; i < x.size(); i += kLanes) {
    const std::size_t count = x.size() - i;
    StoreUpTo16(AtLeast(AtMost(LoadUpTo16(x.data() + i, count), highest), lowest), x.data() + i, count);
  }
}

inline void Scale(float factor, std::span<float> x) {
  const Lanes factors = Broadcast(factor);
  for (std::size_t i = 0; i < x.size(); i += kLanes) {
    const std::size_t count = x.size() - i;
    StoreUpTo16(Mul(LoadUpTo16(x.data() + i, count), factors), x.data() + i, count);
  }
}

inline void Add(std::span<const float> x, std::span<float> y) {
  MOE_CHECK(x.size() == y.size());
  for (std::size_t i = 0; i < x.size(); i += kLanes) {
    const std::size_t count = x.size() - i;
    StoreUpTo16(Add(LoadUpTo16(y.data() + i, count), LoadUpTo16(x.data() + i, count)), y.data() + i, count);
  }
}

inline void AddScaled(float scale, std::span<const float> x, std::span<float> y) {
  MOE_CHECK(x.size() == y.size());
  const Lanes factor = Broadcast(scale);
  for (std::size_t i = 0; i < x.size(); i += kLanes) {
    const std::size_t count = x.size() - i;
    const Lanes sum = Fma(factor, LoadUpTo16(x.data() + i, count), LoadUpTo16(y.data() + i, count));
    StoreUpTo16(sum, y.data() + i, count);
  }
}

/// values[i …] with -infinity past the end.
HWY_INLINE Lanes LoadOrMinusInfinity(std::span<const float> values, std::size_t i) {
  const std::size_t count = values.size() - i;
  return count >= kLanes ? Load(values.data() + i) : Within(LoadFirst(values.data() + i, count), 0, count, -kInfinity);
}

inline float Highest(std::span<const float> values) {
  Lanes highest = Broadcast(-kInfinity);
  for (std::size_t i = 0; i < values.size(); i += kLanes) highest = Max(highest, LoadOrMinusInfinity(values, i));
  return MaxOfLanes(highest);
}

inline void Softmax(std::span<float> x) {
  const Lanes highest = Broadcast(Highest(x));
  Lanes sums = Broadcast(0);
  for (std::size_t i = 0; i < x.size(); i += kLanes) {
    const Lanes weights = Exp(Sub(LoadOrMinusInfinity(x, i), highest));  // 0 past the end
    sums = Add(sums, weights);
    StoreUpTo16(weights, x.data() + i, x.size() - i);
  }
  const Lanes sum = Broadcast(SumOfLanes(sums));
  for (std::size_t i = 0; i < x.size(); i += kLanes) {
    const std::size_t count = x.size() - i;
    StoreUpTo16(Div(LoadUpTo16(x.data() + i, count), sum), x.data() + i, count);
  }
}

inline float LogSumExp(std::span<const float> x) {
  const float highest = Highest(x);
  if (highest == -kInfinity || highest == kInfinity) return highest;
  Lanes sums = Broadcast(0);
  for (std::size_t i = 0; i < x.size(); i += kLanes) {
    sums = Add(sums, Exp(Sub(LoadOrMinusInfinity(x, i), Broadcast(highest))));
  }
  return static_cast<float>(highest + Log(SumOfLanes(sums)));
}

}  // namespace HWY_NAMESPACE
}  // namespace moe
HWY_AFTER_NAMESPACE();

#endif  // MOE_KERNELS_ELEMENTWISE_INL_H_
