#include "tests/model/stored_values.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
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

/// A tensor as it lies in its file.
struct Raw {
  std::string dtype;
  std::vector<std::size_t> shape;
  std::string bytes;
};

/// Nothing when no file of the folder has it.
std::optional<Raw> Find(const std::filesystem::path& folder, const std::string& name) {
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
    return Raw{.dtype = entry["dtype"],
               .shape = entry["shape"],
               .bytes = file.bytes.substr(8 + file.header_bytes + begin, end - begin)};
  }
  return std::nullopt;
}

Raw Get(const std::filesystem::path& folder, const std::string& name) {
  std::optional<Raw> raw = Find(folder, name);
  if (!raw) throw std::runtime_error("no tensor " + name + " in " + folder.string());
  return *std::move(raw);
}

/// Sign, 4 bits of exponent with bias 7, 3 of fraction; subnormal at exponent 0.
double E4m3(unsigned char bits) {
  const int exponent = bits >> 3 & 15;
  const double fraction = (bits & 7) / 8.0;
  const double size = exponent == 0 ? std::pow(2, -6) * fraction : std::pow(2, exponent - 7) * (1 + fraction);
  return bits >= 128 ? -size : size;
}

/// Each value times the scale of its 128 × 128 block.
std::vector<float> ScaledE4m3(const Raw& raw, const std::vector<float>& scales) {
  const std::size_t cols = raw.shape.at(1);
  const std::size_t blocks = (cols + 127) / 128;
  std::vector<float> values;
  for (std::size_t i = 0; i < raw.bytes.size(); ++i) {
    const double scale = static_cast<double>(scales.at(i / cols / 128 * blocks + i % cols / 128));
    values.push_back(static_cast<float>(E4m3(static_cast<unsigned char>(raw.bytes[i])) * scale));
  }
  return values;
}

}  // namespace

std::vector<float> StoredValues(const std::filesystem::path& folder, const std::string& name) {
  const Raw raw = Get(folder, name);
  if (raw.dtype == "F8_E4M3") return ScaledE4m3(raw, StoredValues(folder, name + "_scale_inv"));
  return Widen(raw.dtype, raw.bytes);
}

bool HasStored(const std::filesystem::path& folder, const std::string& name) { return Find(folder, name).has_value(); }

std::vector<float> StoredMxfp4(const std::filesystem::path& folder, const std::string& name) {
  constexpr double kSizes[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  const Raw blocks = Get(folder, name + "_blocks");
  const Raw scales = Get(folder, name + "_scales");
  std::vector<float> values;
  for (std::size_t i = 0; i < 2 * blocks.bytes.size(); ++i) {
    const auto byte = static_cast<unsigned char>(blocks.bytes[i / 2]);
    const int nibble = i % 2 == 0 ? byte & 15 : byte >> 4;
    const double scale = std::pow(2, static_cast<unsigned char>(scales.bytes.at(i / 32)) - 127);
    values.push_back(static_cast<float>((nibble >= 8 ? -1 : 1) * kSizes[nibble & 7] * scale));
  }
  return values;
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

std::vector<float> EmbeddingOf(const DenseWeights& weights) {
  std::vector<float> values;
  for (std::size_t at = 0; at < weights.embedding.size(); at += BytesPerWeight(weights.embedding_type)) {
    values.push_back(ReadElement(weights.embedding.data() + at, weights.embedding_type));
  }
  return values;
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
