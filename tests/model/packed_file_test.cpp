#include "model/packed_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <fstream>
#include <functional>
#include <optional>
#include <random>
#include <thread>

#include "core/text.h"
#include "model/content_hash.h"
#include "tests/model/model_files.h"

namespace moe {
namespace {

using ::testing::AnyOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr std::size_t kHeaderBytes = 64;
constexpr PackedFileKey kKey{.checkpoint = 0x1122334455667788, .recipe = 0x99aabbccddeeff00, .type = WeightType::kInt8};

PackedMatrix RandomMatrix(PackedShape shape, WeightType type, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  return PackedMatrix::Pack(shape.rows, shape.cols, type, [&](std::size_t, MatrixView<float> block) {
    for (std::size_t i = 0; i < block.rows(); ++i)
      for (std::size_t j = 0; j < block.cols(); ++j) block(i, j) = normal(random);
  });
}

std::string BytesOf(const PackedMatrix& matrix) {
  const std::span bytes = matrix.storage();
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// A file of three matrices, as an expert's is.
class PackedFileTest : public ::testing::Test {
 protected:
  std::vector<PackedMatrix> Matrices(std::uint32_t seed = 1, WeightType type = WeightType::kInt8) const {
    std::vector<PackedMatrix> matrices;
    for (const PackedShape& shape : shapes_) matrices.push_back(RandomMatrix(shape, type, seed++));
    return matrices;
  }
  Result<bool> Write(const std::vector<PackedMatrix>& matrices, const PackedFileKey& key = kKey) const {
    std::vector<const PackedMatrix*> pointers;
    for (const PackedMatrix& matrix : matrices) pointers.push_back(&matrix);
    return WritePackedFile(path_, key, pointers);
  }
  /// The bytes of a right file, which is in its place then.
  std::string Written() const {
    const Result<bool> written = Write(Matrices());
    EXPECT_TRUE(written.ok() && *written) << written.status().message();
    return ReadBytes(path_);
  }
  Result<std::vector<PackedMatrix>> Read(const PackedFileKey& key = kKey) const {
    return ReadPackedFile(path_, key, shapes_);
  }
  std::string Refusal(const PackedFileKey& key = kKey) const {
    const Status status = Read(key).status();
    EXPECT_TRUE(status.ok() || status.code() == StatusCode::kInvalidArgument) << status.message();
    return status.message();
  }
  void Put(const std::string& bytes) const { std::ofstream(path_, std::ios::binary) << bytes; }
  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(path_.parent_path()))
      names.push_back(entry.path().filename().string());
    return names;
  }

