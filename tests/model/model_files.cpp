#include "tests/model/model_files.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <stdexcept>

#include "core/text.h"
#include "test_folders.h"

namespace moe {

std::string RawSafetensors(std::string_view header, std::string_view data) {
  std::string file;
  for (int shift = 0; shift < 64; shift += 8) file += static_cast<char>(std::uint64_t{header.size()} >> shift);
  file += header;
  file += data;
  return file;
}

std::string Safetensors(const std::vector<TestTensor>& tensors) {
  std::string header = "{\"__metadata__\": {\"format\": \"pt\"}";
  std::string data;
  for (const TestTensor& tensor : tensors) {
    header += Cat(", \"", tensor.name, "\": {\"dtype\": \"", tensor.dtype, "\", \"shape\": [");
    for (std::size_t i = 0; i < tensor.shape.size(); ++i) header += Cat(i == 0 ? "" : ", ", tensor.shape[i]);
    header += Cat("], \"data_offsets\": [", data.size(), ", ", data.size() + tensor.bytes.size(), "]}");
    data += tensor.bytes;
  }
  return RawSafetensors(header + "}", data);
}

std::string ReadBytes(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  if (!in) throw std::runtime_error("cannot read " + file.string());
  return {std::istreambuf_iterator<char>(in), {}};
}

std::filesystem::path InRepository(std::string_view relative) {
  return std::filesystem::path(MOE_SOURCE_DIR) / relative;
}

std::vector<std::filesystem::path> PublishedFiles() {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(InRepository("models/published"))) {
    const bool config = entry.path().extension() == ".json" && entry.path().filename() != "counts.json";
    if (config) files.push_back(entry.path());
  }
  std::ranges::sort(files);
  return files;
}

}  // namespace moe
