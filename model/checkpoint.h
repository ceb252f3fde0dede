// Hugging Face checkpoints: model.safetensors, or model.safetensors.index.json and its shards.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"
#include "model/safetensors.h"

namespace moe {

/// A tensor's bytes, mapped read-only for as long as this lives.
class MappedTensor {
 public:
  MappedTensor() = default;
  MappedTensor(MappedTensor&& other) noexcept;
  MappedTensor& operator=(MappedTensor&& other) noexcept;
  ~MappedTensor();

  /// Aligned to nothing; null when the tensor has no bytes.
  const std::byte* data() const { return data_; }
  std::uint64_t bytes() const { return bytes_; }

 private:
  friend class Checkpoint;
  void* mapping_ = nullptr;
  std::size_t mapping_bytes_ = 0;
  const std::byte* data_ = nullptr;
  std::uint64_t bytes_ = 0;
};

/// The tensors of one checkpoint by name. Opening reads headers only; data is mapped tensor by tensor. Find and Map may
/// be called from several threads.
class Checkpoint {
 public:
  /// Every offset and shape is checked before anything is used: header length, JSON, dtype, overflow, bytes past the
  /// end, overlaps, holes, duplicates, an index naming a shard or a tensor that is not there. Errors name file and
  /// tensor. A folder with both model.safetensors and an index is read from model.safetensors, as published software
  /// does.
  static Result<Checkpoint> Open(const std::filesystem::path& directory);

  /// No files: tensors whose values are made up from their names (model/random_weight.h). `identity` tells one such
  /// checkpoint from another: the text of its config.json.
  static Checkpoint MadeUp(std::string_view identity);
  bool made_up() const { return made_up_; }

  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;
  ~Checkpoint();

  const std::map<std::string, TensorInfo>& tensors() const { return tensors_; }
  /// "model-00001-of-00003.safetensors"
  const std::string& file_name(const TensorInfo& tensor) const { return files_[tensor.file]; }
  /// NOT_FOUND naming the tensor.
  Result<const TensorInfo*> Find(const std::string& name) const;
  /// The whole tensor, or with `index` >= 0 that one of its first dimension's parts.
  Result<MappedTensor> Map(const std::string& name, int index = -1) const;

  /// Bytes of the tensors that Map has mapped so far, over the checkpoint's life: what a process really read.
  std::uint64_t mapped_bytes() const { return mapped_bytes_.load(); }

  /// 16 hex digits over config.json and every file's header and size: the same checkpoint on two machines gives the
  /// same digits. (Not over the data: hashing hundreds of gigabytes at every start would cost more than loading them.)
  const std::string& fingerprint() const { return fingerprint_; }
  /// A hash over every file's name, size, header and time of last change: of the same files at another time, another
  /// one where a file was written in between. 0 of a made-up checkpoint.
  std::uint64_t stamp() const { return stamp_; }

 private:
  struct Hashes;

  Checkpoint() = default;
  Status OpenFile(const std::filesystem::path& directory, const std::string& name, Hashes& hashes);
  Status OpenShards(const std::filesystem::path& directory, Hashes& hashes);

  std::vector<std::string> files_;  // names in the folder
  std::vector<int> descriptors_;    // one a file, owned
  std::map<std::string, TensorInfo> tensors_;
  std::string fingerprint_;
  std::uint64_t stamp_ = 0;
  bool made_up_ = false;
  mutable std::atomic<std::uint64_t> mapped_bytes_ = 0;
};

}  // namespace moe
