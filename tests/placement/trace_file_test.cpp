#include "placement/trace_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>

#include "placement/trace_bytes.h"
#include "placement/trace_loads.h"
#include "tests/temporary_folder.h"

namespace moe {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr int kExperts = 6;
constexpr int kPerToken = 2;

// Three sparse layers of an encoder–decoder model, one of them the encoder's, on two workers.
TraceHeader SomeHeader() {
  TraceHeader header{.model = "a \"model\"\n",
                     .weight_type = "bf16",
                     .routing = "zipf:1",
                     .started = "2031-02-03T04:05:06Z",
                     .num_experts = kExperts,
                     .experts_per_token = kPerToken,
                     .encoder_layers = 1,
                     .layers = {1, 3, 4},
                     .placement = {.generation = 7, .num_experts = kExperts, .workers = 2}};
  for (const int layer : header.layers)
    header.placement.layers.push_back({.layer = layer, .slots = {{0, 2, 4, 5}, {1, 3, 5}}});
  return header;
}

// Whose values follow from `seed`.
struct WrittenStep {
  TraceStepHead head;
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
};

WrittenStep SomeStep(std::uint64_t seed, std::uint32_t encoder_rows, std::uint32_t decoder_rows) {
  std::mt19937_64 random(seed);
  WrittenStep step{.head = {.step = seed,
                            .nanoseconds = seed * 1000,
                            .generation = 7,
                            .encoder_rows = encoder_rows,
                            .decoder_rows = decoder_rows},
                   .ids = {},
                   .weights = {}};
  for (std::size_t row = 0; row < encoder_rows + 2 * decoder_rows; ++row) {
    const auto first = static_cast<std::int32_t>(random() % kExperts);
    step.ids.insert(step.ids.end(), {first, (first + 1) % kExperts});
    step.weights.insert(step.weights.end(), {static_cast<float>(random() % 100) / 100, row % 3 == 0 ? 0.0f : 0.25f});
  }
  return step;
}

std::string Record(const WrittenStep& step) {
  std::string record(kTraceFrameBytes + TraceStepBytes(SomeHeader(), step.head.encoder_rows, step.head.decoder_rows),
                     '\0');
  const auto bytes = std::as_writable_bytes(std::span(record));
  const auto payload = bytes.subspan(kTraceFrameBytes);
  EncodeTraceStepHead(step.head, payload);
  std::size_t row = 0;
  std::size_t at = kTraceStepHeadBytes;
  for (const std::uint32_t rows : {step.head.encoder_rows, step.head.decoder_rows, step.head.decoder_rows}) {
    EncodeTraceLayer({step.ids.data() + row * kPerToken, rows, kPerToken},
                     {step.weights.data() + row * kPerToken, rows, kPerToken},
                     payload.subspan(at, kTracePairBytes * rows * kPerToken));
    row += rows;
    at += kTracePairBytes * rows * kPerToken;
  }
  EncodeTraceStepFrame(payload, bytes);
  return record;
}

const std::vector<WrittenStep>& SomeSteps() {
  static const std::vector<WrittenStep> steps = {SomeStep(1, 0, 3), SomeStep(2, 4, 1), SomeStep(3, 2, 0),
                                                 SomeStep(5, 0, 40)};
  return steps;
}

std::string SomeTrace(TraceEnd end = TraceEnd::kStopped) {
  std::string trace = EncodeTraceHeader(SomeHeader());
  for (const WrittenStep& step : SomeSteps()) trace += Record(step);
  return trace + EncodeTraceEnd(SomeSteps().size(), 9, end);
}

TraceSource Source(const std::string& text) {
  return [&text, at = std::size_t{0}](std::span<std::byte> out) mutable {
    const std::size_t count = std::min(out.size(), text.size() - at);
    if (count > 0) std::memcpy(out.data(), text.data() + at, count);
    at += count;
    return count;
  };
}

struct Outcome {
  Status status;  // of what went wrong
  std::uint64_t steps = 0;
  std::optional<TraceEnd> end;
  std::uint64_t dropped = 0;
};

// Reads everything, and checks every step that is read against what was written.
Outcome Read(const std::string& trace, bool written = true) {
  Result<TraceReader> reader = TraceReader::Open(Source(trace));
  if (!reader.ok()) return {.status = reader.status(), .end = std::nullopt};
  TraceStep step;
  for (;;) {
    const Result<bool> more = reader->Next(step);
    if (!more.ok()) return {.status = more.status(), .steps = reader->steps(), .end = std::nullopt};
    if (!*more) break;
    if (!written) continue;
    const WrittenStep& expected = SomeSteps()[reader->steps() - 1];
    EXPECT_EQ(step.head.step, expected.head.step);
    EXPECT_EQ(step.head.nanoseconds, expected.head.nanoseconds);
    EXPECT_EQ(step.head.generation, expected.head.generation);
    EXPECT_TRUE(std::ranges::equal(step.ids, expected.ids));
    EXPECT_TRUE(std::ranges::equal(step.weights, expected.weights));
    EXPECT_EQ(step.rows(reader->header(), 0), expected.head.encoder_rows);
    EXPECT_EQ(step.rows(reader->header(), 2), expected.head.decoder_rows);
    EXPECT_EQ(step.begin(reader->header(), 2),
              kPerToken * (expected.head.encoder_rows + std::size_t{expected.head.decoder_rows}));
  }
  const Result<bool> again = reader->Next(step);
  EXPECT_TRUE(again.ok() && !*again);
  return {.steps = reader->steps(), .end = reader->end(), .dropped = reader->dropped()};
}

TEST(TraceFile, ChecksumIsThatOfZlib) {
  const std::string text = "123456789";  // the check value of the catalogue of CRC algorithms
  EXPECT_EQ(Crc32(std::as_bytes(std::span(text))), 0xCBF43926u);
  const auto bytes = std::as_bytes(std::span(text));
  EXPECT_EQ(Crc32(bytes.subspan(4), Crc32(bytes.first(4))), 0xCBF43926u);
  EXPECT_EQ(Crc32({}), 0u);
}

TEST(TraceFile, ReadsWhatWasWritten) {
  const std::string trace = SomeTrace(TraceEnd::kLimit);
  const Result<TraceReader> reader = TraceReader::Open(Source(trace));
  ASSERT_TRUE(reader.ok()) << reader.status().message();
  const TraceHeader& header = reader->header();
  EXPECT_EQ(header.model, "a \"model\"\n");
  EXPECT_EQ(header.weight_type, "bf16");
  EXPECT_EQ(header.routing, "zipf:1");
  EXPECT_EQ(header.started, "2031-02-03T04:05:06Z");
  EXPECT_EQ(header.num_experts, kExperts);
  EXPECT_EQ(header.experts_per_token, kPerToken);
  EXPECT_EQ(header.encoder_layers, 1);
  EXPECT_THAT(header.layers, ElementsAre(1, 3, 4));
  EXPECT_EQ(header.placement.generation, 7u);
  EXPECT_EQ(header.placement.workers, 2);
  EXPECT_THAT(header.placement.layers[2].slots, ElementsAre(ElementsAre(0, 2, 4, 5), ElementsAre(1, 3, 5)));
  const Outcome outcome = Read(trace);
  EXPECT_TRUE(outcome.status.ok()) << outcome.status.message();
  EXPECT_EQ(outcome.steps, SomeSteps().size());
  EXPECT_EQ(outcome.end, TraceEnd::kLimit);
  EXPECT_EQ(outcome.dropped, 9u);
}

TEST(TraceFile, IsReadableUpToTheLastWholeStepWhereverItBreaksOff) {
  const std::string trace = SomeTrace();
  std::vector<std::size_t> ends = {EncodeTraceHeader(SomeHeader()).size()};
  for (const WrittenStep& step : SomeSteps()) ends.push_back(ends.back() + Record(step).size());
  for (std::size_t length = 0; length < trace.size(); ++length) {
    const Outcome outcome = Read(trace.substr(0, length));
    if (length < ends.front()) {
      EXPECT_EQ(outcome.status.code(), StatusCode::kInvalidArgument) << length;
      continue;
    }
    const auto whole = std::upper_bound(ends.begin(), ends.end(), length) - ends.begin() - 1;
    EXPECT_TRUE(outcome.status.ok()) << length << ": " << outcome.status.message();
    EXPECT_EQ(outcome.steps, static_cast<std::uint64_t>(whole)) << length;
    EXPECT_FALSE(outcome.end.has_value()) << length;
  }
}

TEST(TraceFile, EveryChangedByteIsNoticed) {
  const std::string trace = SomeTrace();
  for (std::size_t i = 0; i < trace.size(); ++i) {
    std::string changed = trace;
    changed[i] = static_cast<char>(changed[i] ^ 0x10);
    const Outcome outcome = Read(changed);
    // A length that lies may say that the file breaks off.
    EXPECT_TRUE(!outcome.status.ok() || !outcome.end.has_value()) << "byte " << i;
  }
}

TEST(TraceFile, ErrorsNameThePlace) {
  std::string trace = SomeTrace();
  const std::size_t second = EncodeTraceHeader(SomeHeader()).size() + Record(SomeSteps()[0]).size();
  trace[second + kTraceFrameBytes + 40] ^= 1;
  const Outcome outcome = Read(trace);
  EXPECT_EQ(outcome.steps, 1u);
  EXPECT_THAT(outcome.status.message(), HasSubstr(Cat("record at byte ", second, ", after 1 steps")));
  EXPECT_THAT(outcome.status.message(), HasSubstr("checksum"));
  EXPECT_THAT(Read("MOETRACX and more than sixteen").status.message(), HasSubstr("MOETRACE"));
  std::string version = SomeTrace();
  version[8] = 2;
  EXPECT_THAT(Read(version).status.message(), HasSubstr("version 2 of the format is unknown"));
}

// Bytes that have the right checksums and are wrong all the same: whatever they are, the reader ends with an answer.
TEST(TraceFile, AnswersWhateverTheRecordsHold) {
  std::mt19937_64 random(11);
  const std::string header = EncodeTraceHeader(SomeHeader());
  std::size_t refused = 0;
  for (std::uint32_t i = 0; i < 3000; ++i) {
    std::string record = Record(SomeStep(i, i % 3, i % 5));
    const auto bytes = std::as_writable_bytes(std::span(record));
    for (std::uint64_t changes = 1 + random() % 4; changes > 0; --changes)
      record[kTraceFrameBytes + random() % (record.size() - kTraceFrameBytes)] = static_cast<char>(random());
    EncodeTraceStepFrame(bytes.subspan(kTraceFrameBytes), bytes);
    const Outcome outcome = Read(header + record, /*written=*/false);
    if (!outcome.status.ok()) ++refused;
  }
  EXPECT_GT(refused, 100u) << "rows that do not fit, experts that there are not, weights that are none";
}

TEST(TraceFile, AnswersWhateverTheHeaderHolds) {
  std::mt19937_64 random(12);
  const std::string good = EncodeTraceHeader(SomeHeader());
  constexpr std::size_t kPrefix = 16;
  for (int i = 0; i < 3000; ++i) {
    std::string header = good;
    header.resize(header.size() - 4);
    for (std::uint64_t changes = 1 + random() % 3; changes > 0; --changes) {
      const std::size_t at = kPrefix + random() % (header.size() - kPrefix);
      static constexpr std::string_view kLikely = "0123456789[]{},:\"-.e";
      header[at] = random() % 4 == 0 ? static_cast<char>(random()) : kLikely[random() % kLikely.size()];
    }
    const std::uint32_t checksum = Crc32(std::as_bytes(std::span(header)));
    header.append(reinterpret_cast<const char*>(&checksum), sizeof checksum);
    const Outcome outcome = Read(header + Record(SomeSteps()[0]), /*written=*/false);
    if (!outcome.status.ok()) {
      EXPECT_EQ(outcome.status.code(), StatusCode::kInvalidArgument);
    }
  }
}

class TraceLoadsTest : public testing::Test {
 protected:
  void Write(const std::string& text) const { folder_.Write("some.moetrace", text); }

