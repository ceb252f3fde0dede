#include "bench/engine/roof_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/engine/roof_kernels.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.h: the code per target.
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace moe {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using Floats = hn::ScalableTag<float>;

float Sum(std::span<const float> values) {
  const Floats f;
  const std::size_t lanes = hn::Lanes(f);
  const float* from = values.data();
  const float* const end = from + values.size();
  // Four running sums: an addition takes four cycles, and memory feeds less than one load a cycle.
  auto a = hn::Zero(f), b = hn::Zero(f), c = hn::Zero(f), d = hn::Zero(f);
  for (; from + 4 * lanes <= end; from += 4 * lanes) {
    a = hn::Add(a, hn::LoadU(f, from));
    b = hn::Add(b, hn::LoadU(f, from + lanes));
    c = hn::Add(c, hn::LoadU(f, from + 2 * lanes));
    d = hn::Add(d, hn::LoadU(f, from + 3 * lanes));
  }
  float sum = hn::GetLane(hn::SumOfLanes(f, hn::Add(hn::Add(a, b), hn::Add(c, d))));
  for (; from < end; ++from) sum += *from;
  return sum;
}

// Twelve chains: two units with a latency of four cycles need eight to be busy, of five cycles ten; with the two
// operands they still fit the sixteen registers of AVX2.
double Fma(std::size_t rounds, float& sink) {
  const Floats f;
  const auto x = hn::Set(f, 0.999f), y = hn::Set(f, sink);
  // Different beginnings: chains that a compiler can tell to be equal would be computed once.
  const auto from = [&](int chain) { return hn::Set(f, sink * static_cast<float>(chain)); };
  auto a = from(1), b = from(2), c = from(3), d = from(4), e = from(5), g = from(6);
  auto h = from(7), i = from(8), j = from(9), k = from(10), l = from(11), m = from(12);
  constexpr double kOperationsALane = 12 * 2;
  for (std::size_t round = 0; round < rounds; ++round) {
    a = hn::MulAdd(a, x, y);
    b = hn::MulAdd(b, x, y);
    c = hn::MulAdd(c, x, y);
    d = hn::MulAdd(d, x, y);
    e = hn::MulAdd(e, x, y);
    g = hn::MulAdd(g, x, y);
    h = hn::MulAdd(h, x, y);
    i = hn::MulAdd(i, x, y);
    j = hn::MulAdd(j, x, y);
    k = hn::MulAdd(k, x, y);
    l = hn::MulAdd(l, x, y);
    m = hn::MulAdd(m, x, y);
  }
  const auto abcd = hn::Add(hn::Add(a, b), hn::Add(c, d));
  const auto eghi = hn::Add(hn::Add(e, g), hn::Add(h, i));
  const auto jklm = hn::Add(hn::Add(j, k), hn::Add(l, m));
  sink = hn::GetLane(hn::SumOfLanes(f, hn::Add(hn::Add(abcd, eghi), jklm)));
  return static_cast<double>(rounds) * kOperationsALane * static_cast<double>(hn::Lanes(f));
}

}  // namespace HWY_NAMESPACE
}  // namespace moe
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moe {

HWY_EXPORT(Sum);
HWY_EXPORT(Fma);

float SumOf(std::span<const float> values) { return HWY_DYNAMIC_DISPATCH(Sum)(values); }
double MultiplyAdd(std::size_t rounds, float& sink) { return HWY_DYNAMIC_DISPATCH(Fma)(rounds, sink); }

}  // namespace moe
#endif
