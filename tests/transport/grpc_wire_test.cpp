// What travels in the gRPC transport's streams, from the other side: written and read by protobuf, opened with wrong
// metadata, and damaged at random, at the worker and at the router.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <moe/v1/worker.grpc.pb.h>

#include <cstring>
#include <map>
#include <random>

#include "tests/transport/grpc_harness.h"
#include "transport/grpc/envelope.h"
#include "transport/grpc/lane_memory.h"
#include "transport/grpc/stream_hello.h"

namespace moe {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr TransportLimits kLimits{.max_request_bytes = 256, .max_reply_bytes = 256, .max_exchanges = 2};
constexpr std::chrono::seconds kDeadline(120);

// A message in pieces.
class Pieces final : public FrameMessage {
 public:
  Pieces(std::string bytes, std::size_t piece_bytes) : bytes_(std::move(bytes)), piece_bytes_(piece_bytes) {
    Restart(bytes_.size());
  }

 protected:
  std::span<const std::byte> NextPiece() override {
    const auto all = std::as_bytes(std::span(bytes_));
    const std::size_t begin = std::exchange(at_, std::min(at_ + piece_bytes_, bytes_.size()));
    return all.subspan(begin, at_ - begin);
  }

 private:
  const std::string bytes_;
  const std::size_t piece_bytes_;
  std::size_t at_ = 0;
};

std::string EnvelopeText(std::size_t bytes) {
  const Envelope envelope(bytes);
  return {reinterpret_cast<const char*>(envelope.bytes().data()), envelope.bytes().size()};
}

TEST(Envelope, IsWhatProtobufWrites) {
  for (const std::size_t bytes : {0u, 1u, 64u, 127u, 128u, 300u, 16383u, 16384u, 70000u, 3u << 20}) {
    v1::Frame frame;
    frame.set_frame(std::string(bytes, 'x'));
    // protobuf leaves out an empty field; a frame is never empty.
    if (bytes > 0) {
      EXPECT_EQ(frame.SerializeAsString().substr(0, EnvelopeText(bytes).size()), EnvelopeText(bytes)) << bytes;
    }
    for (const std::size_t piece : {std::size_t{1}, std::size_t{7}, std::size_t{1} << 30}) {
      if (bytes > 100'000 && piece < 100) continue;
      Pieces message(EnvelopeText(bytes) + frame.frame(), piece);
      const Result<std::size_t> read = message.ReadEnvelope();
      ASSERT_TRUE(read.ok()) << read.status().message();
      EXPECT_EQ(*read, bytes);
      std::string rest(bytes, '\0');
      EXPECT_TRUE(message.Read(std::as_writable_bytes(std::span(rest))));
      EXPECT_EQ(rest, frame.frame());
      std::byte none{};
      EXPECT_FALSE(message.Read({&none, 1}));
    }
  }
}

TEST(Envelope, WhatIsNoneIsRefused) {
  const auto complaint = [](const std::string& message) {
    return Pieces(message, 3).ReadEnvelope().status().message();
  };
  EXPECT_THAT(complaint(""), HasSubstr("empty"));
  EXPECT_THAT(complaint("\x12\x01x"), HasSubstr("byte 18 instead of 10"));
  EXPECT_THAT(complaint("\x0a"), HasSubstr("does not end"));
  EXPECT_THAT(complaint("\x0a\xff\xff"), HasSubstr("does not end"));
  EXPECT_THAT(complaint("\x0a\xff\xff\xff\xff\xff\x01x"), HasSubstr("does not end"));
  EXPECT_THAT(complaint("\x0a\x02x"), HasSubstr("says 2 bytes of a frame, but 1 follow"));
  EXPECT_THAT(complaint("\x0a\x01xy"), HasSubstr("says 1 bytes of a frame, but 2 follow"));
}

TEST(Envelope, RandomBytesAreReadOrRefusedAndNothingElse) {
  std::mt19937_64 random(7);
  for (int i = 0; i < 20'000; ++i) {
    std::string bytes(random() % 12, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random());
    if (!bytes.empty() && random() % 2 == 0) bytes[0] = '\x0a';
    if (bytes.size() > 1 && random() % 2 == 0) bytes[1] = static_cast<char>(bytes.size() - 2);
    Pieces message(bytes, 1 + random() % 4);
    const Result<std::size_t> read = message.ReadEnvelope();
    if (!read.ok()) continue;
    ASSERT_LT(*read, bytes.size());
    std::vector<std::byte> rest(*read);
    EXPECT_TRUE(message.Read(rest));
  }
}

Result<StreamHello> Parse(const std::map<std::string, std::string>& metadata) {
  return ParseHello([&](std::string_view key) -> std::optional<std::string_view> {
    const auto found = metadata.find(std::string(key));
    if (found == metadata.end()) return std::nullopt;
    return found->second;
  });
}

std::map<std::string, std::string> HelloMap() {
  std::map<std::string, std::string> map;
  for (const auto& [key, value] : ToMetadata({.router = 5, .epoch = 1, .limits = kLimits})) map[key] = value;
  return map;
}

TEST(StreamHello, SurvivesTheWire) {
  const Result<StreamHello> read = Parse(HelloMap());
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(read->router, 5u);
  EXPECT_EQ(read->epoch, 1u);
  EXPECT_EQ(read->limits.max_request_bytes, 256u);
  EXPECT_EQ(read->limits.max_exchanges, 2);
  EXPECT_FALSE(read->limits.payload_checksums);
}

TEST(StreamHello, EveryKeyIsNeededAndANumber) {
  for (const auto& [key, value] : HelloMap()) {
    auto without = HelloMap();
    without.erase(key);
    EXPECT_THAT(Parse(without).status().message(), HasSubstr(Cat("without \"", key, "\"")));
    for (const char* wrong : {"", "x", "-1", "1 ", "0x1", "99999999999999999999"}) {
      auto changed = HelloMap();
      changed[key] = wrong;
      EXPECT_THAT(Parse(changed).status().message(), HasSubstr(Cat(key, " \"", wrong, "\"")));
    }
  }
  auto other = HelloMap();
  other["moe-protocol"] = "9";
  EXPECT_EQ(Parse(other).status().message(), "the router speaks protocol 9, this worker 2");
}

// A router made of generated code: what any other program would be.
class ForeignRouter {
 public:
  explicit ForeignRouter(const std::string& address, std::map<std::string, std::string> metadata = HelloMap())
      : stub_(v1::ExpertWorker::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()))) {
    context_.set_deadline(std::chrono::system_clock::now() + kDeadline);
    for (const auto& [key, value] : metadata) context_.AddMetadata(key, value);
    call_ = stub_->Exchange(&context_);
  }
  bool Send(const std::string& bytes) {
    v1::Frame frame;
    frame.set_frame(bytes);
    return call_->Write(frame);
  }
  // Of the worker's metadata, once it has accepted.
  std::string Answer(const std::string& key) {
    call_->WaitForInitialMetadata();
    const auto found = context_.GetServerInitialMetadata().find(key);
    if (found == context_.GetServerInitialMetadata().end()) return "";
    return {found->second.data(), found->second.size()};
  }
  // Empty when the stream has ended.
  std::string Receive() {
    v1::Frame frame;
    return call_->Read(&frame) ? frame.frame() : "";
  }
  grpc::Status End() {
    call_->WritesDone();
    while (!Receive().empty()) {
    }
    return call_->Finish();
  }

