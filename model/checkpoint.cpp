#include "model/checkpoint.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <set>
#include <span>
#include <string_view>
#include <system_error>
#include <utility>

#include "core/check.h"
#include "core/errno_text.h"
#include "model/content_hash.h"
#include "model/json.h"

namespace moe {
namespace {

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";
// The largest published index (hundreds of thousands of tensors) has some 20 MB.
constexpr std::uint64_t kMaxIndexBytes = 256u << 20;
constexpr std::size_t kMaxShards = 4096;

/// Fills `out` from `offset`; false when the file ends or cannot be read.
bool ReadAt(int descriptor, std::uint64_t offset, std::span<char> out) {
  while (!out.empty()) {
    const ssize_t got = pread(descriptor, out.data(), out.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    out = out.subspan(static_cast<std::size_t>(got));
    offset += static_cast<std::uint64_t>(got);
  }
  return true;
}

/// The header's text, its length checked against the format's limit and the file.
Result<std::string> ReadHeader(int descriptor, std::uint64_t file_bytes) {
  std::array<char, kSafetensorsPrefixBytes> prefix{};
  if (file_bytes < prefix.size() || !ReadAt(descriptor, 0, prefix)) {
    return InvalidArgument("has ", file_bytes, " bytes, too few for a header (is it truncated?)");
  }
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < prefix.size(); ++i) {
    length |= static_cast<std::uint64_t>(static_cast<unsigned char>(prefix[i])) << (8 * i);
  }
  if (length > kMaxSafetensorsHeaderBytes) {
    return InvalidArgument("has a header of ", length, " bytes (at most ", kMaxSafetensorsHeaderBytes, ")");
  }
  if (length > file_bytes - prefix.size()) {
    return InvalidArgument("has a header of ", length, " bytes in a file of ", file_bytes, " bytes (is it truncated?)");
  }
  std::string header(length, '\0');
  if (!ReadAt(descriptor, prefix.size(), header)) return InvalidArgument("cannot be read: ", ErrnoText());
  return header;
}

bool IsPlainFileName(std::string_view name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string_view::npos &&
         name.find('\0') == std::string_view::npos;
}

/// Tensor name → shard, as the index says.
Result<std::map<std::string, std::string>> ReadIndex(const std::filesystem::path& path) {
  MOE_ASSIGN_OR_RETURN(const JsonValue root, ReadJsonFile(path, kMaxIndexBytes));
  const JsonValue* weight_map = root.Find("weight_map");
  if (weight_map == nullptr || weight_map->AsObject() == nullptr) {
    return InvalidArgument(kIndexFile, ": weight_map is ", weight_map == nullptr ? "missing" : "not an object");
  }
  std::map<std::string, std::string> shards;
  for (const JsonValue::Member& entry : *weight_map->AsObject()) {
    const std::string* shard = entry.value.AsString();
    if (shard == nullptr || !IsPlainFileName(*shard)) {
      return InvalidArgument(kIndexFile, ": weight_map puts tensor ", Printable(entry.key), " into ",
                             entry.value.Excerpt(), ", not the name of a file in the folder");
    }
    shards.emplace(entry.key, *shard);
  }
  return shards;
}

Status CheckFolder(const std::filesystem::path& directory) {
  std::error_code error;
  const auto status = std::filesystem::status(directory, error);
  if (!std::filesystem::exists(status)) return NotFound("model folder ", directory.string(), " does not exist");
  if (!std::filesystem::is_directory(status)) return InvalidArgument("model ", directory.string(), " is not a folder");
  return Status::Ok();
}

}  // namespace

/// Over the files as they are opened.
struct Checkpoint::Hashes {
  ContentHash fingerprint;
  ContentHash stamp;
};

MappedTensor::MappedTensor(MappedTensor&& other) noexcept { *this = std::move(other); }

MappedTensor& MappedTensor::operator=(MappedTensor&& other) noexcept {
  std::swap(mapping_, other.mapping_);
  std::swap(mapping_bytes_, other.mapping_bytes_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

MappedTensor::~MappedTensor() {
  if (mapping_ != nullptr) munmap(mapping_, mapping_bytes_);
}

Checkpoint::Checkpoint(Checkpoint&& other) noexcept { *this = std::move(other); }

Checkpoint& Checkpoint::operator=(Checkpoint&& other) noexcept {
  files_.swap(other.files_);
  descriptors_.swap(other.descriptors_);
  tensors_.swap(other.tensors_);
  fingerprint_.swap(other.fingerprint_);
  std::swap(stamp_, other.stamp_);
  std::swap(made_up_, other.made_up_);
  mapped_bytes_.store(other.mapped_bytes_.exchange(mapped_bytes_.load()));
  return *this;
}

Checkpoint::~Checkpoint() {
  for (const int descriptor : descriptors_) close(descriptor);
}

Result<Checkpoint> Checkpoint::Open(const std::filesystem::path& directory) {
  MOE_RETURN_IF_ERROR(CheckFolder(directory));
  Checkpoint checkpoint;
  Hashes hashes;
  if (std::error_code error; std::filesystem::exists(directory / "config.json", error)) {
    MOE_ASSIGN_OR_RETURN(const std::string config, ReadSmallFile(directory / "config.json", kMaxConfigBytes));
    hashes.fingerprint.AddText(config);
  }
  std::error_code error;
  if (std::filesystem::exists(directory / kSingleFile, error)) {
    MOE_RETURN_IF_ERROR(checkpoint.OpenFile(directory, kSingleFile, hashes));
  } else if (std::filesystem::exists(directory / kIndexFile, error)) {
    MOE_RETURN_IF_ERROR(checkpoint.OpenShards(directory, hashes));
  } else {
    return NotFound("model folder ", directory.string(), " has neither ", kSingleFile, " nor ", kIndexFile);
  }
  checkpoint.fingerprint_ = Hex(hashes.fingerprint.value());
  checkpoint.stamp_ = hashes.stamp.value();
  return checkpoint;
}

Checkpoint Checkpoint::MadeUp(std::string_view identity) {
  Checkpoint checkpoint;
  ContentHash fingerprint;
  fingerprint.AddText("made up");
  fingerprint.AddText(identity);
  checkpoint.fingerprint_ = Hex(fingerprint.value());
  checkpoint.made_up_ = true;
  return checkpoint;
}

Status Checkpoint::OpenFile(const std::filesystem::path& directory, const std::string& name, Hashes& hashes) {
  // O_NONBLOCK: a pipe of that name must not hang the start; for regular files it means nothing.
  const int descriptor = open((directory / name).c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return InvalidArgument(name, " cannot be opened: ", ErrnoText());
  descriptors_.push_back(descriptor);
  files_.push_back(name);
  struct stat status {};
  if (fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) return InvalidArgument(name, " is not a file");
  const auto file_bytes = static_cast<std::uint64_t>(status.st_size);

  Result<std::string> header = ReadHeader(descriptor, file_bytes);
  if (!header.ok()) return InvalidArgument(name, " ", header.status().message());
  Result<std::map<std::string, TensorInfo>> tensors = ParseSafetensorsHeader(*header, file_bytes, files_.size() - 1);
  if (!tensors.ok()) return tensors.status().WithContext(name);
  tensors_.merge(*tensors);
  if (!tensors->empty()) {
    const std::string& twice = tensors->begin()->first;
    return InvalidArgument(name, ": tensor ", Printable(twice), " is also in ", files_[tensors_.at(twice).file]);
  }
  for (ContentHash* hash : {&hashes.fingerprint, &hashes.stamp}) {
    hash->AddText(name);
    hash->AddNumber(file_bytes);
    hash->AddText(*header);
  }
  hashes.stamp.AddNumber(static_cast<std::uint64_t>(status.st_mtim.tv_sec));
  hashes.stamp.AddNumber(static_cast<std::uint64_t>(status.st_mtim.tv_nsec));
  return Status::Ok();
}

Status Checkpoint::OpenShards(const std::filesystem::path& directory, Hashes& hashes) {
  MOE_ASSIGN_OR_RETURN(const auto index, ReadIndex(directory / kIndexFile));
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : index) shards.insert(shard);
  if (shards.size() > kMaxShards) {
    return InvalidArgument(kIndexFile, " names ", shards.size(), " shards (at most ", kMaxShards, ")");
  }
  for (const std::string& shard : shards) {
    std::error_code error;
    if (!std::filesystem::exists(directory / shard, error)) {
      return NotFound(kIndexFile, " names the shard ", Printable(shard), ", which is missing");
    }
    MOE_RETURN_IF_ERROR(OpenFile(directory, shard, hashes));
  }
  for (const auto& [tensor, shard] : index) {
    const auto it = tensors_.find(tensor);
    if (it == tensors_.end() || files_[it->second.file] != shard) {
      return InvalidArgument(kIndexFile, " puts tensor ", Printable(tensor), " into ", Printable(shard),
                             ", which does not have it");
    }
  }
  for (const auto& [tensor, info] : tensors_) {
    if (!index.contains(tensor)) {
      return InvalidArgument(files_[info.file], ": tensor ", Printable(tensor), " is not in ", kIndexFile);
    }
  }
  return Status::Ok();
}

Result<const TensorInfo*> Checkpoint::Find(const std::string& name) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) return NotFound("tensor ", Printable(name), " is missing");
  return &it->second;
}

Result<MappedTensor> Checkpoint::Map(const std::string& name, int index) const {
  MOE_ASSIGN_OR_RETURN(const TensorInfo* info, Find(name));
  std::uint64_t offset = info->offset;
  std::uint64_t bytes = info->bytes;
  if (index >= 0) {
    MOE_CHECK(!info->shape.empty() && index < info->shape.front());
    bytes /= static_cast<std::uint64_t>(info->shape.front());
    offset += bytes * static_cast<std::uint64_t>(index);
  }
  MappedTensor tensor;
  if (bytes == 0) return tensor;
  const int descriptor = descriptors_[info->file];
  // A file cut after Open would kill the process with SIGBUS when read.
  struct stat status {};
  if (fstat(descriptor, &status) != 0 || static_cast<std::uint64_t>(status.st_size) < info->offset + info->bytes) {
    return InvalidArgument(files_[info->file], " has become too short for tensor ", Printable(name));
  }
  const auto page = static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  const std::uint64_t begin = offset / page * page;
  const std::size_t length = offset - begin + bytes;
  void* mapping = mmap(nullptr, length, PROT_READ, MAP_PRIVATE, descriptor, static_cast<off_t>(begin));
  if (mapping == MAP_FAILED) {
    return ResourceExhausted(files_[info->file], ": mapping ", bytes, " bytes of tensor ", Printable(name),
                             " failed: ", ErrnoText());
  }
  // Advice only: each tensor is read once, front to back.
  madvise(mapping, length, MADV_SEQUENTIAL);
  madvise(mapping, length, MADV_WILLNEED);
  tensor.mapping_ = mapping;
  tensor.mapping_bytes_ = length;
  tensor.data_ = static_cast<const std::byte*>(mapping) + (offset - begin);
  tensor.bytes_ = bytes;
  mapped_bytes_ += bytes;
  return tensor;
}

}  // namespace moe
