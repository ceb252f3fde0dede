#include "tests/model/stored_values.h"

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "tests/model/model_files.h"

namespace moe {
namespace {

using nlohmann::json;

std::vector<float> Widen(const std::string& dtype, const std::string& bytes) {
  std::vector<float> values;
  const std::size_t width = dtype == "F32" ? 4 : 2;
  for (std::size_t at = 0; at < bytes.size(); at += width) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, bytes.data() + at, width);
    if (dtype == "F16") {
      values.push_back(F16ToF32(static_cast<std::uint16_t>(bits)));
    } else {
      values.push_back(std::bit_cast<float>(dtype == "BF16" ? bits << 16 : bits));
    }
  }
  return values;
}

struct StoredFile {
  std::string bytes;
  std::uint64_t header_bytes = 0;
  json header;
};

std::vector<StoredFile> ReadFiles(const std::filesystem::path& folder) {
  std::vector<StoredFile> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string file_name = entry.path().filename().string();
    if (!file_name.starts_with("model") || !file_name.ends_with(".safetensors")) continue;
    StoredFile file{.bytes = ReadBytes(entry.path())};
    std::memcpy(&file.header_bytes, file.bytes.data(), 8);
    file.header = json::parse(file.bytes.substr(8, file.header_bytes));
    files.push_back(std::move(file));
  }
  return files;
}

}  // namespace

std::vector<float> StoredValues(const std::filesystem::path& folder, const std::string& name) {
  static std::filesystem::path latest;
  static std::vector<StoredFile> files;
  if (latest != folder) {
    files = ReadFiles(folder);
    latest = folder;
  }
  for (const StoredFile& file : files) {
    if (!file.header.contains(name)) continue;
    const json& entry = file.header[name];
    const std::size_t begin = entry["data_offsets"][0];
    const std::size_t end = entry["data_offsets"][1];
    return Widen(entry["dtype"], file.bytes.substr(8 + file.header_bytes + begin, end - begin));
  }
  ADD_FAILURE() << "no tensor " << name << " in " << folder;
  return {};
}

std::vector<float> StoredValues(const std::filesystem::path& folder, const std::vector<std::string>& names) {
  std::vector<float> values;
  for (const std::string& name : names) {
    const std::vector<float> more = StoredValues(folder, name);
    values.insert(values.end(), more.begin(), more.end());
  }
  return values;
}

float ReadElement(const std::byte* at, WeightType type) {
  return WeightView{.type = type, .data = at, .rows = 1, .cols = 1}.at(0, 0);
}

std::vector<float> Unpack(const PackedMatrix& matrix) {
  std::vector<float> values;
  for (std::size_t row = 0; row < matrix.rows(); ++row) {
    const std::byte* panel = matrix.panel(row / PackedMatrix::kPanelWidth);
    for (std::size_t col = 0; col < matrix.cols(); ++col) {
      const std::size_t index = col * PackedMatrix::kPanelWidth + row % PackedMatrix::kPanelWidth;
      values.push_back(ReadElement(panel + index * BytesPerWeight(matrix.type()), matrix.type()));
    }
  }
  return values;
}

}  // namespace moe