 private:
  std::unique_ptr<v1::ExpertWorker::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::Frame, v1::Frame>> call_;
};

std::string EchoFrame(std::uint64_t sequence, const std::string& text) {
  const std::string payload = static_cast<char>(Command::kEcho) + text;
  FrameHeader header{.epoch = 1, .sequence = sequence, .payload_bytes = payload.size()};
  Seal(header);
  return std::string(reinterpret_cast<const char*>(&header), sizeof(header)) + payload;
}

TEST(GrpcWire, AnyProtobufProgramCanBeARouter) {
  GrpcWorkerThread worker({.listen = "127.0.0.1:0", .limits = kLimits});
  ForeignRouter router(worker.address());
  for (std::uint64_t n = 1; n <= 3; ++n) {
    ASSERT_TRUE(router.Send(EchoFrame(n, "hello")));
    EXPECT_EQ(router.Receive().substr(sizeof(FrameHeader) + 1), "hello");
  }
  EXPECT_TRUE(router.End().ok());
}

TEST(GrpcWire, AnyProgramCanShareMemoryWithAWorkerAndSendsNoFrameBesideIt) {
  GrpcWorkerThread worker({.listen = "127.0.0.1:0", .limits = kLimits});
  const LaneMemory memory = Must(LaneMemory::Create(kLimits));
  const SharedBell bell = Must(SharedBell::Create());
  auto metadata = HelloMap();
  metadata["moe-memory"] = MemoryOffer{.lanes = memory.name(), .bell = bell.name()}.ToText();
  ForeignRouter router(worker.address(), metadata);
  const SharedBell theirs = Must(SharedBell::Open(router.Answer("moe-memory")));
  RouterLanes lanes(memory.lanes(), {.limits = kLimits}, Rank(1), theirs.bell());
  for (std::uint64_t n = 1; n <= 3; ++n) {
    std::memset(lanes.request(1).data(), static_cast<int>(Command::kEcho), 5);
    lanes.Send(1, n, 5);
    const Deadline deadline = After(kDeadline);
    while (!Must(lanes.TakeReply(1, n))) ASSERT_LT(Clock::now(), deadline);
    EXPECT_EQ(lanes.reply(1).size(), 5u);
  }
  EXPECT_GE(bell.bell().count(), 3u);
  ASSERT_TRUE(router.Send(EchoFrame(4, "hello")));
  EXPECT_THAT(router.Receive(), HasSubstr("rank 0 sent a frame in its stream, but shares memory"));
  EXPECT_EQ(router.End().error_code(), grpc::StatusCode::INTERNAL);
}

