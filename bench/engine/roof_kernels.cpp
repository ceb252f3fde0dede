#include "bench/engine/roof_kernels.h"

#include <array>
#include <cstring>
#include <numeric>

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

std::uint32_t Sum(std::span<const std::byte> memory) {
  const hn::ScalableTag<std::uint32_t> words;
  const std::size_t lanes = hn::Lanes(words);
  const std::size_t bytes = 4 * lanes * sizeof(std::uint32_t);
  // Four running sums, so that no addition waits for the one before.
  auto a = hn::Zero(words), b = a, c = a, d = a;
  std::size_t at = 0;
  for (; at + bytes <= memory.size(); at += bytes) {
    const auto* from = reinterpret_cast<const std::uint32_t*>(memory.data() + at);
    a = hn::Add(a, hn::LoadU(words, from));
    b = hn::Add(b, hn::LoadU(words, from + lanes));
    c = hn::Add(c, hn::LoadU(words, from + 2 * lanes));
    d = hn::Add(d, hn::LoadU(words, from + 3 * lanes));
  }
  // Lane by lane: GCC 12's reduction of AVX-512 adds signed numbers, whose overflow is undefined.
  HWY_ALIGN std::array<std::uint32_t, hn::MaxLanes(words)> sums;
  hn::Store(hn::Add(hn::Add(a, b), hn::Add(c, d)), words, sums.data());
  std::uint32_t sum = std::accumulate(sums.begin(), sums.begin() + lanes, std::uint32_t{0});
  for (std::uint32_t word = 0; at + sizeof(word) <= memory.size(); at += sizeof(word)) {
    std::memcpy(&word, memory.data() + at, sizeof(word));
    sum += word;
  }
  for (; at < memory.size(); ++at) sum += static_cast<std::uint32_t>(memory[at]);
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

std::uint32_t SumOf(std::span<const std::byte> memory) { return HWY_DYNAMIC_DISPATCH(Sum)(memory); }
double MultiplyAdd(std::size_t rounds, float& sink) { return HWY_DYNAMIC_DISPATCH(Fma)(rounds, sink); }

}  // namespace moe
#endif
