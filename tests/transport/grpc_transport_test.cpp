// The transport over gRPC: the contract, and what only it has: workers that come and go, several routers, refusals.
#include "transport/grpc/grpc_transport.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <moe/v1/worker.grpc.pb.h>
#include <unistd.h>

#include <atomic>
#include <cstring>

#include "tests/contract/transport_contract.h"
#include "tests/rpc/throwaway_ca.h"
#include "tests/transport/grpc_harness.h"

namespace moe {
namespace {

using testing::AllOf;
using testing::HasSubstr;

auto OverSockets(GrpcHarness::ListenAt listen, bool shared_memory) {
  return [listen = std::move(listen), shared_memory](const HarnessOptions& options) {
    return std::make_unique<GrpcHarness>(options, listen, shared_memory);
  };
}

MOE_INSTANTIATE_TRANSPORT_CONTRACT(Grpc, TransportContractParam{"tcp", OverSockets(&GrpcHarness::AtAnyPort, false)},
                                   TransportContractParam{"local", OverSockets(&GrpcHarness::AtLocalName, false)},
                                   TransportContractParam{"memory", OverSockets(&GrpcHarness::AtLocalName, true)});

constexpr TransportLimits kLimits{.max_request_bytes = 256, .max_reply_bytes = 256, .max_exchanges = 2};

Deadline Generous() { return After(std::chrono::minutes(2)); }

GrpcWorkerServerOptions WorkerOptions(const std::string& listen = "127.0.0.1:0") {
  return {.listen = listen, .limits = kLimits};
}

std::unique_ptr<GrpcChannels> ChannelsTo(const std::vector<std::string>& addresses,
                                         const TransportLimits& limits = kLimits) {
  return Must(GrpcChannels::Make({.workers = addresses, .limits = limits}));
}

std::vector<std::size_t> Sizes(const Transport& transport, std::size_t bytes) {
  return std::vector<std::size_t>(static_cast<std::size_t>(transport.num_workers()), bytes);
}

Status Echo(Exchange& exchange, const std::vector<std::size_t>& sizes) {
  for (std::size_t w = 0; w < sizes.size(); ++w)
    exchange.request(WorkerId(static_cast<int>(w)))[0] = static_cast<std::byte>(Command::kEcho);
  MOE_RETURN_IF_ERROR(exchange.Start(sizes));
  return exchange.Wait(Generous());
}

// A worker may hear of a router's end later than of the next one's coming.
std::unique_ptr<Transport> MadeOncePlaceIsFree(GrpcChannels& channels) {
  Result<std::unique_ptr<Transport>> made = MakeGrpcTransport(channels, {});
  for (const Deadline deadline = Generous(); !made.ok() && Clock::now() < deadline;)
    made = MakeGrpcTransport(channels, {});
  return Must(std::move(made));
}

Status EchoOnce(Transport& transport) { return Echo(*transport.MakeExchange(), Sizes(transport, 32)); }

TEST(Grpc, TheTransportDescribesItself) {
  GrpcHarness harness({.limits = kLimits, .num_workers = 2});
  EXPECT_EQ(harness.transport().name(), "grpc");
  EXPECT_EQ(harness.transport().memory_space(), MemorySpace::kHost);
  EXPECT_EQ(harness.transport().rank(WorkerId(0)), Rank(1));
}

TEST(Grpc, OneThatIsToldNotToShareMemorySaysSo) {
  GrpcWorkerThread worker(WorkerOptions());
  const auto channels = ChannelsTo({worker.address()});
  const auto transport = Must(MakeGrpcTransport(*channels, {.shared_memory = false}));
  EXPECT_EQ(transport->name(), "grpc_streams");
  EXPECT_FALSE(channels->shares_memory());
  EXPECT_TRUE(EchoOnce(*transport).ok());
}

TEST(Grpc, MemoryIsSharedWithAllAttachedWorkersOrWithNone) {
  GrpcWorkerThread here(WorkerOptions());
  GrpcWorkerServerOptions elsewhere = WorkerOptions();
  elsewhere.shared_memory = false;
  GrpcWorkerThread there(elsewhere);
  const auto channels = ChannelsTo({here.address(), there.address()});
  for (int round = 0; round < 2; ++round) {
    const auto both = Must(MakeGrpcTransport(*channels, {}));
    EXPECT_EQ(both->name(), "grpc");
    EXPECT_FALSE(channels->shares_memory());
    EXPECT_TRUE(EchoOnce(*both).ok());
    const auto one = Must(MakeGrpcTransport(*channels, {.attached = {1, 0}}));
    EXPECT_TRUE(channels->shares_memory());
    EXPECT_TRUE(Echo(*one->MakeExchange(), {32, 0}).ok());
    const auto other = Must(MakeGrpcTransport(*channels, {.attached = {0, 1}}));
    EXPECT_FALSE(channels->shares_memory());
    EXPECT_TRUE(Echo(*other->MakeExchange(), {0, 32}).ok());
  }
}

TEST(Grpc, ServesOverSocketsWithFiles) {
  GrpcHarness harness({.limits = kLimits, .num_workers = 2}, [](int worker) {
    return Cat("unix:", testing::TempDir(), "moe_grpc_test.", getpid(), ".", worker);
  });
  EXPECT_TRUE(EchoOnce(harness.transport()).ok());
}

TEST(Grpc, ASocketThatIsNotThereIsNamed) {
  const auto channels = ChannelsTo({"unix:/nowhere/moe"});
  const auto made = MakeGrpcTransport(*channels, {.connect_timeout = std::chrono::minutes(2)});
  EXPECT_EQ(made.status().code(), StatusCode::kUnavailable);
  EXPECT_THAT(made.status().message(),
              AllOf(HasSubstr("rank 1 (unix:/nowhere/moe)"), HasSubstr("No such file or directory")));
}

TEST(Grpc, AddressesThatAreNoneAreRefusedByName) {
  for (const char* address : {"nowhere", "host:0", "host:99999", "unix:", "unix:moe", "unix:/a#b", ""}) {
    const auto channels = GrpcChannels::Make({.workers = {address}, .limits = kLimits});
    ASSERT_FALSE(channels.ok()) << address;
    EXPECT_EQ(channels.status().code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(channels.status().message(), HasSubstr(Cat("\"", address, "\"")));
  }
  EXPECT_THAT(GrpcChannels::Make({.limits = kLimits}).status().message(), HasSubstr("at least one worker"));
}

TEST(Grpc, LimitsOverGrpcsOwnAreRefused) {
  const TransportLimits limits{.max_request_bytes = std::size_t{1} << 31};
  const auto channels = GrpcChannels::Make({.workers = {"a:1"}, .limits = limits});
  EXPECT_EQ(channels.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(channels.status().message(), HasSubstr("does not fit a gRPC message"));
  EXPECT_EQ(GrpcWorkerServer::Start({.listen = "127.0.0.1:0", .limits = limits}).status().code(),
            StatusCode::kInvalidArgument);
}

TEST(Grpc, AWorkerThatIsNotThereIsUnavailableAtOnceAndNamed) {
  std::string address;
  { address = GrpcWorkerThread(WorkerOptions()).address(); }
  GrpcWorkerThread there(WorkerOptions());
  const auto channels = ChannelsTo({there.address(), address});
  const auto made = MakeGrpcTransport(*channels, {.connect_timeout = std::chrono::minutes(2)});
  ASSERT_FALSE(made.ok());
  EXPECT_EQ(made.status().code(), StatusCode::kUnavailable);
  EXPECT_THAT(made.status().message(), AllOf(HasSubstr("rank 2 (" + address + ") cannot be reached")));
  EXPECT_EQ(channels->failure(WorkerId(1)).message(), made.status().message());
  EXPECT_TRUE(channels->failure(WorkerId(0)).ok());
}

TEST(Grpc, AWorkerThatDoesNotAcceptEndsInTheConnectDeadline) {
  const auto server = Must(GrpcWorkerServer::Start(WorkerOptions()));  // nobody in Receive
  const auto channels = ChannelsTo({server->address()});
  const auto made = MakeGrpcTransport(*channels, {.connect_timeout = std::chrono::milliseconds(50)});
  EXPECT_EQ(made.status().code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(made.status().message(), AllOf(HasSubstr("rank 1"), HasSubstr(server->address())));
}

TEST(Grpc, WorkersThatAreLeftOutAreNamedWhenAskedAndHarmNobody) {
  GrpcWorkerThread there(WorkerOptions());
  const auto channels = ChannelsTo({there.address(), "127.0.0.1:1"});
  const auto transport = Must(MakeGrpcTransport(*channels, {.attached = {1, 0}}));
  const auto exchange = transport->MakeExchange();
  const Status status = exchange->Start(Sizes(*transport, 8));
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(status.message(), HasSubstr("rank 2 (127.0.0.1:1) is not attached"));
  EXPECT_TRUE(Echo(*exchange, {8, 0}).ok()) << "not terminal";
  EXPECT_EQ(MakeGrpcTransport(*channels, {.attached = {1}}).status().code(), StatusCode::kInvalidArgument);
}

TEST(Grpc, ANewTransportReachesAWorkerThatHasComeBack) {
  auto worker = std::make_unique<GrpcWorkerThread>(WorkerOptions());
  const std::string address = worker->address();
  const auto channels = ChannelsTo({address});
  {
    const auto transport = Must(MakeGrpcTransport(*channels, {}));
    ASSERT_TRUE(EchoOnce(*transport).ok());
    worker.reset();
    const Status status = EchoOnce(*transport);
    EXPECT_EQ(status.code(), StatusCode::kUnavailable);
    EXPECT_THAT(status.message(), HasSubstr("rank 1 (" + address + ") has closed its end"));
    EXPECT_EQ(channels->failure(WorkerId(0)).message(), status.message());
  }
  EXPECT_FALSE(MakeGrpcTransport(*channels, {}).ok());
  worker = std::make_unique<GrpcWorkerThread>(WorkerOptions(address));
  for (const Deadline deadline = Generous(); !channels->Connected(WorkerId(0)); std::this_thread::yield())
    ASSERT_LT(Clock::now(), deadline);
  const auto transport = Must(MakeGrpcTransport(*channels, {}));
  EXPECT_TRUE(EchoOnce(*transport).ok());
  EXPECT_TRUE(channels->failure(WorkerId(0)).ok());
}

// So go the workers of a job, each as soon as it has answered the last request.
TEST(Grpc, AWorkerThatGoesAfterItsReplyHarmsNoExchange) {
  for (const bool shared_memory : {false, true}) {
    auto going = std::make_unique<GrpcWorkerThread>(WorkerOptions());
    const auto staying = Must(GrpcWorkerServer::Start(WorkerOptions()));
    const auto channels = ChannelsTo({going->address(), staying->address()});
    std::atomic<bool> gone{false};
    std::jthread worker([&] {
      std::optional<IncomingRequest> request;
      while (!request) request = Must(staying->endpoint().Receive(After(std::chrono::milliseconds(10))));
      while (!gone) std::this_thread::yield();
      std::this_thread::sleep_for(std::chrono::milliseconds(50));  // in which the router hears of the other's end
      EXPECT_TRUE(staying->endpoint().Reply(*request, 1).ok());
    });
    const auto transport = Must(MakeGrpcTransport(*channels, {.shared_memory = shared_memory}));
    const auto exchange = transport->MakeExchange();
    for (const WorkerId w : {WorkerId(0), WorkerId(1)})
      exchange->request(w)[0] = static_cast<std::byte>(Command::kEcho);
    ASSERT_TRUE(exchange->Start(std::vector<std::size_t>{8, 8}).ok());
    while (exchange->completed_at(WorkerId(0)) == TimePoint()) ASSERT_FALSE(Must(exchange->Poll()));
    going.reset();
    gone = true;
    const Status status = exchange->Wait(Generous());
    EXPECT_TRUE(status.ok()) << status.message();
    worker.join();
    const Status next = Echo(*exchange, {8, 0});
    EXPECT_EQ(next.code(), StatusCode::kUnavailable);
    EXPECT_THAT(next.message(), HasSubstr("rank 1"));
  }
}

TEST(Grpc, ANewTransportOfOneRouterTakesThePlaceOfItsOldOne) {
  GrpcWorkerServerOptions options = WorkerOptions();
  options.max_routers = 1;
  GrpcWorkerThread worker(options);
  const auto channels = ChannelsTo({worker.address()});
  const auto old = Must(MakeGrpcTransport(*channels, {}));
  const auto transport = Must(MakeGrpcTransport(*channels, {}));
  EXPECT_TRUE(EchoOnce(*transport).ok());
  EXPECT_EQ(EchoOnce(*old).code(), StatusCode::kUnavailable);
}

TEST(Grpc, MoreRoutersThanPlacesAreRefusedUntilOneLeaves) {
  GrpcWorkerServerOptions options = WorkerOptions();
  options.max_routers = 2;
  GrpcWorkerThread worker(options);
  std::vector<std::unique_ptr<GrpcChannels>> channels;
  for (int r = 0; r < 3; ++r) channels.push_back(ChannelsTo({worker.address()}));
  auto one = Must(MakeGrpcTransport(*channels[0], {}));
  const auto two = Must(MakeGrpcTransport(*channels[1], {}));
  const auto three = MakeGrpcTransport(*channels[2], {});
  EXPECT_EQ(three.status().code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(three.status().message(),
              AllOf(HasSubstr("rank 1"), HasSubstr("all places for routers are taken (2 at a time)")));
  one.reset();
  EXPECT_TRUE(EchoOnce(*MadeOncePlaceIsFree(*channels[2])).ok());
  EXPECT_TRUE(EchoOnce(*two).ok());
}

TEST(Grpc, ManyRoutersShareTheWorkersWithoutMixingReplies) {
  constexpr std::size_t kRouters = 4;
  constexpr std::uint64_t kExchanges = 200;
  GrpcWorkerThread first(WorkerOptions());
  GrpcWorkerThread second(WorkerOptions());
  std::vector<int> wrong(kRouters);
  std::vector<std::thread> threads;
  for (std::size_t r = 0; r < kRouters; ++r) {
    threads.emplace_back([&, r] {
      const auto channels = ChannelsTo({first.address(), second.address()});
      // Half of them share memory with the workers, beside those that do not.
      const auto transport = Must(MakeGrpcTransport(*channels, {.shared_memory = r % 2 == 0}));
      const auto exchange = transport->MakeExchange();
      const std::vector<std::size_t> sizes = {100 + r, 200 + r};
      for (std::uint64_t n = 0; n < kExchanges; ++n) {
        for (std::size_t w = 0; w < sizes.size(); ++w)
          FillPattern(n * 100 + r * 10 + w, exchange->request(WorkerId(static_cast<int>(w))));
        bool right = Echo(*exchange, sizes).ok();
        for (std::size_t w = 0; right && w < sizes.size(); ++w) {
          const WorkerId worker(static_cast<int>(w));
          const auto reply = exchange->reply(worker);
          right = std::equal(reply.begin(), reply.end(), exchange->request(worker).begin()) && reply.size() == sizes[w];
        }
        wrong[r] += right ? 0 : 1;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(wrong, testing::Each(0));
}

TEST(Grpc, LimitsAndChecksumsThatDoNotFitAreRefusedWithBothValues) {
  GrpcWorkerThread worker(WorkerOptions());
  const auto refusal = [&](auto change) {
    TransportLimits limits = kLimits;
    change(limits);
    const auto channels = ChannelsTo({worker.address()}, limits);
    const auto made = MakeGrpcTransport(*channels, {});
    EXPECT_EQ(made.status().code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(made.status().message(), HasSubstr("rank 1"));
    return made.status().message();
  };
  EXPECT_THAT(refusal([](TransportLimits& limits) { limits.max_request_bytes = 257; }),
              HasSubstr("asks for max_request_bytes 257, this worker allows 256"));
  EXPECT_THAT(refusal([](TransportLimits& limits) { limits.max_reply_bytes = 300; }),
              HasSubstr("asks for max_reply_bytes 300, this worker allows 256"));
  EXPECT_THAT(refusal([](TransportLimits& limits) { limits.max_exchanges = 3; }),
              HasSubstr("asks for max_exchanges 3, this worker allows 2"));
  EXPECT_THAT(refusal([](TransportLimits& limits) { limits.payload_checksums = true; }),
              HasSubstr("has checksums of payloads on, this worker off"));
  TransportLimits less = kLimits;
  less.max_reply_bytes = less.max_request_bytes = 100;
  less.max_exchanges = 1;
  const auto channels = ChannelsTo({worker.address()}, less);
  EXPECT_TRUE(EchoOnce(*Must(MakeGrpcTransport(*channels, {}))).ok());
}

TEST(Grpc, ReceiveWaitsForTheNextRouterAndEndsWhenToldToStop) {
  const auto server = Must(GrpcWorkerServer::Start(WorkerOptions()));
  const auto none = server->endpoint().Receive(After(std::chrono::milliseconds(1)));
  ASSERT_TRUE(none.ok());
  EXPECT_FALSE(none->has_value());
  {
    const auto channels = ChannelsTo({server->address()});
    std::atomic<bool> gone{false};
    std::thread router([&] {
      Must(MakeGrpcTransport(*channels, {})).reset();
      gone = true;
    });
    while (!gone) EXPECT_TRUE(server->endpoint().Receive(After(std::chrono::milliseconds(10))).ok());
    router.join();
  }
  std::thread stopper([&] { server->Stop(); });
  EXPECT_EQ(server->endpoint().Receive(Generous()).status().code(), StatusCode::kUnavailable);
  stopper.join();
  server->Stop();
  EXPECT_EQ(server->endpoint().Receive(Generous()).status().code(), StatusCode::kUnavailable);
}

TEST(Grpc, AReplyToARouterThatIsGoneIsHarmlessAndFreesItsPlace) {
  GrpcWorkerServerOptions options = WorkerOptions();
  options.max_routers = 1;
  const auto server = Must(GrpcWorkerServer::Start(options));
  std::optional<IncomingRequest> request;
  std::thread router([&] {
    const auto channels = ChannelsTo({server->address()});
    const auto transport = Must(MakeGrpcTransport(*channels, {}));
    const auto exchange = transport->MakeExchange();
    std::memcpy(exchange->request(WorkerId(0)).data(), "bye", 3);
    ASSERT_TRUE(exchange->Start(std::vector<std::size_t>{3}).ok());
    EXPECT_EQ(exchange->Wait(After(std::chrono::milliseconds(100))).code(), StatusCode::kDeadlineExceeded);
  });
  request = *Must(server->endpoint().Receive(Generous()));
  router.join();
  ASSERT_FALSE(Must(server->endpoint().Receive(After(std::chrono::milliseconds(50)))).has_value());
  EXPECT_EQ(std::memcmp(request->payload.data(), "bye", 3), 0) << "kept until it is replied to";
  server->endpoint().reply_buffer(*request)[0] = std::byte{1};
  EXPECT_TRUE(server->endpoint().Reply(*request, 1).ok());
  std::jthread next([&] {
    const auto channels = ChannelsTo({server->address()});
    EXPECT_TRUE(EchoOnce(*MadeOncePlaceIsFree(*channels)).ok());
    server->Stop();
  });
  RunScriptedWorker(server->endpoint());
}

TEST(Grpc, FramesTravelOverMutualTls) {
  const ThrowawayCa ca("grpc");
  GrpcWorkerServerOptions options = WorkerOptions();
  options.tls = ca.Files("server", /*with_ca=*/true);
  GrpcWorkerThread worker(options);
  const auto connect = [&](const TlsFiles& tls) {
    return Must(GrpcChannels::Make({.workers = {worker.address()}, .limits = kLimits, .tls = tls}));
  };
  const auto known = connect(ca.Files("client", /*with_ca=*/true));
  EXPECT_TRUE(EchoOnce(*Must(MakeGrpcTransport(*known, {}))).ok());
  const auto unknown = connect({.ca = ca.ca()});
  const auto refused = MakeGrpcTransport(*unknown, {});
  EXPECT_EQ(refused.status().code(), StatusCode::kUnavailable);
  EXPECT_THAT(refused.status().message(), HasSubstr("rank 1"));
}

// A control plane of its own, beside the data plane.
class Control final : public v1::ExpertWorker::CallbackService {
 public:
  grpc::ServerUnaryReactor* GetShard(grpc::CallbackServerContext* context, const v1::GetShardRequest*,
                                     v1::ShardDescription* response) override {
    response->set_rank(7);
    auto* const reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
};

TEST(Grpc, TheControlPlaneIsServedOnTheSameConnection) {
  Control control;
  GrpcWorkerServerOptions options = WorkerOptions();
  options.services = {&control};
  GrpcWorkerThread worker(options);
  const auto channels = ChannelsTo({worker.address()});
  const auto transport = Must(MakeGrpcTransport(*channels, {}));
  const auto stub = v1::ExpertWorker::NewStub(channels->channel(WorkerId(0)));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(2));
  v1::ShardDescription shard;
  const grpc::Status status = stub->GetShard(&context, {}, &shard);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(shard.rank(), 7u);
  EXPECT_TRUE(EchoOnce(*transport).ok());
}

}  // namespace
}  // namespace moe
