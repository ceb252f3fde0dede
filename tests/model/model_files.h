// Files of models for tests: safetensors files byte by byte, and those of the repository.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "tests/temporary_folder.h"

namespace moe {

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