TEST(GrpcWire, AnOfferThatIsNoneOrOutOfReachLeavesFramesInTheStream) {
  GrpcWorkerThread worker({.listen = "127.0.0.1:0", .limits = kLimits});
  const std::string gone = Must(SharedBell::Create()).name();
  const SharedBell bell = Must(SharedBell::Create());
  std::uint64_t epoch = 0;
  for (const std::string& offer : {std::string("x"), std::string("a b"), Cat(gone, " ", gone),
                                   Cat(bell.name(), " ", bell.name()), Cat(bell.name(), " ", gone)}) {
    auto metadata = HelloMap();
    metadata["moe-memory"] = offer;
    metadata["moe-router"] = Cat(100 + ++epoch);
    ForeignRouter router(worker.address(), metadata);
    EXPECT_EQ(router.Answer("moe-memory"), "") << offer;
    ASSERT_TRUE(router.Send(EchoFrame(1, "hello")));
    EXPECT_EQ(router.Receive().substr(sizeof(FrameHeader) + 1), "hello");
  }
}

TEST(GrpcWire, RepliesStillComeToARouterThatSaysNothingMore) {
  const auto server = Must(GrpcWorkerServer::Start({.listen = "127.0.0.1:0", .limits = kLimits}));
  std::jthread router([&] {
    ForeignRouter foreign(server->address());
    EXPECT_TRUE(foreign.Send(EchoFrame(1, "last")));
    EXPECT_TRUE(foreign.End().ok());
    server->Stop();
  });
  const IncomingRequest request = *Must(server->endpoint().Receive(After(kDeadline)));
  EXPECT_FALSE(Must(server->endpoint().Receive(After(std::chrono::milliseconds(20)))).has_value());
  EXPECT_TRUE(server->endpoint().Reply(request, 4).ok());
  EXPECT_EQ(server->endpoint().Receive(After(kDeadline)).status().code(), StatusCode::kUnavailable);
}

TEST(GrpcWire, WrongMetadataIsRefusedInWords) {
  GrpcWorkerThread worker({.listen = "127.0.0.1:0", .limits = kLimits});
  const auto refusal = [&](const std::string& key, const std::string& value) {
    auto metadata = HelloMap();
    metadata[key] = value;
    const grpc::Status status = ForeignRouter(worker.address(), metadata).End();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    return status.error_message();
  };
  EXPECT_THAT(refusal("moe-protocol", "1"), HasSubstr("the router speaks protocol 1, this worker 2"));
  EXPECT_THAT(refusal("moe-epoch", "soon"), HasSubstr("moe-epoch \"soon\""));
  EXPECT_THAT(refusal("moe-max-exchanges", "0"), HasSubstr("max_exchanges is 0"));
  EXPECT_THAT(ForeignRouter(worker.address(), {}).End().error_message(), HasSubstr("without \"moe-protocol\""));
}

TEST(GrpcWire, MoreRequestsInFlightThanAskedForAreAnError) {
  const auto server = Must(GrpcWorkerServer::Start({.listen = "127.0.0.1:0", .limits = kLimits}));
  std::jthread router([&] {
    ForeignRouter foreign(server->address());
    for (std::uint64_t n = 1; n <= 3; ++n) foreign.Send(EchoFrame(n, "x"));
    EXPECT_THAT(foreign.Receive(), HasSubstr("rank 0 has more than 2 requests in flight"));
    EXPECT_EQ(foreign.End().error_code(), grpc::StatusCode::INTERNAL);
    server->Stop();
  });
  for (int n = 0; n < 2; ++n) ASSERT_TRUE(Must(server->endpoint().Receive(After(kDeadline))).has_value());
  EXPECT_EQ(server->endpoint().Receive(After(kDeadline)).status().code(), StatusCode::kInternal);
  EXPECT_EQ(server->endpoint().Receive(After(kDeadline)).status().code(), StatusCode::kUnavailable);
}

// Damages a frame in one of the ways that damage takes.
std::string Mutate(std::string bytes, std::mt19937_64& random) {
  switch (random() % 4) {
    case 0: bytes.resize(random() % (bytes.size() + 1)); break;
    case 1: bytes += std::string(1 + random() % 400, static_cast<char>(random())); break;
    default:
      for (auto n = 1 + random() % 4; n > 0; --n) bytes[random() % bytes.size()] = static_cast<char>(random());
  }
  // As often as not the checksum is mended, so that what lies behind it is reached.
  if (bytes.size() >= sizeof(FrameHeader) && random() % 2 == 0) {
    FrameHeader header;
    std::memcpy(&header, bytes.data(), sizeof(header));
    Seal(header);
    std::memcpy(bytes.data(), &header, sizeof(header));
  }
  return bytes;
}

