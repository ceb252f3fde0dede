// Changed safetensors headers, indices and files, 60,000 of the 100,000 cases: each is an error that says what is
// wrong, or tensors whose bytes all lie in the file, apart from one another. Run under the address sanitizer too.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "core/text.h"
#include "model/checkpoint.h"
#include "model/safetensors.h"
#include "tests/model/fuzz_memory.h"
#include "tests/model/fuzz_mutation.h"
#include "tests/model/model_files.h"
#include "tests/model/random_config.h"

namespace moe {
namespace {

using nlohmann::json;
__extension__ using Wide = unsigned __int128;

constexpr int kHeaders = 56'000;
constexpr int kFolders = 4'000;
constexpr std::uint64_t kMostMemory = 4 << 20;

struct Element {
  const char* dtype;
  std::uint64_t bytes;
};
constexpr Element kElements[] = {{"F32", 4}, {"BF16", 2}, {"F16", 2}, {"U8", 1}, {"F8_E4M3", 1}, {"I64", 8}};

std::uint64_t BytesOf(const std::string& dtype) {
  if (dtype.ends_with("64")) return 8;
  if (dtype.ends_with("32")) return 4;
  return dtype.ends_with("16") ? 2 : 1;
}

/// A right header of a few small tensors, and the bytes of data that it describes.
json AnyHeader(std::mt19937_64& random, std::uint64_t& data_bytes) {
  json header = json::object();
  if (OneIn(random, 2)) header["__metadata__"] = json::object({{"format", "pt"}});
  std::uint64_t end = 0;
  for (std::int64_t n = Uniform(random, 0, 6); n > 0; --n) {
    const Element element = kElements[random() % std::size(kElements)];
    json shape = json::array();
    std::uint64_t bytes = element.bytes;
    for (std::int64_t dims = Uniform(random, 0, 4); dims > 0; --dims) {
      const std::int64_t dim = Uniform(random, OneIn(random, 5) ? 0 : 1, 6);
      shape.push_back(dim);
      bytes *= static_cast<std::uint64_t>(dim);
    }
    json& entry = header[Cat("model.layers.", n, ".weight")];
    entry["dtype"] = element.dtype;
    entry["shape"] = shape;
    entry["data_offsets"] = {end, end + bytes};
    end += bytes;
  }
  data_bytes = end;
  return header;
}

/// What headers get wrong beside what any JSON does: offsets that overlap, leave holes, are reversed or overflow, and
/// shapes whose products overflow to what is right.
void MutateEntry(json& header, std::mt19937_64& random) {
  std::vector<json*> entries;
  for (json& entry : header) {
    if (entry.contains("shape")) entries.push_back(&entry);
  }
  if (entries.empty()) return;
  json& entry = *entries[random() % entries.size()];
  json& offset = entry["data_offsets"][random() % 2];
  switch (Uniform(random, 0, 6)) {
    case 0: offset = offset.get<std::uint64_t>() + static_cast<std::uint64_t>(Uniform(random, -3, 3)); break;
    case 1: offset = random() >> Uniform(random, 0, 63); break;
    case 2: std::swap(entry["data_offsets"][0], entry["data_offsets"][1]); break;
    case 3: entry["data_offsets"] = (*entries[random() % entries.size()])["data_offsets"]; break;
    case 4: entry["shape"] = {std::int64_t{1} << 32, std::int64_t{1} << Uniform(random, 28, 36), 1}; break;
    case 5:
      entry["shape"].push_back(std::int64_t{1} << Uniform(random, 0, 63));
      entry["shape"].push_back(std::int64_t{1} << Uniform(random, 0, 62));
      break;
    default: entry["dtype"] = kElements[random() % std::size(kElements)].dtype; break;
  }
}

void CheckMessage(const Status& status) {
  EXPECT_TRUE(status.code() == StatusCode::kInvalidArgument || status.code() == StatusCode::kNotFound);
  EXPECT_TRUE(status.message().size() > 10 && status.message().size() < 1000) << status.message();
  EXPECT_TRUE(IsPrintable(status.message())) << status.message();
}

/// That every byte of data belongs to exactly one tensor, and every tensor has the bytes of its shape.
void CheckTensorBytes(const std::map<std::string, TensorInfo>& tensors, std::uint64_t begin, std::uint64_t end) {
  std::uint64_t sum = 0;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
  for (const auto& [name, info] : tensors) {
    ASSERT_LE(info.shape.size(), kMaxTensorDims);
    Wide bytes = BytesOf(info.dtype);
    for (const std::int64_t dim : info.shape) {
      ASSERT_GE(dim, 0) << name;
      bytes = std::min(bytes * static_cast<Wide>(dim), Wide{1} << 64);
    }
    // A dimension of 0 after large ones makes none again.
    if (std::ranges::find(info.shape, 0) != info.shape.end()) bytes = 0;
    EXPECT_EQ(static_cast<Wide>(info.bytes), bytes) << name;
    EXPECT_GE(info.offset, begin) << name;
    ASSERT_LE(info.offset, end) << name;
    EXPECT_LE(info.bytes, end - info.offset) << name;
    sum += info.bytes;
    if (info.bytes > 0) ranges.emplace_back(info.offset, info.offset + info.bytes);
  }
  EXPECT_EQ(sum, end - begin);
  std::ranges::sort(ranges);
  for (std::size_t i = 1; i < ranges.size(); ++i) EXPECT_EQ(ranges[i].first, ranges[i - 1].second);
}

/// `twice`: whether a key is there twice, which is an error whatever else is right.
std::string MutatedHeader(json header, const std::vector<json>& donors, std::mt19937_64& random, bool& twice) {
  if (OneIn(random, 2)) MutateEntry(header, random);  // reads what is right before
  for (std::int64_t n = Uniform(random, 0, 4) - 2; n > 0; --n) MutateJson(header, donors, random);
  twice = OneIn(random, 20) && !header.empty();
  std::string text = twice ? WithDuplicateKey(header, random) : header.dump();
  if (!twice && OneIn(random, 4)) MutateBytes(text, random);
  return text;
}

TEST(SafetensorsFuzz, HeaderIsAnErrorOrTensorsThatLieApart) {
  std::mt19937_64 random(3);
  std::vector<json> donors;
  std::uint64_t bytes = 0;
  for (int i = 0; i < 20; ++i) {
    json donor = AnyHeader(random, bytes);
    donor["more"]["shape"] = {2, 3};
    donors.push_back(std::move(donor));
  }
  int right = 0;
  for (int i = 0; i < kHeaders; ++i) {
    const json header = AnyHeader(random, bytes);
    bool twice = false;
    const std::string text = MutatedHeader(header, donors, random, twice);
    if (OneIn(random, 30)) bytes = random() >> Uniform(random, 1, 63);  // the file is another one
    const std::uint64_t begin = kSafetensorsPrefixBytes + text.size();
    SCOPED_TRACE(::testing::Message() << "case " << i << ", " << bytes << " bytes of data: " << text);
    const MemoryWatch memory;
    const auto tensors = ParseSafetensorsHeader(text, begin + bytes, 7);
    if (tensors.ok()) {
      EXPECT_FALSE(twice);
      CheckTensorBytes(*tensors, begin, begin + bytes);
      ++right;
    } else {
      CheckMessage(tensors.status());
    }
    EXPECT_LT(memory.peak_bytes(), kMostMemory);
    if (HasFailure()) return;
  }
  EXPECT_GT(right, kHeaders / 6);
  EXPECT_LT(right, kHeaders * 5 / 6);
}

/// Opens the folder and reads every byte of every tensor. Whether it opened.
bool ReadFolder(const TemporaryFolder& folder) {
  const MemoryWatch memory;
  const Result<Checkpoint> checkpoint = Checkpoint::Open(folder.path());
  EXPECT_LT(memory.peak_bytes(), kMostMemory);
  if (!checkpoint.ok()) {
    CheckMessage(checkpoint.status());
    return false;
  }
  int sum = 0;
  for (const auto& [name, info] : checkpoint->tensors()) {
    const int parts = info.shape.empty() ? 0 : static_cast<int>(std::min<std::int64_t>(info.shape[0], 8));
    for (int part = -1; part < parts; ++part) {
      const Result<MappedTensor> tensor = checkpoint->Map(name, part);
      EXPECT_TRUE(tensor.ok()) << tensor.status().message();
      if (!tensor.ok()) return true;
      for (std::uint64_t i = 0; i < tensor->bytes(); ++i) sum += std::to_integer<int>(tensor->data()[i]);
    }
  }
  EXPECT_GE(sum, 0);
  return true;
}

/// `file` cut, made longer, or with another length of its header.
void MutateFile(std::string& file, std::mt19937_64& random) {
  switch (Uniform(random, 0, 4)) {
    case 0: file.resize(random() % (file.size() + 1)); break;
    case 1: file.append(static_cast<std::size_t>(Uniform(random, 1, 9000)), 'd'); break;
    case 2: file[random() % 8] = static_cast<char>(random()); break;  // of the header's length
    case 3: file[0] = static_cast<char>(file[0] + Uniform(random, -2, 2)); break;
    default: MutateBytes(file, random); break;
  }
}

TEST(SafetensorsFuzz, FolderIsAnErrorOrCanBeReadWhole) {
  std::mt19937_64 random(4);
  int right = 0;
  for (int i = 0; i < kFolders; ++i) {
    const TemporaryFolder folder;
    const std::int64_t shards = Uniform(random, 0, 3);  // 0: one file without an index
    json index;
    index["weight_map"] = json::object();
    std::vector<json> donors = {index};
    for (std::int64_t shard = 0; shard < std::max<std::int64_t>(shards, 1); ++shard) {
      std::uint64_t bytes = 0;
      json header;
      const std::string name = shards == 0 ? "model.safetensors" : Cat("shard-", shard, ".safetensors");
      const json tensors = AnyHeader(random, bytes);
      for (const auto& [key, value] : tensors.items()) {
        const std::string tensor = key == "__metadata__" ? key : Cat(shard, key);
        header[tensor] = value;
        if (key != "__metadata__") index["weight_map"][tensor] = name;
      }
      const std::string text = header.is_null() ? "{}" : header.dump();
      std::string file = RawSafetensors(text, std::string(bytes, 'd'));
      if (OneIn(random, 4)) MutateFile(file, random);
      folder.Write(name, file);
    }
    if (shards > 0) {
      if (OneIn(random, 2)) MutateJson(index, donors, random);
      std::string text = index.dump();
      if (OneIn(random, 6)) MutateBytes(text, random);
      folder.Write("model.safetensors.index.json", text);
      SCOPED_TRACE(text);
    }
    SCOPED_TRACE(::testing::Message() << "case " << i);
    if (ReadFolder(folder)) ++right;
    if (HasFailure()) return;
  }
  EXPECT_GT(right, kFolders / 6);
  EXPECT_LT(right, kFolders * 5 / 6);
}

}  // namespace
}  // namespace moe