  const TemporaryFolder folder_;
  const std::filesystem::path path_ = folder_.path() / "int8" / "layer-000" / "expert-000.moew";
  const std::filesystem::path draft_ = path_.string() + ".part";
  const std::vector<PackedShape> shapes_ = {{33, 70}, {16, 64}, {1, 1}};
};

TEST_F(PackedFileTest, GivesBackEveryBit) {
  for (const WeightType type : {WeightType::kInt8, WeightType::kInt4, WeightType::kBf16}) {
    PackedFileKey key = kKey;
    key.type = type;
    const std::vector<PackedMatrix> matrices = Matrices(7, type);
    ASSERT_TRUE(Write(matrices, key).ok());
    const Result<std::vector<PackedMatrix>> read = Read(key);
    ASSERT_TRUE(read.ok()) << read.status().message();
    ASSERT_EQ(read->size(), matrices.size());
    for (std::size_t i = 0; i < matrices.size(); ++i) {
      EXPECT_EQ((*read)[i].type(), type);
      EXPECT_EQ((*read)[i].rows(), matrices[i].rows());
      EXPECT_EQ((*read)[i].cols(), matrices[i].cols());
      EXPECT_EQ(BytesOf((*read)[i]), BytesOf(matrices[i]));
    }
  }
}

TEST_F(PackedFileTest, GivesBackMatricesOfManyBlocks) {
  const std::vector<PackedShape> shapes = {{700, 1100}, {16, 64}};
  const PackedMatrix large = RandomMatrix(shapes[0], WeightType::kInt8, 3);
  const PackedMatrix small = RandomMatrix(shapes[1], WeightType::kInt8, 4);
  ASSERT_GT(large.bytes(), std::size_t{3} << 18);
  const PackedMatrix* const both[] = {&large, &small};
  ASSERT_TRUE(WritePackedFile(path_, kKey, both).ok());
  const Result<std::vector<PackedMatrix>> read = ReadPackedFile(path_, kKey, shapes);
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(BytesOf((*read)[0]), BytesOf(large));
  EXPECT_EQ(BytesOf((*read)[1]), BytesOf(small));
}

TEST_F(PackedFileTest, WhatIsNotThereIsNotFound) {
  EXPECT_EQ(Read().status().code(), StatusCode::kNotFound);
  std::filesystem::create_directories(path_.parent_path().parent_path());
  std::ofstream(path_.parent_path()) << "a file where a folder should be";
  EXPECT_EQ(Read().status().code(), StatusCode::kNotFound);
}

TEST_F(PackedFileTest, RefusesWhatIsOfSomethingElse) {
  Written();
  PackedFileKey key = kKey;
  key.checkpoint ^= 1;
  EXPECT_THAT(Refusal(key), HasSubstr("stale: the checkpoint's files are not those"));
  key = kKey;
  key.recipe ^= std::uint64_t{1} << 63;
  EXPECT_THAT(Refusal(key), HasSubstr("stale: it holds other weights"));
  key = kKey;
  key.type = WeightType::kInt4;
  EXPECT_THAT(Refusal(key), HasSubstr("stale: it holds other weights"));
  EXPECT_TRUE(Read().ok()) << "to refuse it changes nothing";
}

TEST_F(PackedFileTest, RefusesOtherVersions) {
  const std::string right = Written();
  struct Case {
    std::size_t offset;
    const char* reason;
  };
  for (const auto& [offset, reason] :
       {Case{0, "not a file of packed weights"}, Case{8, "byte order"}, Case{12, "format"}, Case{16, "packing"}}) {
    std::string changed = right;
    changed[offset] = static_cast<char>(changed[offset] + 1);
    Put(changed);
    EXPECT_THAT(Refusal(), HasSubstr(reason));
  }
}

TEST_F(PackedFileTest, RefusesAnyFlippedBitOfItsHeader) {
  const std::string right = Written();
  for (std::size_t bit = 0; bit < 8 * kHeaderBytes; ++bit) {
    std::string changed = right;
    changed[bit / 8] = static_cast<char>(changed[bit / 8] ^ (1 << (bit % 8)));
    Put(changed);
    EXPECT_NE(Refusal(), "") << "byte " << bit / 8 << ", bit " << bit % 8;
  }
}

TEST_F(PackedFileTest, RefusesAFlippedBitAnywhereInItsMatrices) {
  const std::string right = Written();
  for (std::size_t at = kHeaderBytes; at < right.size(); at += 29) {
    std::string changed = right;
    changed[at] = static_cast<char>(changed[at] ^ (1 << (at % 8)));
    Put(changed);
    EXPECT_THAT(Refusal(), HasSubstr("damaged: its content")) << at;
  }
}

TEST_F(PackedFileTest, RefusesAnyOtherLength) {
  const std::string right = Written();
  std::vector<std::size_t> lengths = {0, 1, 8, kHeaderBytes - 1, kHeaderBytes, kHeaderBytes + 1, right.size() - 1};
  std::size_t end = kHeaderBytes;
  for (const PackedMatrix& matrix : Matrices()) {
    end += matrix.bytes();
    for (const std::size_t length : {end - 1, end, end + 1})
      if (length < right.size()) lengths.push_back(length);
  }
  for (const std::size_t length : lengths) {
    Put(right.substr(0, length));
    EXPECT_THAT(Refusal(), HasSubstr("is it truncated?")) << length;
  }
  Put(right + "x");
  EXPECT_THAT(Refusal(), HasSubstr("is it truncated?"));
}

TEST_F(PackedFileTest, SurvivesAnyHeader) {
  const std::string right = Written();
  std::mt19937_64 random(5);
  for (int round = 0; round < 600; ++round) {
    std::string changed = right;
    // One of its numbers, of four or eight bytes, with extreme values among them.
    const std::size_t width = random() % 2 == 0 ? 4 : 8;
    const std::size_t at = 8 + random() % ((kHeaderBytes - 8) / width) * width;
    const std::uint64_t values[] = {0, 1, ~std::uint64_t{0}, std::uint64_t{1} << 63, right.size(), random()};
    const std::uint64_t value = values[random() % std::size(values)];
    std::memcpy(changed.data() + at, &value, width);
    if (random() % 4 == 0) changed.resize(random() % (2 * right.size()));
    if (changed == right) continue;
    Put(changed);
    EXPECT_NE(Refusal(), "") << "round " << round;
  }
}

TEST_F(PackedFileTest, RefusesWhatIsNoFile) {
  std::filesystem::create_directories(path_);
  EXPECT_EQ(Refusal(), "is not a file");
  std::filesystem::remove(path_);
  ASSERT_EQ(mkfifo(path_.c_str(), 0600), 0);
  EXPECT_EQ(Refusal(), "is not a file");
}

TEST_F(PackedFileTest, ReplacesWhatIsThereAndLeavesNothingBeside) {
  Written();
  const std::vector<PackedMatrix> others = Matrices(100);
  ASSERT_TRUE(*Write(others));
  EXPECT_EQ(BytesOf((*Read())[0]), BytesOf(others[0]));
  EXPECT_THAT(Names(), ElementsAre(path_.filename().string()));
}

TEST_F(PackedFileTest, TakesOverWhatAWriterThatDiedLeft) {
  const std::string right = Written();
  std::filesystem::remove(path_);
  std::ofstream(draft_, std::ios::binary) << right << "more than the whole of it";
  ASSERT_TRUE(*Write(Matrices()));
  EXPECT_EQ(ReadBytes(path_), right);
  EXPECT_THAT(Names(), ElementsAre(path_.filename().string()));
}

TEST_F(PackedFileTest, LeavesAFileToItsOtherWriter) {
  std::filesystem::create_directories(path_.parent_path());
  const int other = open(draft_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  ASSERT_EQ(flock(other, LOCK_EX), 0);
  const Result<bool> written = Write(Matrices());
  ASSERT_TRUE(written.ok()) << written.status().message();
  EXPECT_FALSE(*written);
  EXPECT_TRUE(std::filesystem::exists(draft_)) << "it is not ours";
  EXPECT_FALSE(std::filesystem::exists(path_));
  close(other);
  EXPECT_TRUE(*Write(Matrices()));
}

TEST_F(PackedFileTest, DoesNotWriteWhereALinkPoints) {
  std::filesystem::create_directories(path_.parent_path());
  folder_.Write("precious", "unchanged");
  std::filesystem::create_symlink(folder_.path() / "precious", draft_);
  EXPECT_EQ(Write(Matrices()).status().code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(ReadBytes(folder_.path() / "precious"), "unchanged");
}

/// Readers and writers of several threads and processes: whoever finds a file finds all of one of them.
TEST_F(PackedFileTest, ManyWritersAndReadersDoNotMeet) {
  const std::vector<PackedMatrix> one = Matrices(1);
  const std::vector<PackedMatrix> two = Matrices(50);
  ASSERT_TRUE(*Write(one));
  const auto write = [&] {
    for (int i = 0; i < 100; ++i)
      if (!Write(i % 2 == 0 ? one : two).ok()) return false;
    return true;
  };
  std::vector<pid_t> children;
  for (int i = 0; i < 2; ++i) {
    const pid_t child = fork();
    if (child == 0) _exit(write() ? 0 : 1);
    children.push_back(child);
  }
  std::atomic<int> failures = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) threads.emplace_back([&] { failures += write() ? 0 : 1; });
  const std::string first = BytesOf(one[0]) + BytesOf(one[1]);
  const std::string second = BytesOf(two[0]) + BytesOf(two[1]);
  for (int i = 0; i < 300; ++i) {
    const Result<std::vector<PackedMatrix>> read = Read();
    ASSERT_TRUE(read.ok()) << read.status().message();
    EXPECT_THAT(BytesOf((*read)[0]) + BytesOf((*read)[1]), AnyOf(first, second));
  }
  for (std::thread& thread : threads) thread.join();
  for (const pid_t child : children) {
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  }
  EXPECT_EQ(failures, 0);
  EXPECT_THAT(Names(), ElementsAre(path_.filename().string()));
}

TEST_F(PackedFileTest, SaysWhyItCannotBeWritten) {
  std::filesystem::create_directories(path_.parent_path().parent_path());
  std::ofstream(path_.parent_path()) << "a file where a folder should be";
  const Status status = Write(Matrices()).status();
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(), AnyOf(HasSubstr("Not a directory"), HasSubstr("File exists")));
}

TEST_F(PackedFileTest, KeepsToTheLimitOfFileSizes) {
  const std::string right = Written();
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  rlimit limit = before;
  limit.rlim_cur = right.size() - 1;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  const Status refused = Write(Matrices(9)).status();
  limit.rlim_cur = right.size();
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  const Status fits = Write(Matrices()).status();
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_EQ(refused.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(refused.message(), HasSubstr("ulimit -f"));
  EXPECT_TRUE(fits.ok()) << fits.message();
  EXPECT_EQ(ReadBytes(path_), right) << "the one before stays";
  EXPECT_THAT(Names(), ElementsAre(path_.filename().string()));
}

/// What a process of its own says that sees `folder` as an empty disk of one page; nothing where that is not allowed.
std::optional<std::string> OnATinyDisk(const std::filesystem::path& folder, const std::function<std::string()>& run) {
  int ends[2];
  if (pipe(ends) != 0) return std::nullopt;
  const pid_t child = fork();
  if (child == 0) {
    const bool alone = unshare(CLONE_NEWNS) == 0 || unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0;
    if (!alone || mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        mount("tiny", folder.c_str(), "tmpfs", 0, "size=4096") != 0)
      _exit(1);
    const std::string said = run();
    _exit(write(ends[1], said.data(), said.size()) == static_cast<ssize_t>(said.size()) ? 0 : 2);
  }
  close(ends[1]);
  std::string said;
  char buffer[4096];
  for (ssize_t got = 0; (got = read(ends[0], buffer, sizeof(buffer))) > 0;)
    said.append(buffer, static_cast<std::size_t>(got));
  close(ends[0]);
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 1) return std::nullopt;
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  return said;
}

TEST_F(PackedFileTest, SaysThatTheDiskIsFullAndLeavesNothingThere) {
  const std::optional<std::string> said = OnATinyDisk(folder_.path(), [&] {
    const Result<bool> written = Write(Matrices());
    return Cat(Name(written.status().code()), " ", written.status().message(), ", ", Names().size(), " files");
  });
  if (!said) GTEST_SKIP() << "no right to mount a file system here";
  EXPECT_EQ(*said, Cat(Name(StatusCode::kResourceExhausted), " No space left on device, 0 files"));
}

// What lies in files outlives a program. Whoever changes these bits raises kPackingVersion with them.
TEST(PackingVersion, IsOfThesePackedBits) {
  const auto hash = [](WeightType type) {
    std::uint32_t state = 1;
    const PackedMatrix matrix = PackedMatrix::Pack(83, 331, type, [&](std::size_t, MatrixView<float> block) {
      for (std::size_t i = 0; i < block.rows(); ++i) {
        for (std::size_t j = 0; j < block.cols(); ++j) {
          state = state * 1664525 + 1013904223;
          block(i, j) = static_cast<float>(state >> 8) * 0x1p-23f - 1.0f;
        }
      }
    });
    ContentHash content;
    content.AddBytes(matrix.storage());
    return Hex(content.value());
  };
  EXPECT_EQ(kPackingVersion, 1u);
  EXPECT_EQ(hash(WeightType::kInt8), "a6dc88c0735c661b");
  EXPECT_EQ(hash(WeightType::kInt4), "eaf2abfcbf40e8bb");
}

}  // namespace
}  // namespace moe
