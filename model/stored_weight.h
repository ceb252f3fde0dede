// One weight read out of a checkpoint, in whatever form the checkpoint keeps it: as rows, transposed, a share of a
// tensor that holds all experts, in MXFP4 or FP8 blocks, or made up from its name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/matrix.h"
#include "core/status.h"
#include "kernels/packed_matrix.h"
#include "kernels/weight_type.h"
#include "model/checkpoint.h"
#include "model/random_weight.h"
#include "model/tensor_specs.h"

namespace moe {

/// What CheckStored found out without reading data.
struct StoredForm {
  StoredEncoding encoding = StoredEncoding::kPlain;
  std::vector<std::string> tensors;  // that hold the weight: itself, or blocks and scales
  std::uint64_t weights = 0;         // logical weights in all of them, of all experts
  /// The narrowest type that holds every value exactly.
  WeightType exact_type = WeightType::kF32;
};

/// That the tensors of a weight are there, with the shapes and a type that can be read. Errors name file and tensor.
Result<StoredForm> CheckStored(const Checkpoint& checkpoint, const TensorSpec& spec);

/// A vector in fp32: the stored values exactly.
Result<std::vector<float>> ReadVector(const Checkpoint& checkpoint, const TensorSpec& spec);

/// A matrix with its tensors mapped for as long as this lives.
class StoredMatrix {
 public:
  static Result<StoredMatrix> Map(const Checkpoint& checkpoint, const TensorSpec& spec);

  /// (outputs, inputs)
  std::size_t rows() const { return rows_; }
  std::size_t cols() const { return cols_; }

  /// The bytes themselves where they are the weight, row by row; else nothing.
  std::optional<WeightView> plain() const;

  /// out(i, :) = row first + i in fp32, the stored values exactly (FP8: times their scale, rounded once).
  void ReadRows(std::size_t first, MatrixView<float> out) const;

 private:
  void ReadPlain(std::size_t first, MatrixView<float> out) const;
  void ReadMxfp4(std::size_t first, MatrixView<float> out) const;
  void ReadFp8(std::size_t first, MatrixView<float> out) const;
  /// Row of the stored matrix that is row `row` of the weight.
  std::size_t StoredRow(std::size_t row) const { return first_ + row * step_; }

  StoredEncoding encoding_ = StoredEncoding::kPlain;
  WeightType type_ = WeightType::kF32;  // of a plain tensor
  std::size_t rows_ = 0;
  std::size_t cols_ = 0;
  std::size_t stored_rows_ = 0;  // outputs of the stored matrix
  std::size_t first_ = 0;
  std::size_t step_ = 1;
  bool transposed_ = false;
  MappedTensor values_;
  MappedTensor scales_;
  std::optional<RandomWeight> random_;  // of a checkpoint that is made up
};

}  // namespace moe