TEST(GrpcWire, AWorkerOutlivesEverythingThatARouterSends) {
  GrpcWorkerThread worker({.listen = "127.0.0.1:0", .limits = kLimits});
  std::mt19937_64 random(11);
  for (int i = 0; i < 60; ++i) {
    auto metadata = HelloMap();
    metadata["moe-router"] = Cat(100 + i);
    ForeignRouter router(worker.address(), metadata);
    for (std::uint64_t n = 1; n <= 5; ++n) {
      std::string bytes = Mutate(EchoFrame(n, "some text"), random);
      // A frame that got through may tell the scripted worker to quit, to abort on its own checks or to sleep.
      if (bytes.size() > sizeof(FrameHeader)) bytes[sizeof(FrameHeader)] = static_cast<char>(Command::kEcho);
      if (!router.Send(bytes)) break;
    }
    router.End();
  }
  ForeignRouter good(worker.address());
  ASSERT_TRUE(good.Send(EchoFrame(1, "still here")));
  EXPECT_THAT(good.Receive(), HasSubstr("still here"));
}

// A worker of generated code that answers with whatever it is told.
class ForeignWorker final : public v1::ExpertWorker::Service {
 public:
  explicit ForeignWorker(std::function<std::string(std::string)> answer) : answer_(std::move(answer)) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  std::string address() const { return Cat("127.0.0.1:", port_); }

  grpc::Status Exchange(grpc::ServerContext* context, grpc::ServerReaderWriter<v1::Frame, v1::Frame>* stream) override {
    context->AddInitialMetadata("moe-protocol", "2");
    stream->SendInitialMetadata();
    for (v1::Frame frame; stream->Read(&frame);) {
      frame.set_frame(answer_(frame.frame()));
      stream->Write(frame);
    }
    return grpc::Status::OK;
  }

 private:
  const std::function<std::string(std::string)> answer_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

// The request, as its reply.
std::string ReplyTo(std::string request) {
  FrameHeader header;
  std::memcpy(&header, request.data(), sizeof(header));
  header.kind = FrameKind::kReply;
  Seal(header);
  std::memcpy(request.data(), &header, sizeof(header));
  return request;
}

Status Ask(const std::string& address, std::chrono::milliseconds timeout) {
  const auto channels = Must(GrpcChannels::Make({.workers = {address}, .limits = kLimits}));
  const auto transport = Must(MakeGrpcTransport(*channels, {}));
  const auto exchange = transport->MakeExchange();
  MOE_RETURN_IF_ERROR(exchange->Start(std::vector<std::size_t>{20}));
  return exchange->Wait(After(timeout));
}

TEST(GrpcWire, AnyProtobufProgramCanBeAWorker) {
  ForeignWorker worker(ReplyTo);
  EXPECT_TRUE(Ask(worker.address(), kDeadline).ok());
}

TEST(GrpcWire, ARouterOutlivesEverythingThatAWorkerSends) {
  std::mt19937_64 random(13);
  int failures = 0;
  ForeignWorker worker([&](const std::string& request) { return Mutate(ReplyTo(request), random); });
  for (int i = 0; i < 60; ++i) {
    // Stale frames are dropped, and the reply that does not come runs into the deadline.
    const Status status = Ask(worker.address(), std::chrono::milliseconds(100));
    if (status.ok()) continue;  // the payload alone was changed
    ++failures;
    EXPECT_THAT(status.code(), testing::AnyOf(StatusCode::kUnavailable, StatusCode::kDeadlineExceeded));
    EXPECT_THAT(status.message(), HasSubstr("rank 1"));
  }
  EXPECT_GT(failures, 20);
}

TEST(GrpcWire, AServerThatIsNoWorkerIsNamed) {
  GrpcWorkerThread worker({.listen = "127.0.0.1:0", .limits = kLimits});
  v1::ExpertWorker::Service unimplemented;
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&unimplemented);
  const auto server = builder.BuildAndStart();
  const auto channels = Must(GrpcChannels::Make({.workers = {Cat("127.0.0.1:", port)}, .limits = kLimits}));
  const auto made = MakeGrpcTransport(*channels, {});
  EXPECT_EQ(made.status().code(), StatusCode::kUnimplemented);
  EXPECT_THAT(made.status().message(), AllOf(HasSubstr("rank 1"), HasSubstr("refused the stream")));
}

}  // namespace
}  // namespace moe
