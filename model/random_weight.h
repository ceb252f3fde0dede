// The weights of `--load-format dummy`: numbers that follow from a weight's name and the place in it alone, so that
// they are the same on every topology, and any row can be made on its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "model/tensor_specs.h"

namespace moe {

/// Matrices are uniform with variance 1 / inputs, so that activations keep their size; embeddings with variance 1;
/// norms lie in 1 ± 0.1; biases, sinks and the like within ± 0.1.
class RandomWeight {
 public:
  explicit RandomWeight(const TensorSpec& spec);

  /// Row `row` of the weight; a vector is one row.
  void ReadRow(std::size_t row, std::span<float> out) const;

 private:
  std::uint64_t seed_ = 0;
  float center_ = 0;
  float amplitude_ = 0;
};

}  // namespace moe
