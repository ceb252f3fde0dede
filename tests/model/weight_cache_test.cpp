#include "model/weight_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "core/text.h"
#include "model/weights.h"
#include "tests/model/small_model.h"

namespace moe {
namespace {

using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::StartsWith;

/// Everything quantized of a model as it lies in memory, and what is beside it, in one order.
class Image {
 public:
  Image(const Opened& model, const WeightForm& form) : model_(model), form_(form) {
    ThreadPool pool(3);
    const Result<DenseWeights> dense = LoadDenseWeights(model.config, model.checkpoint, form, pool);
    EXPECT_TRUE(dense.ok()) << dense.status().message();
    if (!dense.ok()) return;
    Add(dense->head);
    for (const LayerWeights& layer : dense->layers) {
      Add(layer.attention.projection);
      Add(layer.attention.out);
      Add(layer.attention.query_up);
      for (const PackedMatrix& matrix : layer.attention.key_up) Add(matrix);
      Add(layer.attention.projection_bias);
      if (layer.cross) {
        Add(layer.cross->query);
        Add(layer.cross->key_value);
        Add(layer.cross->out);
      }
      Add(layer.gate);
      Add(layer.mlp);
    }
    for (const int layer : model.config.sparse_layers()) AddExperts(layer);
  }

  bool operator==(const Image& other) const { return bytes_ == other.bytes_; }
  std::size_t matrices() const { return matrices_; }

 private:
  void AddExperts(int layer) {
    const int experts = model_.config.layers[static_cast<std::size_t>(layer)].moe->gate.num_experts;
    for (int expert = 0; expert < experts; ++expert) {
      const Result<MlpWeights> weights = LoadExpertWeights(model_.config, model_.checkpoint, layer, expert, form_);
      EXPECT_TRUE(weights.ok()) << weights.status().message();
      if (weights.ok()) Add(*weights);
    }
  }
  void Add(const MlpWeights& mlp) {
    Add(mlp.gate);
    Add(mlp.up);
    Add(mlp.down);
    Add(mlp.gate_bias);
    Add(mlp.up_bias);
    Add(mlp.down_bias);
  }
  void Add(const PackedMatrix& matrix) {
    bytes_ += Cat(Name(matrix.type()), " ", matrix.rows(), " ", matrix.cols(), " ");
    const std::span bytes = matrix.storage();
    bytes_.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    if (!matrix.empty() && IsQuantized(matrix.type())) ++matrices_;
  }
  void Add(const std::vector<float>& values) {
    bytes_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
  }

  const Opened& model_;
  const WeightForm form_;
  std::string bytes_;
  std::size_t matrices_ = 0;  // quantized
};

std::vector<std::filesystem::path> FilesIn(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files;
  std::error_code absent;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder, absent))
    if (!entry.is_directory()) files.push_back(entry.path());
  std::ranges::sort(files);
  return files;
}

std::vector<std::string> Warnings(const WeightCache& cache) { return cache.report().Warnings(); }

// Families.

struct FamilyCase {
  std::string golden;
  WeightType type;
};

class WeightCacheOfFamily : public ::testing::TestWithParam<FamilyCase> {};

TEST_P(WeightCacheOfFamily, GivesTheBitsOfQuantizingAtLoad) {
  const std::filesystem::path folder = InRepository("tests/goldens/" + GetParam().golden);
  const TemporaryFolder kept;
  const WeightTypes types = GetParam().type;
  const Opened plain = OpenModel(folder);
  const Image expected(plain, types);
  ASSERT_GT(expected.matrices(), 0u);

  const Opened first = OpenModel(folder);
  WeightCache writer(kept.path(), first.checkpoint);
  EXPECT_TRUE(Image(first, {types, &writer}) == expected);
  const std::size_t files = FilesIn(kept.path()).size();
  EXPECT_EQ(writer.report().files_written, files);
  EXPECT_EQ(writer.report().files_read, 0u);
  EXPECT_THAT(Warnings(writer), IsEmpty());

  const Opened second = OpenModel(folder);
  WeightCache reader(kept.path(), second.checkpoint);
  EXPECT_TRUE(Image(second, {types, &reader}) == expected);
  EXPECT_EQ(reader.report().files_read, files);
  EXPECT_EQ(reader.report().bytes_read, writer.report().bytes_written);
  EXPECT_EQ(reader.report().files_written, 0u);
  EXPECT_THAT(Warnings(reader), IsEmpty());
  EXPECT_LT(second.checkpoint.mapped_bytes(), first.checkpoint.mapped_bytes());
}

std::vector<FamilyCase> FamilyCases() {
  std::vector<FamilyCase> cases;
  for (const char* golden : {"mixtral", "qwen2_moe", "olmoe", "deepseek_v2_grouped", "deepseek_v3_fp8", "gpt_oss",
                             "llama4_text", "granitemoe", "switch_base", "qwen3"})
    for (const WeightType type : {WeightType::kInt8, WeightType::kInt4}) cases.push_back({golden, type});
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Goldens, WeightCacheOfFamily, ::testing::ValuesIn(FamilyCases()),
                         [](const auto& test) { return test.param.golden + "_" + std::string(Name(test.param.type)); });

