#include "model/migration_format.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "core/aligned_buffer.h"
#include "model/mlp_checksum.h"
#include "tests/kernels/kernel_cases.h"

namespace moe {
namespace {

using testing::HasSubstr;
using Buffer = AlignedBuffer<std::byte>;

WorkerPreparation Prepared(std::size_t layers, int slots) {
  WorkerPreparation p{.generation = ~std::uint64_t{0}, .from = 3, .bytes_per_s = ~std::uint64_t{0}};
  for (std::size_t i = 0; i < layers; ++i) {
    const int layer = 2'000'000'000 + static_cast<int>(i);
    p.layers.push_back({.layer = layer, .slots = {}});
    p.checks.push_back({.layer = layer, .experts = {}});
    for (int s = 0; s < slots; ++s) {
      p.layers.back().slots.push_back(2'000'000'000 + s);
      p.checks.back().experts.push_back(2'000'000'000 + s);
      p.checks.back().experts.push_back(2'000'001'000 + s);  // of the generation before
    }
  }
  return p;
}

TEST(Preparation, RoundTripsWithinItsBytes) {
  for (const std::size_t layers : {std::size_t{0}, std::size_t{1}, std::size_t{60}}) {
    for (const int slots : {0, 1, 256}) {
      const WorkerPreparation sent = Prepared(layers, slots);
      Buffer buffer(MaxPreparationBytes(layers, layers * static_cast<std::size_t>(slots)));
      const Result<std::size_t> bytes = WritePreparation(buffer.span(), sent);
      ASSERT_TRUE(bytes.ok()) << bytes.status().message();
      EXPECT_EQ(*ParseKind(buffer.span().first(*bytes)), MessageKind::kPrepare);
      const Result<WorkerPreparation> got = ParsePreparation(buffer.span().first(*bytes));
      ASSERT_TRUE(got.ok()) << got.status().message();
      EXPECT_EQ(*got, sent);
    }
  }
}

TEST(Preparation, ThatDoesNotFitIsRefused) {
  Buffer buffer(100);
  const Status status = WritePreparation(buffer.span(), Prepared(3, 3)).status();
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(), HasSubstr("a preparation of"));
}

TEST(PreparationQuery, RoundTripsAndIsRefusedWithAnotherLength) {
  Buffer buffer(64);
  const std::size_t bytes =
      WritePreparationQuery(buffer.span(), {.generation = 1'234'567'890'123, .first_checksum = 77});
  EXPECT_EQ(*ParseKind(buffer.span().first(bytes)), MessageKind::kPrepared);
  const Result<PreparationQuery> got = ParsePreparationQuery(buffer.span().first(bytes));
  ASSERT_TRUE(got.ok());
  EXPECT_EQ(got->generation, 1'234'567'890'123u);
  EXPECT_EQ(got->first_checksum, 77u);
  for (std::size_t length = 0; length < buffer.size(); ++length)
    EXPECT_EQ(ParsePreparationQuery(buffer.span().first(length)).ok(), length == bytes) << length;
}

PreparationStatus Told() {
  return {.state = PreparationState::kReady,
          .loaded_experts = 7,
          .loaded_bytes = 93'405'585'408,
          .checksums = {0, ~std::uint64_t{0}, 12'345}};
}

TEST(PreparationStatus, RoundTrips) {
  Buffer buffer(kMaxControlBytes);
  PreparationStatus sent = Told();
  Result<PreparationStatus> got =
      ParsePreparationStatus(buffer.span().first(WritePreparationStatus(buffer.span(), sent)));
  ASSERT_TRUE(got.ok()) << got.status().message();
  EXPECT_EQ(got->state, sent.state);
  EXPECT_TRUE(got->failure.ok());
  EXPECT_EQ(got->loaded_experts, sent.loaded_experts);
  EXPECT_EQ(got->loaded_bytes, sent.loaded_bytes);
  EXPECT_EQ(got->checksums, sent.checksums);

  sent = {.state = PreparationState::kFailed, .failure = NotFound("caf\xe9 is gone")};
  got = ParsePreparationStatus(buffer.span().first(WritePreparationStatus(buffer.span(), sent)));
  ASSERT_TRUE(got.ok()) << got.status().message();
  EXPECT_EQ(got->state, PreparationState::kFailed);
  EXPECT_EQ(got->failure.code(), StatusCode::kNotFound);
  EXPECT_THAT(got->failure.message(), HasSubstr("is gone"));
}

TEST(PreparationStatus, AsManyChecksumsAsOneMayHaveFit) {
  PreparationStatus sent = Told();
  sent.checksums.assign(kMostChecksums, ~std::uint64_t{0});
  Buffer buffer(kMaxControlBytes);
  const Result<PreparationStatus> got =
      ParsePreparationStatus(buffer.span().first(WritePreparationStatus(buffer.span(), sent)));
  ASSERT_TRUE(got.ok()) << got.status().message();
  EXPECT_EQ(got->checksums, sent.checksums);
}

TEST(PreparationStatus, ThatContradictsItselfIsRefused) {
  const auto parse = [](const std::string& state, int code) {
    Buffer buffer(1024);
    return ParsePreparationStatus(buffer.span().first(WriteTextReply(
        buffer.span(), Cat(R"({"state": ")", state, R"(", "code": )", code,
                           R"(, "failure": "x", "loaded_experts": 1, "loaded_bytes": 1, "checksums": []})"))));
  };
  EXPECT_TRUE(parse("ready", 0).ok());
  EXPECT_TRUE(parse("failed", 2).ok());
  EXPECT_THAT(parse("fine", 0).status().message(), HasSubstr("unknown state \"fine\""));
  EXPECT_THAT(parse("ready", 3).status().message(), HasSubstr("is ready with the status 3"));
  EXPECT_FALSE(parse("failed", 0).ok());
  EXPECT_THAT(parse("failed", 10).status().message(), HasSubstr("unknown status 10"));
  EXPECT_FALSE(parse("failed", -1).ok());
}

// Whatever arrives, reading it fails or gives something. Under ASan a byte outside is an error.
TEST(MigrationMessages, CorruptOnesAreRefusedOrWhole) {
  std::vector<Buffer> valid;
  for (int i = 0; i < 3; ++i) valid.emplace_back(4096);
  const std::size_t sizes[] = {*WritePreparation(valid[0].span(), Prepared(3, 3)),
                               WritePreparationQuery(valid[1].span(), {.generation = 3, .first_checksum = 4}),
                               WritePreparationStatus(valid[2].span(), Told())};
  std::mt19937 random(13);
  int read = 0;
  for (std::size_t i = 0; i < 30'000; ++i) {
    const std::size_t of = i % 3;
    Buffer corrupt(random() % 8 == 0 ? random() % sizes[of] : sizes[of]);
    std::copy_n(valid[of].span().begin(), corrupt.size(), corrupt.span().begin());
    for (std::uint32_t changes = random() % 4; corrupt.size() > 0 && changes > 0; --changes)
      corrupt[random() % corrupt.size()] = static_cast<std::byte>(random());
    (void)ParseKind(corrupt.span());
    (void)ParseGeneration(corrupt.span());
    read += ParsePreparation(corrupt.span()).ok() ? 1 : 0;
    read += ParsePreparationQuery(corrupt.span()).ok() ? 1 : 0;
    read += ParsePreparationStatus(corrupt.span()).ok() ? 1 : 0;
  }
  EXPECT_GT(read, 3000);
  EXPECT_LT(read, 30'000);
}

TEST(MlpChecksum, SeesEveryByteAndShape) {
  const auto make = [] {
    MlpWeights weights;
    const std::vector<float> values = RandomValues(48 * 32, 1);
    const WeightView view{
        .type = WeightType::kF32, .data = reinterpret_cast<const std::byte*>(values.data()), .rows = 48, .cols = 32};
    weights.up = PackedMatrix::Pack(view, WeightType::kF32);
    weights.down_bias = {1, 2};
    return weights;
  };
  const std::uint64_t sum = Checksum(make());
  EXPECT_EQ(Checksum(make()), sum);
  std::mt19937 random(3);
  for (int i = 0; i < 50; ++i) {
    MlpWeights changed = make();
    changed.up.storage()[random() % changed.up.bytes()] ^= static_cast<std::byte>(1 << random() % 8);
    EXPECT_NE(Checksum(changed), sum);
  }
  MlpWeights moved = make();
  std::swap(moved.up, moved.gate);
  EXPECT_NE(Checksum(moved), sum);
  MlpWeights biased = make();
  biased.up_bias = std::exchange(biased.down_bias, {});
  EXPECT_NE(Checksum(biased), sum);
}

}  // namespace
}  // namespace moe
