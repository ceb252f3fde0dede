#include "model/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <thread>
#include <utility>

#include "core/text.h"
#include "tests/model/model_files.h"

namespace moe {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

std::string OpenError(const std::filesystem::path& folder) {
  const Result<Checkpoint> checkpoint = Checkpoint::Open(folder);
  return checkpoint.ok() ? "no error" : checkpoint.status().message();
}

/// What opening a folder with this model.safetensors says.
std::string FileError(std::string_view file) {
  const TemporaryFolder folder;
  folder.Write("model.safetensors", file);
  return OpenError(folder.path());
}

/// The same for a header over 64 bytes of data.
std::string HeaderError(std::string_view header) { return FileError(RawSafetensors(header, std::string(64, 'd'))); }

std::string BytesOf(const Checkpoint& checkpoint, const std::string& name, int index = -1) {
  const Result<MappedTensor> tensor = checkpoint.Map(name, index);
  if (!tensor.ok()) return tensor.status().message();
  return {reinterpret_cast<const char*>(tensor->data()), tensor->bytes()};
}

TEST(Checkpoint, MapsTheBytesOfEachTensor) {
  const TemporaryFolder folder;
  // Crosses pages, starts off an element boundary, has no bytes, is a scalar.
  std::string large(3 * 2049 * 2, 'l');
  large.front() = '<';
  large.back() = '>';
  folder.Write("model.safetensors", Safetensors({{"odd", "U8", {3}, "abc"},
                                                 {"none", "F32", {0, 5}, ""},
                                                 {"large", "BF16", {3, 2049}, large},
                                                 {"scalar", "F32", {}, "1234"}}));
  const Result<Checkpoint> checkpoint = Checkpoint::Open(folder.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  EXPECT_EQ(checkpoint->tensors().size(), 4u);
  EXPECT_EQ(BytesOf(*checkpoint, "odd"), "abc");
  EXPECT_EQ(BytesOf(*checkpoint, "none"), "");
  EXPECT_EQ(BytesOf(*checkpoint, "large"), large);
  EXPECT_EQ(BytesOf(*checkpoint, "scalar"), "1234");
  EXPECT_EQ(checkpoint->tensors().at("large").shape, (std::vector<std::int64_t>{3, 2049}));
  EXPECT_EQ(checkpoint->tensors().at("large").elements(), 3u * 2049);
  EXPECT_EQ(checkpoint->tensors().at("scalar").elements(), 1u);
}

TEST(Checkpoint, MapsOnePartOfATensor) {
  const TemporaryFolder folder;
  // Parts of a page and a half, none of which begins with a page.
  std::string experts;
  for (int i = 0; i < 3 * 6144; ++i) experts += static_cast<char>(i / 7);
  folder.Write(
      "model.safetensors",
      Safetensors({{"odd", "U8", {3}, "abc"}, {"experts", "U8", {3, 6, 1024}, experts}, {"none", "U8", {2, 0}, ""}}));
  const Result<Checkpoint> checkpoint = Checkpoint::Open(folder.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  for (const std::size_t i : {2u, 0u, 1u})
    EXPECT_EQ(BytesOf(*checkpoint, "experts", static_cast<int>(i)), experts.substr(i * 6144, 6144));
  EXPECT_EQ(checkpoint->mapped_bytes(), experts.size()) << "and nothing beside the parts";
  EXPECT_EQ(BytesOf(*checkpoint, "odd", 1), "b");
  EXPECT_EQ(BytesOf(*checkpoint, "none", 1), "");
}

TEST(CheckpointDeathTest, MappingAPartThatIsNotThere) {
  const TemporaryFolder folder;
  folder.Write("model.safetensors", Safetensors({{"a", "U8", {3}, "abc"}, {"scalar", "U8", {}, "x"}}));
  const Result<Checkpoint> checkpoint = Checkpoint::Open(folder.path());
  ASSERT_TRUE(checkpoint.ok());
  EXPECT_DEATH((void)checkpoint->Map("a", 3), "broken invariant");
  EXPECT_DEATH((void)checkpoint->Map("scalar", 0), "broken invariant");
}

TEST(Checkpoint, ThatIsMadeUpHasNoTensorsAndAnIdentity) {
  Checkpoint made = Checkpoint::MadeUp("config");
  EXPECT_TRUE(made.made_up());
  EXPECT_TRUE(made.tensors().empty());
  EXPECT_EQ(made.Find("a").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(made.fingerprint().size(), 16u);
  EXPECT_EQ(made.fingerprint(), Checkpoint::MadeUp("config").fingerprint());
  EXPECT_NE(made.fingerprint(), Checkpoint::MadeUp("another").fingerprint());
  const Checkpoint moved = std::move(made);
  EXPECT_TRUE(moved.made_up());
  EXPECT_FALSE(Checkpoint::Open(InRepository("tests/goldens/llama"))->made_up());
}

TEST(Checkpoint, CountsMappedBytes) {
  const TemporaryFolder folder;
  folder.Write("model.safetensors", Safetensors({{"a", "U8", {3}, "abc"}, {"b", "F16", {2}, "wxyz"}}));
  Result<Checkpoint> checkpoint = Checkpoint::Open(folder.path());
  ASSERT_TRUE(checkpoint.ok());
  EXPECT_EQ(checkpoint->mapped_bytes(), 0u);
  EXPECT_EQ(BytesOf(*checkpoint, "b"), "wxyz");
  EXPECT_EQ(checkpoint->mapped_bytes(), 4u);
  EXPECT_EQ(BytesOf(*checkpoint, "a"), "abc");
  const Checkpoint moved = *std::move(checkpoint);
  EXPECT_EQ(moved.mapped_bytes(), 7u);
  EXPECT_EQ(BytesOf(moved, "a"), "abc");
}

TEST(Checkpoint, MapsFromSeveralThreads) {
  const Result<Checkpoint> checkpoint = Checkpoint::Open(InRepository("tests/goldens/mixtral"));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  std::uint64_t bytes = 0;
  for (const auto& [name, info] : checkpoint->tensors()) bytes += info.bytes;
  std::vector<std::thread> threads;
  threads.reserve(4);
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (const auto& [name, info] : checkpoint->tensors()) EXPECT_EQ(BytesOf(*checkpoint, name).size(), info.bytes);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(checkpoint->mapped_bytes(), 4 * bytes);
}

TEST(Checkpoint, ReadsShardsByTheirIndex) {
  const std::filesystem::path folder = InRepository("tests/goldens/mixtral");
  const Result<Checkpoint> checkpoint = Checkpoint::Open(folder);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  EXPECT_EQ(checkpoint->tensors().size(), 78u);
  const TensorInfo& info = checkpoint->tensors().at("model.layers.1.self_attn.q_proj.weight");
  EXPECT_EQ(checkpoint->file_name(info), "model-00003-of-00003.safetensors");
  // The first tensor of its shard: right behind the 8 bytes of length and the 3136 of header.
  EXPECT_EQ(BytesOf(*checkpoint, "model.layers.1.self_attn.q_proj.weight"),
            ReadBytes(folder / "model-00003-of-00003.safetensors").substr(8 + 3136, 12544));
}

TEST(Checkpoint, OpensEveryGoldenAndBundledModel) {
  std::size_t opened = 0;
  for (const char* parent : {"tests/goldens", "tests/option_goldens", "models"}) {
    for (const auto& entry : std::filesystem::directory_iterator(InRepository(parent))) {
      if (!std::filesystem::exists(entry.path() / "config.json")) continue;
      EXPECT_EQ(OpenError(entry.path()), "no error") << entry.path();
      ++opened;
    }
  }
  EXPECT_GE(opened, 19u + 24 + 3);
}

TEST(Checkpoint, NamesAMissingTensor) {
  const TemporaryFolder folder;
  folder.Write("model.safetensors", Safetensors({{"a", "U8", {3}, "abc"}}));
  const Result<Checkpoint> checkpoint = Checkpoint::Open(folder.path());
  ASSERT_TRUE(checkpoint.ok());
  EXPECT_EQ(checkpoint->Map("b").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(checkpoint->Map("b").status().message(), "tensor b is missing");
}

TEST(Checkpoint, NoticesAFileThatWasCutAfterOpening) {
  const TemporaryFolder folder;
  folder.Write("model.safetensors", Safetensors({{"a", "U8", {8192}, std::string(8192, 'a')}}));
  const Result<Checkpoint> checkpoint = Checkpoint::Open(folder.path());
  ASSERT_TRUE(checkpoint.ok());
  std::filesystem::resize_file(folder.path() / "model.safetensors", 4096);
  EXPECT_THAT(BytesOf(*checkpoint, "a"), HasSubstr("model.safetensors has become too short for tensor a"));
}

TEST(Checkpoint, FingerprintsTellCheckpointsApart) {
  const auto fingerprint = [](std::string_view config, const std::vector<TestTensor>& tensors) {
    const TemporaryFolder folder;
    folder.Write("config.json", config);
    folder.Write("model.safetensors", Safetensors(tensors));
    return Checkpoint::Open(folder.path())->fingerprint();
  };
  const std::string one = fingerprint("{}", {{"a", "U8", {3}, "abc"}});
  EXPECT_EQ(one.size(), 16u);
  EXPECT_EQ(one.find_first_not_of("0123456789abcdef"), std::string::npos);
  EXPECT_EQ(one, fingerprint("{}", {{"a", "U8", {3}, "xyz"}})) << "the data does not count";
  EXPECT_NE(one, fingerprint("{ }", {{"a", "U8", {3}, "abc"}}));
  EXPECT_NE(one, fingerprint("{}", {{"b", "U8", {3}, "abc"}}));
  EXPECT_NE(one, fingerprint("{}", {{"a", "U8", {4}, "abcd"}}));
}

TEST(Checkpoint, StampsTellWhetherAFileWasWritten) {
  const TemporaryFolder folder;
  folder.Write("config.json", "{}");
  folder.Write("model.safetensors", Safetensors({{"a", "U8", {3}, "abc"}}));
  const auto stamp = [&] { return Checkpoint::Open(folder.path())->stamp(); };
  const std::filesystem::path file = folder.path() / "model.safetensors";
  const auto time = std::filesystem::last_write_time(file);
  const std::uint64_t one = stamp();
  folder.Write("config.json", "{ }");
  EXPECT_EQ(stamp(), one) << "not of the checkpoint's files";
  std::filesystem::last_write_time(file, time + std::chrono::nanoseconds(1));
  EXPECT_NE(stamp(), one);
  std::filesystem::last_write_time(file, time);
  EXPECT_EQ(stamp(), one);
  folder.Write("model.safetensors", Safetensors({{"b", "U8", {3}, "abc"}}));
  std::filesystem::last_write_time(file, time);
  EXPECT_NE(stamp(), one) << "the header counts, whatever the time";
}

// Folders.

TEST(CheckpointFolder, NamesAMissingFolder) {
  const Status status = Checkpoint::Open("/tmp/no-such-model-folder").status();
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_EQ(status.message(), "model folder /tmp/no-such-model-folder does not exist");
}

TEST(CheckpointFolder, SaysWhatAnEmptyFolderLacks) {
  const TemporaryFolder folder;
  EXPECT_THAT(OpenError(folder.path()), AllOf(HasSubstr(folder.path().string()),
                                              HasSubstr("neither model.safetensors nor model.safetensors.index.json")));
}

TEST(CheckpointFolder, RefusesAFileInItsPlace) {
  const TemporaryFolder folder;
  folder.Write("model", "x");
  EXPECT_THAT(OpenError(folder.path() / "model"), HasSubstr("is not a folder"));
}

TEST(CheckpointFolder, RefusesAPipeInPlaceOfTheWeights) {
  const TemporaryFolder folder;
  ASSERT_EQ(mkfifo((folder.path() / "model.safetensors").c_str(), 0600), 0);
  EXPECT_EQ(OpenError(folder.path()), "model.safetensors is not a file");
}

// The file around the header.

TEST(SafetensorsFile, RefusesTruncation) {
  const std::string whole = Safetensors({{"a", "U8", {3}, "abc"}, {"b", "F16", {2}, "wxyz"}});
  EXPECT_EQ(FileError(whole), "no error");
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_THAT(FileError(whole.substr(0, size)), AllOf(StartsWith("model.safetensors"), HasSubstr("truncated")))
        << size;
  }
}

TEST(SafetensorsFile, RefusesAHugeHeaderLength) {
  std::string file = Safetensors({{"a", "U8", {3}, "abc"}});
  file[7] = '\x40';  // 2^62
  EXPECT_THAT(FileError(file),
              AllOf(StartsWith("model.safetensors has a header of 46116860184273"), HasSubstr("at most 100000000")));
}

TEST(SafetensorsFile, RefusesAHeaderThatIsNotJson) {
  EXPECT_THAT(HeaderError("xxxxxxxxxxxxxxxx"),
              AllOf(StartsWith("model.safetensors: the header: not JSON"), HasSubstr("line 1")));
  EXPECT_THAT(HeaderError(""), HasSubstr("not JSON"));
  EXPECT_THAT(HeaderError("[1, 2]"), HasSubstr("not a JSON object"));
}

TEST(SafetensorsFile, AcceptsPaddingAfterTheHeader) {
  EXPECT_EQ(FileError(RawSafetensors(R"({"a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}      )", "abc")),
            "no error");
}

TEST(SafetensorsFile, RefusesMetadataThatIsNotText) {
  EXPECT_THAT(HeaderError(R"({"__metadata__": {"n": 4}})"), HasSubstr("__metadata__ entry \"n\" is 4, not a string"));
  EXPECT_THAT(HeaderError(R"({"__metadata__": 4})"), HasSubstr("__metadata__ is 4, not an object"));
}

TEST(SafetensorsFile, RefusesBytesAfterTheLastTensor) {
  EXPECT_THAT(FileError(Safetensors({{"a", "U8", {3}, "abc"}}) + "xy"),
              HasSubstr("the last 2 bytes of the file belong to no tensor"));
}

// One entry of the header.

struct BadEntry {
  const char* name;
  const char* entry;    // of tensor "t", in a file with 64 bytes of data
  const char* message;  // what the error must say besides naming file and tensor
};

class SafetensorsEntry : public ::testing::TestWithParam<BadEntry> {};

TEST_P(SafetensorsEntry, IsRefused) {
  const std::string error = HeaderError(Cat("{\"t\": ", GetParam().entry, "}"));
  EXPECT_THAT(error, AllOf(StartsWith("model.safetensors: tensor t "), HasSubstr(GetParam().message)));
}

INSTANTIATE_TEST_SUITE_P(
    Bad, SafetensorsEntry,
    ::testing::Values(
        BadEntry{"NotAnObject", R"(7)", "is 7, not an object"},
        BadEntry{"UnknownKey", R"({"dtype": "U8", "shape": [64], "data_offsets": [0, 64], "strides": [1]})",
                 "unknown key \"strides\""},
        BadEntry{"NoDtype", R"({"shape": [64], "data_offsets": [0, 64]})", "no dtype"},
        BadEntry{"DtypeNotText", R"({"dtype": 8, "shape": [64], "data_offsets": [0, 64]})", "no dtype"},
        BadEntry{"UnknownDtype", R"({"dtype": "Q7", "shape": [64], "data_offsets": [0, 64]})", "unknown dtype \"Q7\""},
        BadEntry{"NoShape", R"({"dtype": "U8", "data_offsets": [0, 64]})", "no shape"},
        BadEntry{"ShapeNotAList", R"({"dtype": "U8", "shape": 64, "data_offsets": [0, 64]})", "no shape"},
        BadEntry{"NegativeDim", R"({"dtype": "U8", "shape": [-8, -8], "data_offsets": [0, 64]})",
                 "whose -8 is not a whole number"},
        BadEntry{"RealDim", R"({"dtype": "U8", "shape": [64.0], "data_offsets": [0, 64]})",
                 "whose 64 is not a whole number"},
        BadEntry{"HugeDim", R"({"dtype": "U8", "shape": [18446744073709551615], "data_offsets": [0, 64]})",
                 "not a whole number"},
        BadEntry{"TooManyDims", R"({"dtype": "U8", "shape": [1,1,1,1,1,1,1,1,64], "data_offsets": [0, 64]})",
                 "9 dimensions (at most 8)"},
        BadEntry{"OverflowingShape", R"({"dtype": "U8", "shape": [8589934592, 8589934592], "data_offsets": [0, 64]})",
                 "shape (8589934592, 8589934592), whose size overflows"},
        BadEntry{"OverflowingBytes", R"({"dtype": "F32", "shape": [4294967296, 1073741824], "data_offsets": [0, 64]})",
                 "overflows"},
        BadEntry{"NoOffsets", R"({"dtype": "U8", "shape": [64]})", "no data_offsets"},
        BadEntry{"ThreeOffsets", R"({"dtype": "U8", "shape": [64], "data_offsets": [0, 64, 64]})", "no data_offsets"},
        BadEntry{"NegativeOffset", R"({"dtype": "U8", "shape": [64], "data_offsets": [-64, 0]})",
                 "data_offsets [-64, 0], which are not two whole"},
        BadEntry{"RealOffset", R"({"dtype": "U8", "shape": [64], "data_offsets": [0, 64.5]})",
                 "which are not two whole"},
        BadEntry{"Reversed", R"({"dtype": "U8", "shape": [64], "data_offsets": [64, 0]})",
                 "[64, 0], which are reversed"},
        BadEntry{"PastTheEnd", R"({"dtype": "U8", "shape": [64], "data_offsets": [1, 65]})",
                 "past the end of the file's 64 bytes"},
        BadEntry{"FarPastTheEnd",
                 R"({"dtype": "U8", "shape": [64], "data_offsets": [18446744073709551551, 18446744073709551615]})",
                 "past the end"},
        BadEntry{"TooFewBytes", R"({"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 60]})",
                 "shape (4, 4) needs 64 bytes, but its data_offsets [0, 60] hold 60"},
        BadEntry{"TooManyBytes", R"({"dtype": "F16", "shape": [4, 4], "data_offsets": [0, 64]})", "needs 32 bytes"}),
    [](const auto& test) { return test.param.name; });

TEST(SafetensorsLayout, RefusesATensorThatIsThereTwice) {
  constexpr const char* kEntry = R"("t": {"dtype": "U8", "shape": [64], "data_offsets": [0, 64]})";
  EXPECT_THAT(HeaderError(Cat("{", kEntry, ", ", kEntry, "}")),
              AllOf(StartsWith("model.safetensors"), HasSubstr("key \"t\" is there twice")));
}

TEST(SafetensorsLayout, RefusesOverlap) {
  EXPECT_THAT(HeaderError(R"({"a": {"dtype": "U8", "shape": [40], "data_offsets": [0, 40]},
                              "b": {"dtype": "U8", "shape": [25], "data_offsets": [39, 64]}})"),
              HasSubstr("tensor b overlaps tensor a"));
  EXPECT_THAT(HeaderError(R"({"a": {"dtype": "U8", "shape": [64], "data_offsets": [0, 64]},
                              "b": {"dtype": "U8", "shape": [64], "data_offsets": [0, 64]}})"),
              HasSubstr("overlaps"));
}

