#include "model/dispatch_format.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "core/aligned_buffer.h"
#include "kernels/weight_type.h"
#include "tests/kernels/kernel_cases.h"

namespace moe {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using Buffer = AlignedBuffer<std::byte>;  // as transports give them

// Offsets in a request's header, 40 bytes of little-endian words: docs/wire-format.md.
constexpr std::size_t kVersion = 0;
constexpr std::size_t kKind = 4;
constexpr std::size_t kRows = 12;
constexpr std::size_t kPairs = 16;
constexpr std::size_t kHidden = 20;
constexpr std::size_t kType = 24;
constexpr std::size_t kFirstPair = 40;
// And of a reply's, 24 bytes.
constexpr std::size_t kReplyCode = 4;
constexpr std::size_t kReplyPairs = 8;
constexpr std::size_t kReplyTextBytes = 12;

void Put(std::span<std::byte> at, std::size_t offset, std::uint32_t word) {
  std::memcpy(at.data() + offset, &word, sizeof(word));
}

std::uint32_t Get(std::span<const std::byte> at, std::size_t offset) {
  std::uint32_t word = 0;
  std::memcpy(&word, at.data() + offset, sizeof(word));
  return word;
}

/// An aligned copy: what arrives.
Buffer CopyOf(std::span<const std::byte> bytes) {
  Buffer buffer(bytes.size());
  if (!bytes.empty()) std::memcpy(buffer.data(), bytes.data(), bytes.size());
  return buffer;
}

constexpr DispatchShape kShape{.layer = 3, .generation = 0x1122334455, .rows = 3, .pairs = 5, .hidden = 21};

DispatchShape WithType(ExchangeType type) {
  DispatchShape shape = kShape;
  shape.type = type;
  return shape;
}

/// A dispatch of random rows in which pair i asks for row i % rows in slot i * 2.
Buffer Dispatch(const DispatchShape& shape) {
  Buffer buffer(DispatchBytes(shape));
  const DispatchWriter writer(buffer.span(), shape);
  for (std::uint32_t i = 0; i < shape.pairs; ++i)
    writer.pairs()[i] = {.row = i % shape.rows, .slot = 2 * i, .weight = 0.25f * static_cast<float>(i)};
  for (std::uint32_t row = 0; row < shape.rows; ++row) writer.SetRow(row, RandomValues(shape.hidden, row));
  EXPECT_EQ(writer.bytes(), buffer.size());
  return buffer;
}

Buffer Reply(const DispatchShape& shape, std::uint64_t busy_ns = 77) {
  Buffer buffer(DispatchReplyBytes(shape));
  const DispatchReplyWriter writer(buffer.span(), shape);
  for (std::uint32_t pair = 0; pair < shape.pairs; ++pair) writer.SetRow(pair, RandomValues(shape.hidden, 100 + pair));
  EXPECT_EQ(writer.Finish(busy_ns), buffer.size());
  return buffer;
}

/// As bf16 carries them: rounded to nearest, ties to even.
std::vector<float> Rounded(std::vector<float> values, ExchangeType type) {
  if (type == ExchangeType::kBf16)
    for (float& value : values) value = Bf16ToF32(F32ToBf16(value));
  return values;
}

class Exchanged : public ::testing::TestWithParam<ExchangeType> {};
INSTANTIATE_TEST_SUITE_P(Types, Exchanged, ::testing::Values(ExchangeType::kF32, ExchangeType::kBf16),
                         [](const auto& test) { return std::string(Name(test.param)); });

TEST_P(Exchanged, ADispatchComesBackAsItWasWritten) {
  const DispatchShape shape = WithType(GetParam());
  const Buffer buffer = Dispatch(shape);
  EXPECT_EQ(*ParseKind(buffer.span()), MessageKind::kDispatch);
  const Result<DispatchReader> reader = DispatchReader::Parse(buffer.span());
  ASSERT_TRUE(reader.ok()) << reader.status().message();
  EXPECT_EQ(reader->shape().layer, shape.layer);
  EXPECT_EQ(reader->shape().generation, shape.generation);
  EXPECT_EQ(reader->shape().rows, shape.rows);
  EXPECT_EQ(reader->shape().pairs, shape.pairs);
  EXPECT_EQ(reader->shape().hidden, shape.hidden);
  EXPECT_EQ(reader->shape().type, shape.type);
  ASSERT_EQ(reader->pairs().size(), shape.pairs);
  for (std::uint32_t i = 0; i < shape.pairs; ++i) {
    EXPECT_EQ(reader->pairs()[i].row, i % shape.rows);
    EXPECT_EQ(reader->pairs()[i].slot, 2 * i);
    EXPECT_EQ(reader->pairs()[i].weight, 0.25f * static_cast<float>(i));
  }
  std::vector<float> row(shape.hidden);
  for (std::uint32_t i = 0; i < shape.rows; ++i) {
    reader->GetRow(i, row);
    EXPECT_TRUE(SameBits(row, Rounded(RandomValues(shape.hidden, i), shape.type))) << "row " << i;
  }
}

TEST_P(Exchanged, AReplyComesBackAsItWasWritten) {
  const DispatchShape shape = WithType(GetParam());
  const Buffer buffer = Reply(shape, 123'456'789'012);
  const Result<DispatchReplyReader> reader = DispatchReplyReader::Parse(buffer.span(), shape);
  ASSERT_TRUE(reader.ok()) << reader.status().message();
  EXPECT_EQ(reader->busy_ns(), 123'456'789'012u);
  std::vector<float> row(shape.hidden);
  for (std::uint32_t pair = 0; pair < shape.pairs; ++pair) {
    reader->GetRow(pair, row);
    EXPECT_TRUE(SameBits(row, Rounded(RandomValues(shape.hidden, 100 + pair), shape.type))) << "pair " << pair;
  }
}

TEST_P(Exchanged, SizesAreHeaderPairsAndRowsOnCacheLines) {
  const std::size_t element = GetParam() == ExchangeType::kF32 ? 4 : 2;
  EXPECT_EQ(BytesPerElement(GetParam()), element);
  // 40 + 5 * 12 = 100, up to 128.
  EXPECT_EQ(DispatchBytes(WithType(GetParam())), 128 + 3 * 21 * element);
  EXPECT_EQ(DispatchReplyBytes(WithType(GetParam())), 64 + 5 * 21 * element);
  // 40 + 2 * 12 = 64: no padding.
  EXPECT_EQ(DispatchBytes({.rows = 1, .pairs = 2, .hidden = 8, .type = GetParam()}), 64 + 8 * element);
  EXPECT_EQ(DispatchBytes({.type = GetParam()}), 64u);
}

TEST(DispatchFormat, Bf16RoundsToNearestTiesToEven) {
  const DispatchShape shape{.rows = 1, .pairs = 1, .hidden = 5, .type = ExchangeType::kBf16};
  Buffer buffer(DispatchBytes(shape));
  const DispatchWriter writer(buffer.span(), shape);
  writer.pairs()[0] = {};
  // 8 bits of mantissa: above 1 the step is 2^-7; a tie is half of it.
  writer.SetRow(0, std::vector<float>{1 + 0x1p-8f, 1 + 0x3p-8f, 1 + 0x1.01p-8f, -1 - 0x1p-8f, 0x1.fffffep127f});
  std::vector<float> row(5);
  DispatchReader::Parse(buffer.span())->GetRow(0, row);
  EXPECT_EQ(row, (std::vector<float>{1, 1 + 0x1p-6f, 1 + 0x1p-7f, -1, std::numeric_limits<float>::infinity()}));
}

TEST(DispatchFormat, AnEmptyDispatchIsOne) {
  const DispatchShape shape{.layer = 1, .generation = 2, .hidden = 16};
  const Buffer buffer = Dispatch(shape);
  const Result<DispatchReader> reader = DispatchReader::Parse(buffer.span());
  ASSERT_TRUE(reader.ok());
  EXPECT_TRUE(reader->pairs().empty());
  EXPECT_TRUE(DispatchReplyReader::Parse(Reply(shape).span(), shape).ok());
}

// Malformed requests.

/// The message of the failure to read `bytes` as a dispatch.
std::string DispatchFailure(std::span<const std::byte> bytes) {
  const Result<DispatchReader> reader = DispatchReader::Parse(bytes);
  EXPECT_FALSE(reader.ok());
  if (reader.ok()) return "";
  EXPECT_EQ(reader.status().code(), StatusCode::kInternal);
  return reader.status().message();
}

TEST_P(Exchanged, ADispatchCutAnywhereIsRefused) {
  const Buffer whole = Dispatch(WithType(GetParam()));
  for (std::size_t bytes = 0; bytes < whole.size(); ++bytes) {
    const Buffer cut = CopyOf(whole.span().first(bytes));
    EXPECT_FALSE(DispatchReader::Parse(cut.span()).ok()) << bytes;
  }
  EXPECT_THAT(DispatchFailure(CopyOf(whole.span().first(39)).span()), HasSubstr("39 bytes"));
  Buffer longer(whole.size() + 1);
  std::memcpy(longer.data(), whole.data(), whole.size());
  EXPECT_THAT(DispatchFailure(longer.span()), HasSubstr(Cat(longer.size())));
}

TEST(DispatchFormat, AnotherVersionIsNamed) {
  Buffer buffer = Dispatch(kShape);
  EXPECT_EQ(Get(buffer.span(), kVersion), 1u);
  Put(buffer.span(), kVersion, 9);
  EXPECT_THAT(DispatchFailure(buffer.span()), AllOf(HasSubstr("version 9"), HasSubstr("1 was expected")));
  EXPECT_THAT(ParseKind(buffer.span()).status().message(), HasSubstr("version 9"));
}

TEST(DispatchFormat, AnUnknownKindIsNamed) {
  Buffer buffer = Dispatch(kShape);
  for (const std::uint32_t kind : {0u, 8u, 0xffffffffu}) {
    Put(buffer.span(), kKind, kind);
    const Result<MessageKind> parsed = ParseKind(buffer.span());
    ASSERT_FALSE(parsed.ok());
    EXPECT_THAT(parsed.status().message(), HasSubstr(Cat("kind ", kind)));
  }
  EXPECT_FALSE(ParseKind({}).ok());
  EXPECT_FALSE(ParseKind(buffer.span().first(39)).ok());
}

TEST(DispatchFormat, AnUnknownTypeIsNamed) {
  Buffer buffer = Dispatch(kShape);
  Put(buffer.span(), kType, 2);
  EXPECT_THAT(DispatchFailure(buffer.span()), HasSubstr("type 2"));
}

TEST(DispatchFormat, APairOfARowThatIsNotThereIsNamed) {
  Buffer buffer = Dispatch(kShape);
  Put(buffer.span(), kFirstPair + 4 * sizeof(DispatchPair), 3);
  EXPECT_THAT(DispatchFailure(buffer.span()), AllOf(HasSubstr("3 rows"), HasSubstr("row 3")));
  Put(buffer.span(), kFirstPair + 4 * sizeof(DispatchPair), 0xffffffff);
  EXPECT_THAT(DispatchFailure(buffer.span()), HasSubstr("row 4294967295"));
}

TEST(DispatchFormat, CountsThatDisagreeWithThePayloadAreRefused) {
  for (const std::size_t field : {kRows, kPairs, kHidden}) {
    Buffer buffer = Dispatch(kShape);
    const std::uint32_t right = Get(buffer.span(), field);
    for (const std::uint32_t wrong : {0u, right - 1, right + 1, right + 6, 0x7fffffffu, 0x80000000u, 0xffffffffu}) {
      if (field == kPairs && wrong == right - 1) continue;  // 4 pairs end on the same cache line as 5
      if (field == kPairs && wrong == right + 1) continue;  // 6 too: pad bytes make a pair of row 0
      Put(buffer.span(), field, wrong);
      EXPECT_FALSE(DispatchReader::Parse(buffer.span()).ok()) << "offset " << field << ": " << wrong;
    }
  }
}

TEST(DispatchFormat, CountsWhoseProductOverflowsAreRefused) {
  // 2^31 rows of 2^31 fp32 values take 2^64 bytes, which 64 bits hold as 0.
  Buffer buffer = Dispatch({.hidden = 8});
  ASSERT_EQ(buffer.size(), 64u);
  Put(buffer.span(), kRows, 0x80000000);
  Put(buffer.span(), kHidden, 0x80000000);
  EXPECT_FALSE(DispatchReader::Parse(buffer.span()).ok());
}

// Malformed replies.

/// The failure to read `bytes` as the reply to kShape.
Status ReplyFailure(std::span<const std::byte> bytes) { return DispatchReplyReader::Parse(bytes, kShape).status(); }

TEST(DispatchReply, CutAnywhereIsRefused) {
  const Buffer whole = Reply(kShape);
  for (std::size_t bytes = 0; bytes < whole.size(); ++bytes)
    EXPECT_EQ(ReplyFailure(CopyOf(whole.span().first(bytes)).span()).code(), StatusCode::kInternal) << bytes;
}

TEST(DispatchReply, OfAnotherDispatchIsRefused) {
  for (std::uint32_t pairs : {0u, 4u, 6u}) {
    DispatchShape other = kShape;
    other.pairs = pairs;
    EXPECT_THAT(ReplyFailure(Reply(other).span()).message(), AllOf(HasSubstr(Cat(pairs, " rows")), HasSubstr("5")));
  }
  DispatchShape narrow = kShape;
  narrow.type = ExchangeType::kBf16;
  EXPECT_FALSE(ReplyFailure(Reply(narrow).span()).ok());
  Buffer wrong_count = Reply(kShape);
  Put(wrong_count.span(), kReplyPairs, 4);
  EXPECT_FALSE(ReplyFailure(wrong_count.span()).ok());
}

TEST(DispatchReply, AnUnknownVersionOrStatusIsNamed) {
  Buffer buffer = Reply(kShape);
  Put(buffer.span(), kVersion, 2);
  EXPECT_THAT(ReplyFailure(buffer.span()).message(), HasSubstr("version 2"));
  buffer = Reply(kShape);
  Put(buffer.span(), kReplyCode, static_cast<std::uint32_t>(kLastStatusCode) + 1);
  EXPECT_THAT(ReplyFailure(buffer.span()).message(), HasSubstr("unknown status 10"));
}

TEST(DispatchReply, TextPastTheEndIsRefused) {
  Buffer buffer(64);
  const std::size_t bytes = WriteFailure(buffer.span(), NotFound("gone"));
  Put(buffer.span(), kReplyTextBytes, 5);
  EXPECT_THAT(ReplyFailure(buffer.span().first(bytes)).message(), HasSubstr("announces 5"));
  Put(buffer.span(), kReplyTextBytes, 0xffffffff);
  EXPECT_EQ(ReplyFailure(buffer.span().first(bytes)).code(), StatusCode::kInternal);
}

// Failures and control messages.

TEST(Failures, ArriveWithTheirCodeAndWords) {
  for (const Status& sent : {InvalidArgument("a"), NotFound("tensor x is missing"), ResourceExhausted(""),
                             DeadlineExceeded("c"), Cancelled("d"), Unavailable("e"), Unimplemented("f"),
                             FailedPrecondition("g"), Internal("placement generation 7 is unknown here (3)")}) {
    Buffer buffer(256);
    const auto reply = buffer.span().first(WriteFailure(buffer.span(), sent));
    const Status statuses[] = {ReplyFailure(reply), ParseControlReply(reply), ParseDescription(reply).status()};
    for (const Status& got : statuses) {
      EXPECT_EQ(got.code(), sent.code());
      EXPECT_EQ(got.message(), sent.message());
    }
  }
}

TEST(Failures, AreCutToTheBuffer) {
  Buffer buffer(64);
  const std::size_t bytes = WriteFailure(buffer.span(), Internal(std::string(1000, 'x')));
  EXPECT_EQ(bytes, buffer.size());
  EXPECT_EQ(ParseControlReply(buffer.span()).message(), std::string(64 - 24, 'x'));
}

TEST(FailuresDeathTest, ASuccessIsNone) {
  Buffer buffer(64);
  EXPECT_DEATH((void)WriteFailure(buffer.span(), Status::Ok()), "broken invariant");
}

TEST(Control, RequestsAndRepliesRoundTrip) {
  Buffer buffer(128);
  for (const MessageKind kind : {MessageKind::kDescribe, MessageKind::kShutdown}) {
    const std::size_t bytes = WriteControl(buffer.span(), kind);
    EXPECT_EQ(*ParseKind(buffer.span().first(bytes)), kind);
    EXPECT_FALSE(DispatchReader::Parse(buffer.span().first(bytes)).ok()) << "no dispatch";
  }
  const std::size_t bytes = WriteControlReply(buffer.span());
  EXPECT_TRUE(ParseControlReply(buffer.span().first(bytes)).ok());
}

WorkerDescription Described() {
  return {.host = "node \"7\"",
          .pid = 1'234'567'890'123,
          .device = "cpu",
          .kernel_target = "avx3",
          .fingerprint = "0123456789abcdef",
          .weight_type = "bf16",
          .threads = 12,
          .free_memory_bytes = 250'000'000'000,
          .generation = 3,
          .slots = 1'024,
          .parameters = 46'702'792'704,
          .weight_bytes = 93'405'585'408,
          .metrics_address = "127.0.0.1:9401",
          .control_address = ""};
}

TEST(Description, RoundTrips) {
  const WorkerDescription sent = Described();
  Buffer buffer(kMaxControlBytes);
  const std::size_t bytes = WriteDescription(buffer.span(), sent);
  const Result<WorkerDescription> got = ParseDescription(buffer.span().first(bytes));
  ASSERT_TRUE(got.ok()) << got.status().message();
  EXPECT_EQ(got->host, sent.host);
  EXPECT_EQ(got->pid, sent.pid);
  EXPECT_EQ(got->device, sent.device);
  EXPECT_EQ(got->kernel_target, sent.kernel_target);
  EXPECT_EQ(got->fingerprint, sent.fingerprint);
  EXPECT_EQ(got->weight_type, sent.weight_type);
  EXPECT_EQ(got->protocol, kDispatchProtocol);
  EXPECT_EQ(got->threads, sent.threads);
  EXPECT_EQ(got->free_memory_bytes, sent.free_memory_bytes);
  EXPECT_EQ(got->generation, sent.generation);
  EXPECT_EQ(got->slots, sent.slots);
  EXPECT_EQ(got->parameters, sent.parameters);
  EXPECT_EQ(got->weight_bytes, sent.weight_bytes);
  EXPECT_EQ(got->metrics_address, sent.metrics_address);
  EXPECT_EQ(got->control_address, sent.control_address);
}

TEST(Description, OfAHostWhoseNameIsNoUtf8StillArrives) {
  WorkerDescription sent = Described();
  sent.host = "caf\xe9";
  Buffer buffer(kMaxControlBytes);
  const std::size_t bytes = WriteDescription(buffer.span(), sent);
  const Result<WorkerDescription> got = ParseDescription(buffer.span().first(bytes));
  ASSERT_TRUE(got.ok()) << got.status().message();
  EXPECT_THAT(got->host, HasSubstr("caf"));
}

/// A reply that carries `text` where a description belongs.
Result<WorkerDescription> ParseText(const std::string& text) {
  Buffer buffer(1024);
  const std::size_t header = WriteControlReply(buffer.span());
  std::memcpy(buffer.data() + header, text.data(), text.size());
  Put(buffer.span(), kReplyTextBytes, static_cast<std::uint32_t>(text.size()));
  return ParseDescription(buffer.span().first(header + text.size()));
}

TEST(Description, ThatIsNoneIsRefused) {
  for (const std::string text : {"", "{", "[]", "3", "null", "{}", R"({"host": 5})", R"({"host": "a", "pid": "b"})"})
    EXPECT_EQ(ParseText(text).status().code(), StatusCode::kInternal) << text;
}

WorkerAssignment Assigned(std::size_t layers, int slots) {
  WorkerAssignment a{.worker = 4'000'000'000,
                     .workers = 4'000'000'001,
                     .generation = ~std::uint64_t{0},
                     .fingerprint = std::string(64, 'f'),
                     .weight_type = "bf16",
                     .max_pairs = ~std::uint64_t{0}};
  for (std::size_t i = 0; i < layers; ++i) {
    a.layers.push_back({.layer = 2'000'000'000 + static_cast<int>(i), .slots = {}});
    for (int s = 0; s < slots; ++s) a.layers.back().slots.push_back(2'000'000'000 + s);
  }
  return a;
}

TEST(Assignment, RoundTripsWithinItsBytes) {
  for (const std::size_t layers : {std::size_t{0}, std::size_t{1}, std::size_t{60}}) {
    for (const int slots : {0, 1, 256}) {
      const WorkerAssignment sent = Assigned(layers, slots);
      Buffer buffer(MaxAssignmentBytes(layers, layers * static_cast<std::size_t>(slots)));
      const Result<std::size_t> bytes = WriteAssignment(buffer.span(), sent);
      ASSERT_TRUE(bytes.ok()) << bytes.status().message();
      EXPECT_EQ(*ParseKind(buffer.span().first(*bytes)), MessageKind::kAssign);
      const Result<WorkerAssignment> got = ParseAssignment(buffer.span().first(*bytes));
      ASSERT_TRUE(got.ok()) << got.status().message();
      EXPECT_EQ(*got, sent);
    }
  }
}

TEST(Assignment, ThatDoesNotFitIsRefused) {
  Buffer buffer(100);
  EXPECT_EQ(WriteAssignment(buffer.span(), Assigned(3, 3)).status().code(), StatusCode::kResourceExhausted);
}

TEST(Assignment, CorruptOnesAreRefusedOrWhole) {
  Buffer valid(4096);
  const std::size_t bytes = *WriteAssignment(valid.span(), Assigned(3, 3));
  std::mt19937 random(13);
  int read = 0;
  for (int i = 0; i < 20'000; ++i) {
    Buffer corrupt(random() % 8 == 0 ? random() % bytes : bytes);
    std::copy_n(valid.span().begin(), corrupt.size(), corrupt.span().begin());
    for (std::uint32_t changes = random() % 4; corrupt.size() > 0 && changes > 0; --changes)
      corrupt[random() % corrupt.size()] = static_cast<std::byte>(random());
    read += ParseAssignment(corrupt.span()).ok() ? 1 : 0;
  }
  EXPECT_GT(read, 1000);
  EXPECT_LT(read, 20'000);
}

// Whatever arrives, reading it fails or gives rows that lie inside the payload. Under ASan a byte outside is an error.

/// Some bytes changed, among them header words by the values that break arithmetic; sometimes cut or lengthened.
Buffer Corrupt(std::span<const std::byte> valid, std::mt19937& random) {
  std::size_t bytes = valid.size();
  if (random() % 8 == 0) bytes = random() % (2 * valid.size());
  Buffer corrupt(bytes);
  std::copy_n(valid.begin(), std::min(bytes, valid.size()), corrupt.span().begin());
  constexpr std::uint32_t kNasty[] = {0, 1, 2, 4, 20, 0x7fffffff, 0x80000000, 0xffffffff, 0x40000000};
  for (std::uint32_t changes = random() % 4; bytes >= 4 && changes > 0; --changes) {
    if (random() % 2 == 0) {
      corrupt[random() % bytes] = static_cast<std::byte>(random());
    } else {
      Put(corrupt.span(), random() % (std::min<std::size_t>(bytes, 112) / 4) * 4, kNasty[random() % std::size(kNasty)]);
    }
  }
  return corrupt;
}

TEST_P(Exchanged, CorruptRequestsNeverReadPastThePayload) {
  const Buffer valid = Dispatch(WithType(GetParam()));
  std::mt19937 random(11);
  int read = 0;
  for (int i = 0; i < 200'000; ++i) {
    const Buffer corrupt = Corrupt(valid.span(), random);
    (void)ParseKind(corrupt.span());
    const Result<DispatchReader> reader = DispatchReader::Parse(corrupt.span());
    if (!reader.ok()) continue;
    ++read;
    const DispatchShape& shape = reader->shape();
    const std::size_t row_bytes = shape.hidden * BytesPerElement(shape.type);  // at most 2^34
    ASSERT_TRUE(row_bytes == 0 || shape.rows <= corrupt.size() / row_bytes);
    std::vector<float> row(shape.hidden + 1);  // a width of 0 is a right one here, and a worker's to refuse
    for (const DispatchPair& pair : reader->pairs()) reader->GetRow(pair.row, std::span(row).first(shape.hidden));
  }
  EXPECT_GT(read, 1000) << "most corruptions of rows are no errors";
  EXPECT_LT(read, 190'000);
}

TEST_P(Exchanged, CorruptRepliesNeverReadPastThePayload) {
  const DispatchShape shape = WithType(GetParam());
  Buffer failure(128);
  const std::size_t failure_bytes = WriteFailure(failure.span(), Internal("a failure with some words"));
  Buffer description(1024);
  const std::size_t description_bytes = WriteDescription(description.span(), Described());
  const Buffer rows = Reply(shape);
  const std::span<const std::byte> valid[] = {rows.span(), failure.span().first(failure_bytes),
                                              description.span().first(description_bytes)};
  std::mt19937 random(12);
  std::vector<float> row(shape.hidden);
  int read = 0;
  for (int i = 0; i < 60'000; ++i) {
    const Buffer corrupt = Corrupt(valid[i % 3], random);
    (void)ParseControlReply(corrupt.span());
    (void)ParseDescription(corrupt.span());
    const Result<DispatchReplyReader> reader = DispatchReplyReader::Parse(corrupt.span(), shape);
    if (!reader.ok()) continue;
    ++read;
    for (std::uint32_t pair = 0; pair < shape.pairs; ++pair) reader->GetRow(pair, row);
  }
  EXPECT_GT(read, 1000);
}

}  // namespace
}  // namespace moe
