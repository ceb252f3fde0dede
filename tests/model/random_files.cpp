#include "tests/model/random_files.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <utility>

#include "core/text.h"
#include "tests/model/random_config.h"

namespace moe {
namespace {

template <typename T>
void AppendBytes(const T& value, std::string& out) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  out.append(bytes, sizeof(T));
}

std::string Bytes(const std::vector<float>& values) {
  std::string bytes;
  for (const float value : values) AppendBytes(value, bytes);
  return bytes;
}

std::int64_t CeilDiv(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// e4m3: a sign, four bits of exponent with bias 7, three of fraction; exponent 0 is subnormal.
float E4m3(int code) {
  const int exponent = code >> 3 & 15;
  const float fraction = static_cast<float>(code & 7) / 8;
  const float size = exponent == 0 ? std::ldexp(fraction, -6) : std::ldexp(1 + fraction, exponent - 7);
  return code >= 128 ? -size : size;
}

StoredTensor StorePlain(const PublishedTensor& tensor, std::mt19937_64& random) {
  StoredTensor stored;
  std::string dtype = "F32";
  std::string bytes;
  const std::int64_t choice = Uniform(random, 0, 3);
  for (const float value : tensor.values) {
    if (choice == 0) {
      dtype = "BF16";
      AppendBytes(F32ToBf16(value), bytes);
      stored.values.push_back(Bf16ToF32(F32ToBf16(value)));
    } else if (choice == 1) {
      dtype = "F16";
      AppendBytes(F32ToF16(value), bytes);
      stored.values.push_back(F16ToF32(F32ToF16(value)));
    } else {
      AppendBytes(value, bytes);
      stored.values.push_back(value);
    }
  }
  stored.files = {{tensor.name, dtype, tensor.shape, std::move(bytes)}};
  return stored;
}

StoredTensor StoreFp8(const PublishedTensor& tensor, std::mt19937_64& random) {
  constexpr std::int64_t kBlock = 128;
  const std::int64_t rows = tensor.shape[0];
  const std::int64_t cols = tensor.shape[1];
  const std::int64_t across = CeilDiv(cols, kBlock);
  std::vector<float> scales;
  for (std::int64_t i = 0; i < CeilDiv(rows, kBlock) * across; ++i) {
    scales.push_back(static_cast<float>(Uniform(random, 1, 1000)) / 3000);
  }
  StoredTensor stored;
  std::string codes;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t col = 0; col < cols; ++col) {
      auto code = static_cast<int>(random() % 256);
      if ((code & 127) == 127) code -= 1;  // not a number
      codes += static_cast<char>(code);
      stored.values.push_back(E4m3(code) * scales[static_cast<std::size_t>(row / kBlock * across + col / kBlock)]);
    }
  }
  const std::vector<std::int64_t> grid = {CeilDiv(rows, kBlock), across};
  stored.files = {{tensor.name, "F8_E4M3", tensor.shape, std::move(codes)},
                  {tensor.name + "_scale_inv", "F32", grid, Bytes(scales)}};
  return stored;
}

/// (experts, inputs, outputs) as (experts, outputs, inputs / 32, 16) bytes and as many scales without the last.
StoredTensor StoreMxfp4(const PublishedTensor& tensor, std::mt19937_64& random) {
  constexpr std::int64_t kBlock = 32;
  constexpr float kSizes[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  const std::int64_t experts = tensor.shape[0];
  const std::int64_t inputs = tensor.shape[1];
  const std::int64_t outputs = tensor.shape[2];
  StoredTensor stored;
  stored.values.resize(tensor.values.size());
  std::string blocks;
  std::string scales;
  for (std::int64_t row = 0; row < experts * outputs; ++row) {
    for (std::int64_t input = 0; input < inputs; ++input) {
      if (input % kBlock == 0) scales += static_cast<char>(Uniform(random, 119, 130));
      const float scale = std::ldexp(1.0f, static_cast<unsigned char>(scales.back()) - 127);
      const auto code = static_cast<unsigned>(random() % 16);
      if (input % 2 == 0) {
        blocks += static_cast<char>(code);
      } else {
        blocks.back() = static_cast<char>(static_cast<unsigned char>(blocks.back()) | code << 4);
      }
      const std::int64_t at = (row / outputs * inputs + input) * outputs + row % outputs;
      stored.values[static_cast<std::size_t>(at)] = (code >= 8 ? -scale : scale) * kSizes[code % 8];
    }
  }
  stored.files = {{tensor.name + "_blocks", "U8", {experts, outputs, inputs / kBlock, kBlock / 2}, std::move(blocks)},
                  {tensor.name + "_scales", "U8", {experts, outputs, inputs / kBlock}, std::move(scales)}};
  return stored;
}

std::uint64_t BytesOfElement(const std::string& dtype) {
  if (dtype == "F32") return 4;
  return dtype == "BF16" || dtype == "F16" ? 2 : 1;
}

}  // namespace

StoredTensor Store(const PublishedTensor& tensor, Quantised method, std::mt19937_64& random) {
  if (method != Quantised::kNever && method == tensor.quantised) {
    return method == Quantised::kFp8 ? StoreFp8(tensor, random) : StoreMxfp4(tensor, random);
  }
  return StorePlain(tensor, random);
}

void WriteCheckpoint(const TemporaryFolder& folder, std::vector<TestTensor> tensors, std::mt19937_64& random) {
  for (std::size_t i = tensors.size(); i > 1; --i) std::swap(tensors[i - 1], tensors[random() % i]);
  if (OneIn(random, 2)) {
    folder.Write("model.safetensors", Safetensors(tensors));
    return;
  }
  const std::int64_t count = Uniform(random, 1, 4);
  std::map<std::string, std::vector<TestTensor>> shards;
  nlohmann::json index;
  for (TestTensor& tensor : tensors) {
    const std::string shard = Cat("model-0000", Uniform(random, 1, count), "-of-0000", count, ".safetensors");
    index["weight_map"][tensor.name] = shard;
    shards[shard].push_back(std::move(tensor));
  }
  index["metadata"]["total_size"] = 0;  // not relied on
  for (const auto& [name, of_shard] : shards) folder.Write(name, Safetensors(of_shard));
  folder.Write("model.safetensors.index.json", index.dump());
}

void WriteHeaders(const TemporaryFolder& folder, const std::vector<TestTensor>& tensors) {
  nlohmann::json header = nlohmann::json::object();
  std::uint64_t end = 0;
  for (const TestTensor& tensor : tensors) {
    std::uint64_t bytes = BytesOfElement(tensor.dtype);
    for (const std::int64_t dim : tensor.shape) bytes *= static_cast<std::uint64_t>(dim);
    nlohmann::json& entry = header[tensor.name];
    entry["dtype"] = tensor.dtype;
    entry["shape"] = tensor.shape;
    entry["data_offsets"] = {end, end + bytes};
    end += bytes;
  }
  const std::string text = header.dump();
  folder.Write("model.safetensors", RawSafetensors(text, ""));
  std::filesystem::resize_file(folder.path() / "model.safetensors", 8 + text.size() + end);
}

}  // namespace moe