// One model.

/// A copy of a golden whose cache is beside it, to be loaded again and again.
class WeightCacheTest : public ::testing::Test {
 protected:
  WeightCacheTest() { model_.CopyFrom(InRepository("tests/goldens/mixtral")); }

  /// Loads all of it through a new cache.
  WeightCacheReport Load(const WeightTypes& types = WeightType::kInt8) const {
    const Opened opened = OpenModel(model_.path());
    WeightCache cache(folder_, opened.checkpoint);
    EXPECT_TRUE(Image(opened, {types, &cache}) == Image(opened, types)) << "the cache changed the weights";
    return cache.report();
  }
  std::filesystem::path File(const std::string& unit, const std::string& type = "int8") const {
    return folder_ / type / (unit + ".moew");
  }
  /// The first shard of the checkpoint.
  std::filesystem::path Shard() const {
    for (const auto& entry : std::filesystem::directory_iterator(model_.path()))
      if (entry.path().extension() == ".safetensors") return entry.path();
    return {};
  }

  const TemporaryFolder model_;
  const std::filesystem::path folder_ = model_.path() / "moe-cache";
};

constexpr std::uint64_t kFiles = 1 + 3 + 3 * 6;  // head; attention of 3 layers, which have 6 experts each

TEST_F(WeightCacheTest, NamesFilesByWhatTheyHold) {
  EXPECT_EQ(Load().files_written, kFiles);
  for (const char* unit : {"head", "layer-000/attention", "layer-002/attention", "layer-001/expert-005"})
    EXPECT_TRUE(std::filesystem::is_regular_file(File(unit))) << unit;
  EXPECT_THAT(FilesIn(folder_), SizeIs(kFiles));
}

TEST_F(WeightCacheTest, TypesShareWhatTheyHoldAlike) {
  Load(WeightType::kInt8);
  const WeightCacheReport int4 = Load(WeightType::kInt4);
  EXPECT_EQ(int4.files_read, 1u + 3) << "attention and head are int8";
  EXPECT_EQ(int4.files_written, 3u * 6);
  WeightTypes mixed = WeightType::kF32;
  mixed.attention = WeightType::kInt8;
  EXPECT_EQ(Load(mixed).files_read, 1u + 3);
  EXPECT_EQ(Load(mixed).files_written, 0u) << "fp32 is not kept";
}

TEST_F(WeightCacheTest, KeepsNothingThatIsNotQuantized) {
  for (const WeightType type : {WeightType::kF32, WeightType::kBf16, WeightType::kF16}) {
    const WeightCacheReport report = Load(type);
    EXPECT_EQ(report.files_written + report.files_read, 0u);
    EXPECT_EQ(report.Summary(), "");
  }
  EXPECT_FALSE(std::filesystem::exists(folder_));
}

TEST_F(WeightCacheTest, SaysWhatItDid) {
  const WeightCacheReport first = Load();
  EXPECT_EQ(first.Summary(), Cat("weight cache ", folder_.string(), ": wrote ", kFiles, " files, ", first.bytes_written,
                                 " bytes of weights"));
  std::filesystem::remove(File("head"));
  const WeightCacheReport second = Load();
  EXPECT_THAT(second.Summary(), AllOf(HasSubstr(Cat("read ", kFiles - 1, " files, ")), HasSubstr(", wrote 1 files, ")));
  EXPECT_EQ(second.bytes_read + second.bytes_written, first.bytes_written);
}

TEST_F(WeightCacheTest, AWrittenFileOfTheCheckpointMakesAllStale) {
  Load();
  std::string bytes = ReadBytes(Shard());
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  std::ofstream(Shard(), std::ios::binary) << bytes;  // as long as before, with the same header
  const WeightCacheReport changed = Load();
  EXPECT_EQ(changed.files_read, 0u);
  EXPECT_EQ(changed.files_written, kFiles);
  const std::vector<std::string> warnings = changed.Warnings();
  ASSERT_THAT(warnings, SizeIs(1)) << "one line, not one a file";
  EXPECT_THAT(warnings[0], AllOf(StartsWith("weight cache: refused "), HasSubstr(".moew, which is stale: the check"),
                                 EndsWith(Cat("; and ", kFiles - 1, " more"))));
  EXPECT_EQ(Load().files_read, kFiles) << "made anew";
}

TEST_F(WeightCacheTest, ATouchedFileOfTheCheckpointMakesAllStale) {
  Load();
  const auto before = std::filesystem::last_write_time(Shard());
  std::filesystem::last_write_time(Shard(), before + std::chrono::nanoseconds(1));
  EXPECT_EQ(Load().files_read, 0u);
  std::filesystem::last_write_time(Shard(), before);
  EXPECT_EQ(Load().files_read, 0u) << "what was kept is of the other time";
  EXPECT_EQ(Load().files_read, kFiles);
}

