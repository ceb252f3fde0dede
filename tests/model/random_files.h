// Published tensors as safetensors files: plain or quantised, in one file or in shards.
#pragma once

#include <random>
#include <string>
#include <vector>

#include "tests/model/model_files.h"
#include "tests/model/random_checkpoint.h"

namespace moe {

/// One tensor as stored, and what its values are after that.
struct StoredTensor {
  std::vector<TestTensor> files;  // itself, or blocks and scales
  std::vector<float> values;      // in the order of the published shape
};

/// In F32, BF16 or F16 at random; or quantised, when `method` is the tensor's, with random codes and scales in place of
/// its values.
StoredTensor Store(const PublishedTensor& tensor, Quantised method, std::mt19937_64& random);

/// Writes `tensors` as one file or as shards with their index, in random order.
void WriteCheckpoint(const TemporaryFolder& folder, std::vector<TestTensor> tensors, std::mt19937_64& random);

/// The same as one file whose data, all zeros, takes no room on the disk: enough for what reads headers only.
void WriteHeaders(const TemporaryFolder& folder, const std::vector<TestTensor>& tensors);

}  // namespace moe