TEST(SafetensorsLayout, RefusesHoles) {
  EXPECT_THAT(HeaderError(R"({"a": {"dtype": "U8", "shape": [30], "data_offsets": [0, 30]},
                              "b": {"dtype": "U8", "shape": [32], "data_offsets": [32, 64]}})"),
              HasSubstr("the 2 bytes before tensor b belong to no tensor"));
  EXPECT_THAT(HeaderError(R"({"a": {"dtype": "U8", "shape": [60], "data_offsets": [4, 64]}})"),
              HasSubstr("the 4 bytes before tensor a"));
}

TEST(SafetensorsLayout, AcceptsTensorsWithoutBytesBetweenOthers) {
  EXPECT_EQ(HeaderError(R"({"z": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]},
                            "y": {"dtype": "U8", "shape": [32], "data_offsets": [0, 32]},
                            "x": {"dtype": "F32", "shape": [4, 0], "data_offsets": [32, 32]},
                            "a": {"dtype": "U8", "shape": [32], "data_offsets": [32, 64]},
                            "b": {"dtype": "U8", "shape": [0], "data_offsets": [64, 64]}})"),
            "no error");
}

// The index.

constexpr const char* kIndex = "model.safetensors.index.json";

/// Two shards with tensors a and b, and this index.
std::string IndexError(std::string_view index) {
  const TemporaryFolder folder;
  folder.Write("1.safetensors", Safetensors({{"a", "U8", {1}, "a"}}));
  folder.Write("2.safetensors", Safetensors({{"b", "U8", {1}, "b"}}));
  folder.Write(kIndex, index);
  return OpenError(folder.path());
}