TEST_F(WeightCacheTest, WhatDoesNotChangeWeightsDoesNotMakeThemStale) {
  Load();
  std::string config = ReadBytes(model_.path() / "config.json");
  const std::string theta = "\"rope_theta\": 1000000.0";
  const std::size_t at = config.find(theta);
  ASSERT_NE(at, std::string::npos);
  model_.Write("config.json", config.replace(at, theta.size(), "\"rope_theta\": 500000.0"));
  model_.Write("other.txt", "beside");
  EXPECT_EQ(Load().files_read, kFiles);
}

TEST_F(WeightCacheTest, AnotherModelsFileIsStale) {
  Load();
  // One expert in another's place: the same checkpoint, other tensors.
  std::filesystem::copy_file(File("layer-000/expert-001"), File("layer-000/expert-002"),
                             std::filesystem::copy_options::overwrite_existing);
  const WeightCacheReport report = Load();
  EXPECT_EQ(report.files_read, kFiles - 1);
  EXPECT_EQ(report.files_written, 1u);
  ASSERT_THAT(report.Warnings(), SizeIs(1));
  EXPECT_THAT(report.Warnings()[0], HasSubstr("layer-000/expert-002.moew, which is stale: it holds other weights"));
}

TEST_F(WeightCacheTest, DamagedFilesAreNamedAndMadeAnew) {
  Load();
  const std::filesystem::path flipped = File("layer-001/expert-003");
  std::string bytes = ReadBytes(flipped);
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 16);
  std::ofstream(flipped, std::ios::binary) << bytes;
  std::filesystem::resize_file(File("head"), 1000);
  const WeightCacheReport report = Load();
  EXPECT_EQ(report.files_read, kFiles - 2);
  EXPECT_EQ(report.files_written, 2u);
  const std::vector<std::string> warnings = report.Warnings();
  ASSERT_THAT(warnings, SizeIs(2));
  EXPECT_THAT(warnings, ::testing::UnorderedElementsAre(
                            AllOf(HasSubstr(flipped.string()), HasSubstr("is damaged")),
                            AllOf(HasSubstr(File("head").string()), HasSubstr("has 1000 bytes, not"))));
  EXPECT_EQ(Load().files_read, kFiles);
}

TEST_F(WeightCacheTest, ManyReasonsAreAFewLines) {
  Load();
  std::uintmax_t length = 64;
  for (const std::filesystem::path& file : FilesIn(folder_)) std::filesystem::resize_file(file, length++);
  const WeightCacheReport report = Load();
  EXPECT_EQ(report.files_written, kFiles);
  EXPECT_THAT(report.Warnings(), SizeIs(8));
  std::uint64_t refused = 0;
  for (const WeightCacheReport::Refused& of : report.refused) refused += of.files;
  EXPECT_EQ(refused, kFiles);
}

/// The effective user without privileges, for what root may always do.
class AsNobody {
 public:
  AsNobody() : was_(geteuid()) {
    if (was_ == 0) {
      EXPECT_EQ(seteuid(65534), 0);
    }
  }
  ~AsNobody() {
    if (was_ == 0) {
      EXPECT_EQ(seteuid(was_), 0);
    }
  }

 private:
  const uid_t was_;
};

TEST_F(WeightCacheTest, AFolderThatCannotBeWrittenIsOneWarning) {
  ASSERT_EQ(chmod(model_.path().c_str(), 0555), 0);
  WeightCacheReport report;
  {
    const AsNobody nobody;
    report = Load();
  }
  ASSERT_EQ(chmod(model_.path().c_str(), 0755), 0);
  EXPECT_EQ(report.files_written, 0u);
  ASSERT_THAT(report.Warnings(), SizeIs(1));
  EXPECT_THAT(report.Warnings()[0],
              AllOf(StartsWith("weight cache: cannot write " + folder_.string()), EndsWith(": Permission denied")));
  EXPECT_FALSE(std::filesystem::exists(folder_));
}

TEST_F(WeightCacheTest, AFolderThatCannotBeWrittenIsReadAllTheSame) {
  Load();
  ASSERT_EQ(chmod(model_.path().c_str(), 0555), 0);
  WeightCacheReport report;
  {
    const AsNobody nobody;
    report = Load();
  }
  ASSERT_EQ(chmod(model_.path().c_str(), 0755), 0);
  EXPECT_EQ(report.files_read, kFiles);
  EXPECT_THAT(report.Warnings(), IsEmpty());
}

TEST(WeightCache, ARecipeHasTheRowsOfItsParts) {
  const Opened model = OpenModel(InRepository("tests/goldens/mixtral"));
  const std::vector<TensorSpec> expert = ExpertTensors(model.config, 0, 0);
  const MatrixRecipe recipe{.parts = {expert[0], expert[0]}, .type = WeightType::kInt8};
  EXPECT_EQ(recipe.shape().rows, 2 * static_cast<std::size_t>(expert[0].shape[0]));
  EXPECT_EQ(recipe.shape().cols, static_cast<std::size_t>(expert[0].shape[1]));
}

}  // namespace
}  // namespace moe
