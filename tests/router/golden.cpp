#include "tests/router/golden.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "tests/router/engine_harness.h"

namespace moe {
namespace {

std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  MOE_CHECK(file.good(), "cannot read " + path.string());
  return {std::istreambuf_iterator<char>(file), {}};
}

template <typename T>
std::vector<T> Elements(std::string_view bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

}  // namespace

Golden ReadGolden(const std::string& folder) {
  Golden golden;
  const nlohmann::json json = nlohmann::json::parse(ReadFile(SourcePath(folder) / "golden.json"));
  for (const auto& prompt : json.at("prompts"))
    golden.prompts.push_back({.ids = prompt.at("ids"), .argmax = prompt.at("argmax"), .greedy = prompt.at("greedy")});
  // As the goldens' README derives it.
  golden.logit_tolerance = std::max(1e-4f, 8 * json.at("fp32_noise").get<float>());

  const std::string file = ReadFile(SourcePath(folder) / "golden.safetensors");
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), sizeof(header_bytes));
  const nlohmann::json header = nlohmann::json::parse(file.substr(sizeof(header_bytes), header_bytes));
  const std::string_view data = std::string_view(file).substr(sizeof(header_bytes) + header_bytes);
  for (const auto& [name, tensor] : header.items()) {
    if (name == "__metadata__") continue;
    const std::size_t begin = tensor.at("data_offsets")[0];
    const std::size_t end = tensor.at("data_offsets")[1];
    if (tensor.at("dtype") == "F32") golden.floats[name] = Elements<float>(data.substr(begin, end - begin));
    if (tensor.at("dtype") == "I32") golden.ints[name] = Elements<std::int32_t>(data.substr(begin, end - begin));
  }
  return golden;
}

}  // namespace moe