TEST(CheckpointIndex, IsAccepted) {
  EXPECT_EQ(
      IndexError(R"({"metadata": {"total_size": 999}, "weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})"),
      "no error");
}

TEST(CheckpointIndex, MustBeJson) {
  EXPECT_THAT(IndexError("{oops"), AllOf(StartsWith(kIndex), HasSubstr("not JSON")));
  EXPECT_THAT(IndexError(""), AllOf(StartsWith(kIndex), HasSubstr("empty")));
}

TEST(CheckpointIndex, MustHaveAWeightMap) {
  EXPECT_THAT(IndexError(R"({"metadata": {}})"), AllOf(StartsWith(kIndex), HasSubstr("weight_map is missing")));
  EXPECT_THAT(IndexError(R"({"weight_map": []})"), HasSubstr("weight_map is not an object"));
}

TEST(CheckpointIndex, MustNameShardsThatExist) {
  EXPECT_EQ(IndexError(R"({"weight_map": {"a": "1.safetensors", "b": "3.safetensors"}})"),
            "model.safetensors.index.json names the shard 3.safetensors, which is missing");
}

TEST(CheckpointIndex, MustNotLeaveTheFolder) {
  for (const char* shard :
       {"\"../1.safetensors\"", "\"/etc/passwd\"", "\"..\"", "\"\"", "7", "\"1.safetensors\\u0000\""}) {
    EXPECT_THAT(IndexError(Cat(R"({"weight_map": {"a": )", shard, "}}")),
                HasSubstr("not the name of a file in the folder"))
        << shard;
  }
}

