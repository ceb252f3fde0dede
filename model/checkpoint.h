// Hugging Face checkpoints: model.safetensors, or model.safetensors.index.json and its shards.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/status.h"
#include "kernels/packed_matrix.h"

namespace moe {

/// Where a tensor lies, checked: its bytes are inside the file and are exactly its shape times its element.
struct TensorInfo {
  std::string dtype;  // "F32", "BF16", "F16", …
  std::vector<std::int64_t> shape;
  std::size_t file = 0;        // index into the checkpoint's files
  std::uint64_t offset = 0;    // from the beginning of the file
  std::uint64_t bytes = 0;

  std::uint64_t elements() const;
};

/// A tensor's bytes, mapped read-only for as long as this lives.
class MappedTensor {
 public:
  MappedTensor() = default;
  MappedTensor(MappedTensor&& other) noexcept;
  MappedTensor& operator=(MappedTensor&& other) noexcept;
  ~MappedTensor();

  const std::byte* data() const { return data_; }
  std::uint64_t bytes() const { return bytes_; }

 private:
  friend class Checkpoint;
  void* mapping_ = nullptr;
  std::size_t mapping_bytes_ = 0;
  const std::byte* data_ = nullptr;
  std::uint64_t bytes_ = 0;
};

/// The tensors of one checkpoint by name. Opening reads headers only; data is mapped tensor by tensor.
class Checkpoint {
 public:
  /// Every offset and shape is checked before anything is used: header length, JSON, dtype, overflow, bytes past the
  /// end, overlaps, holes, duplicates, an index naming a shard or a tensor that is not there. Errors name file and tensor.
  static Result<Checkpoint> Open(const std::filesystem::path& directory);

  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;
  ~Checkpoint();

  const std::map<std::string, TensorInfo>& tensors() const { return tensors_; }
  /// NOT_FOUND naming the tensor.
  Result<const TensorInfo*> Find(const std::string& name) const;
  Result<MappedTensor> Map(const std::string& name) const;

  /// Bytes that Map has mapped so far, over the checkpoint's life: what a process really read.
  std::uint64_t mapped_bytes() const { return mapped_bytes_; }

  /// 16 hex digits over config.json and every file's header and size: the same checkpoint on two machines gives the
  /// same digits. (Not over the data: hashing hundreds of gigabytes at every start would cost more than loading them.)
  const std::string& fingerprint() const { return fingerprint_; }

 private:
  Checkpoint();
  std::vector<std::filesystem::path> files_;
  std::vector<int> descriptors_;
  std::map<std::string, TensorInfo> tensors_;
  std::string fingerprint_;
  mutable std::uint64_t mapped_bytes_ = 0;
};

}  // namespace moe
