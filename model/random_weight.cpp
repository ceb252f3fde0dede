#include "model/random_weight.h"

#include <array>
#include <cmath>
#include <string_view>

#include "core/split_mix.h"

namespace moe {
namespace {

std::uint64_t Seed(const TensorSpec& spec) {
  std::uint64_t seed = MixBits(static_cast<std::uint64_t>(spec.slice.expert + 1) * kSplitMixStep +
                               static_cast<std::uint64_t>(spec.slice.first) + 1);
  for (const char c : spec.name) seed = MixBits(seed + kSplitMixStep + static_cast<unsigned char>(c));
  return seed;
}

constexpr float kSmall = 0.1f;

}  // namespace

RandomWeight::RandomWeight(const TensorSpec& spec) : seed_(Seed(spec)) {
  if (spec.shape.size() == 1) {
    const bool norm = spec.part == ModelPart::kNorms && !spec.bias;
    center_ = norm ? 1 : 0;
    amplitude_ = kSmall;
    return;
  }
  // A uniform number in ± a has variance a² / 3.
  const auto inputs = static_cast<double>(spec.part == ModelPart::kEmbedding ? 1 : spec.shape[1]);
  amplitude_ = static_cast<float>(std::sqrt(3 / inputs));
}

void RandomWeight::ReadRow(std::size_t row, std::span<float> out) const {
  // Sixteen bits a number: four numbers a mix.
  constexpr std::size_t kNumbers = 4;
  const std::uint64_t counter = seed_ + MixBits(row + 1);
  for (std::size_t col = 0; col < out.size(); col += kNumbers) {
    std::uint64_t bits = MixBits(counter + (col / kNumbers + 1) * kSplitMixStep);
    for (std::size_t i = col; i < out.size() && i < col + kNumbers; ++i, bits >>= 16) {
      const auto number = static_cast<std::int16_t>(bits & 0xffffu);
      out[i] = center_ + amplitude_ * (static_cast<float>(number) / 32768.0f);
    }
  }
}

}  // namespace moe