TEST(CheckpointIndex, MustNameTensorsThatTheirShardHas) {
  EXPECT_EQ(IndexError(R"({"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"}})"),
            "model.safetensors.index.json puts tensor c into 2.safetensors, which does not have it");
  EXPECT_THAT(IndexError(R"({"weight_map": {"a": "2.safetensors", "b": "1.safetensors"}})"),
              HasSubstr("puts tensor a into 2.safetensors"));
}

TEST(CheckpointIndex, MustNameEveryTensorOfItsShards) {
  const TemporaryFolder folder;
  folder.Write("1.safetensors", Safetensors({{"a", "U8", {1}, "a"}, {"extra", "U8", {1}, "x"}}));
  folder.Write(kIndex, R"({"weight_map": {"a": "1.safetensors"}})");
  EXPECT_EQ(OpenError(folder.path()), "1.safetensors: tensor extra is not in model.safetensors.index.json");
}

TEST(CheckpointIndex, MustNotHaveATensorInTwoShards) {
  const TemporaryFolder folder;
  folder.Write("1.safetensors", Safetensors({{"a", "U8", {1}, "a"}, {"b", "U8", {1}, "b"}}));
  folder.Write("2.safetensors", Safetensors({{"b", "U8", {1}, "b"}}));
  folder.Write(kIndex, R"({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})");
  EXPECT_EQ(OpenError(folder.path()), "2.safetensors: tensor b is also in 1.safetensors");
}

TEST(CheckpointIndex, NamesTheShardThatIsBroken) {
  const TemporaryFolder folder;
  folder.Write("1.safetensors", "short");
  folder.Write(kIndex, R"({"weight_map": {"a": "1.safetensors"}})");
  EXPECT_THAT(OpenError(folder.path()), StartsWith("1.safetensors has 5 bytes"));
}

}  // namespace
}  // namespace moe
