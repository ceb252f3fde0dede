// Model folders for tests: temporary ones, safetensors files byte by byte, and those of the repository.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace moe {

/// An empty folder that goes with its contents at the end.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  void Write(const std::string& name, std::string_view bytes) const;
  /// Copies the files of `source`, without its folders.
  void CopyFrom(const std::filesystem::path& source) const;

 private:
  std::filesystem::path path_;
};

/// One tensor and its bytes as they go into a file.
struct TestTensor {
  std::string name;
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::string bytes;
};

/// The header's length, `header`, `data`; nothing is checked.
std::string RawSafetensors(std::string_view header, std::string_view data);

/// A right file of `tensors`, in this order.
std::string Safetensors(const std::vector<TestTensor>& tensors);

std::string ReadBytes(const std::filesystem::path& file);

/// MOE_SOURCE_DIR / `relative`.
std::filesystem::path InRepository(std::string_view relative);
/// The configurations of the built-in models, in order.
std::vector<std::filesystem::path> PublishedFiles();

}  // namespace moe