  const TemporaryFolder folder_;
  const std::filesystem::path path_ = folder_.path() / "some.moetrace";
};

TEST_F(TraceLoadsTest, CountsWhatWasSentByLayerAndWindow) {
  Write(SomeTrace());
  const Result<TraceLoads> loads = ReadTraceLoads(path_, 3);
  ASSERT_TRUE(loads.ok()) << loads.status().message();
  EXPECT_EQ(loads->trace.steps, 4u);
  EXPECT_EQ(loads->trace.end, TraceEnd::kStopped);
  LayerLoads expected(3, std::vector<std::uint64_t>(kExperts));
  for (const WrittenStep& step : SomeSteps()) {
    std::size_t pair = 0;
    std::size_t layer = 0;
    for (const std::uint32_t rows : {step.head.encoder_rows, step.head.decoder_rows, step.head.decoder_rows}) {
      for (std::size_t end = pair + rows * kPerToken; pair < end; ++pair)
        if (step.weights[pair] != 0) ++expected[layer][static_cast<std::size_t>(step.ids[pair])];
      ++layer;
    }
  }
  EXPECT_EQ(loads->total, expected);
  ASSERT_EQ(loads->windows.size(), 2u);
  for (std::size_t layer = 0; layer < 3; ++layer)
    for (std::size_t e = 0; e < kExperts; ++e)
      EXPECT_EQ(loads->windows[0][layer][e] + loads->windows[1][layer][e], expected[layer][e]);
}

TEST_F(TraceLoadsTest, SaysWhichFileAndWhetherItBrokeOff) {
  EXPECT_THAT(ReadTraceLoads(path_).status().message(), HasSubstr(path_.string()));
  EXPECT_EQ(ReadTraceLoads(path_).status().code(), StatusCode::kNotFound);
  Write("nonsense");
  EXPECT_THAT(ReadTraceLoads(path_).status().message(), HasSubstr(path_.string()));
  const std::string trace = SomeTrace();
  Write(trace.substr(0, trace.size() - kTraceEndBytes - 1));
  const Result<TraceLoads> loads = ReadTraceLoads(path_);
  ASSERT_TRUE(loads.ok());
  EXPECT_EQ(loads->trace.steps, 3u);
  EXPECT_FALSE(loads->trace.end.has_value());
}

}  // namespace
}  // namespace moe
