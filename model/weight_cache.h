// Quantized weights kept on a disk, so that a model is quantized once and not at every start (docs/weight-cache.md).
#pragma once

#include <cstdint>
#include <filesystem>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "kernels/packed_matrix.h"
#include "model/checkpoint.h"
#include "model/packed_file.h"
#include "model/tensor_specs.h"

namespace moe {

/// What one packed matrix is made of: weights of a checkpoint, one below the other, in a type.
struct MatrixRecipe {
  std::vector<TensorSpec> parts;
  WeightType type = WeightType::kF32;

  PackedShape shape() const;
};

/// What became of a cache's files so far.
struct WeightCacheReport {
  /// Files that were stale or damaged, by why.
  struct Refused {
    std::string reason;
    std::string first_file;
    std::uint64_t files = 0;
  };

  std::string folder;
  std::uint64_t files_read = 0;
  std::uint64_t bytes_read = 0;  // of weights
  std::uint64_t files_written = 0;
  std::uint64_t bytes_written = 0;
  std::vector<Refused> refused;  // a few; reasons past them count as the last one
  std::string write_failure;     // the file that could not be written and why; empty when none failed

  /// One line about what was read and written; empty when there was neither.
  std::string Summary() const;
  /// One line each about what did not go as it should.
  std::vector<std::string> Warnings() const;
};

/// A folder of files, one for each unit of weights that is loaded at a time: an expert, a layer's attention, the head.
/// Any number of processes may use it at a time. Every member may be called from several threads.
class WeightCache {
 public:
  /// `folder` need not exist. The checkpoint is not made up.
  WeightCache(std::filesystem::path folder, const Checkpoint& checkpoint);

  /// The matrices of `unit` ("layer-003/expert-017"), all of one quantized type; nothing when there is no file of them,
  /// or none that may be used.
  std::vector<PackedMatrix> Read(const std::string& unit, std::span<const MatrixRecipe> recipes);

  /// Keeps what Read is to find. After the first file that cannot be written no other one is tried.
  void Write(const std::string& unit, std::span<const MatrixRecipe> recipes,
             std::span<const PackedMatrix* const> matrices);

  const std::filesystem::path& folder() const { return folder_; }
  WeightCacheReport report() const;

 private:
  PackedFileKey KeyOf(std::span<const MatrixRecipe> recipes) const;
  std::filesystem::path PathOf(const std::string& unit, WeightType type) const;
  void AddRefused(const std::filesystem::path& path, const std::string& reason);

  const std::filesystem::path folder_;
  const std::uint64_t checkpoint_;
  mutable std::mutex mutex_;
  WeightCacheReport report_;  // under mutex_
};

}  // namespace moe
