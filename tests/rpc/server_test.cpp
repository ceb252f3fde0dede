#include "rpc/server.h"

#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <future>
#include <thread>

#include "rpc/listen_address.h"
#include "tests/rpc/shard_service.h"

namespace moe {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// Long enough for any machine; a call that is not answered fails the test in place of hanging it.
constexpr std::chrono::seconds kDeadline(30);

class Shard : public ShardService {
 public:
  // Answers when told to, or when the call is cancelled.
  class Held : public grpc::ServerUnaryReactor {
   public:
    explicit Held(Shard* shard) : shard_(shard) { shard_->held.set_value(this); }
    void OnCancel() override { Finish(grpc::Status::CANCELLED); }
    void OnDone() override {
      ++shard_->ended;
      delete this;
    }

   private:
    Shard* shard_;
  };
  grpc::ServerUnaryReactor* GetStatistics(grpc::CallbackServerContext* /*context*/,
                                          const v1::GetStatisticsRequest* /*request*/,
                                          v1::WorkerStatistics* /*response*/) override {
    return new Held(this);
  }

  std::promise<Held*> held;
  std::atomic<int> ended = 0;
};

std::unique_ptr<RpcServer> StartOrDie(Shard& shard, RpcServerOptions options = {}) {
  if (options.listen.empty()) options.listen = "127.0.0.1:0";
  options.health_services = {"moe.v1.ExpertWorker"};
  grpc::Service* const services[] = {&shard};
  auto server = RpcServer::Start(options, services);
  if (!server.ok()) throw std::runtime_error(server.status().message());
  return *std::move(server);
}

std::shared_ptr<grpc::Channel> ChannelTo(const std::string& address) {
  return grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
}

// One request and one response in protobuf's wire format: health and reflection come without generated stubs.
struct RawReply {
  grpc::Status status;
  std::string bytes;
};

RawReply RawCall(const std::string& address, const std::string& method, const std::string& request) {
  grpc::GenericStub stub(ChannelTo(address));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kDeadline);
  grpc::CompletionQueue queue;
  const grpc::Slice slice(request);
  const grpc::ByteBuffer out(&slice, 1);
  auto call = stub.PrepareUnaryCall(&context, method, out, &queue);
  grpc::ByteBuffer in;
  RawReply reply;
  call->StartCall();
  call->Finish(&in, &reply.status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  grpc::Slice whole;
  if (reply.status.ok() && in.DumpToSingleSlice(&whole).ok()) {
    reply.bytes.assign(reinterpret_cast<const char*>(whole.begin()), whole.size());
  }
  return reply;
}

// HealthCheckRequest {string service = 1}, HealthCheckResponse {ServingStatus status = 1: 1 SERVING, 2 NOT_SERVING}.
std::string Health(const std::string& address, const std::string& service) {
  const std::string request = "\x0a" + std::string(1, static_cast<char>(service.size())) + service;
  const RawReply reply = RawCall(address, "/grpc.health.v1.Health/Check", request);
  if (!reply.status.ok()) return "code " + std::to_string(reply.status.error_code());
  if (reply.bytes == "\x08\x01") return "SERVING";
  return reply.bytes == "\x08\x02" ? "NOT_SERVING" : "unknown answer";
}

TEST(RpcServerTest, PortZeroReportsTheAddressReallyBoundAndServes) {
  Shard shard;
  const auto server = StartOrDie(shard);
  const auto address = ParseListenAddress(server->address());
  ASSERT_TRUE(address.ok());
  EXPECT_EQ(address->host, "127.0.0.1");
  EXPECT_GT(address->port, 0);
  const grpc::Status status = CallShard(server->address());
  EXPECT_TRUE(status.ok()) << status.error_message();
}

TEST(RpcServerTest, ListensOnLocalSockets) {
  for (const std::string& listen :
       {Cat("unix:", testing::TempDir(), "moe_rpc_test-", getpid()), Cat("unix-abstract:moe-rpc-", getpid())}) {
    Shard shard;
    const auto server = StartOrDie(shard, {.listen = listen});
    EXPECT_EQ(server->address(), listen);
    const grpc::Status status = CallShard(listen);
    EXPECT_TRUE(status.ok()) << status.error_message();
  }
}

TEST(RpcServerTest, ARunningServersSocketIsNotTakenFromIt) {
  const std::string listen = Cat("unix:", testing::TempDir(), "moe_rpc_taken_test-", getpid());
  Shard shard;
  const auto server = StartOrDie(shard, {.listen = listen});
  const auto second = RpcServer::Start({.listen = listen}, {});
  EXPECT_EQ(second.status().code(), StatusCode::kUnavailable);
  EXPECT_THAT(second.status().message(), HasSubstr(listen + ": Address already in use"));
  EXPECT_TRUE(CallShard(listen).ok());
}

TEST(RpcServerTest, HealthAndReflectionCanBeLeftOut) {
  Shard shard;
  const auto server = StartOrDie(shard, {.health_and_reflection = false});
  server->SetServing(true);
  EXPECT_EQ(Health(server->address(), ""), "code 12") << "UNIMPLEMENTED";
  EXPECT_TRUE(CallShard(server->address()).ok());
}

TEST(RpcServerTest, ATakenPortIsUnavailableAndNamed) {
  Shard first_shard;
  Shard second_shard;
  const auto first = StartOrDie(first_shard);
  grpc::Service* const services[] = {&second_shard};
  const auto second = RpcServer::Start({.listen = first->address()}, services);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), StatusCode::kUnavailable);
  EXPECT_THAT(second.status().message(), HasSubstr(first->address()));
  EXPECT_THAT(second.status().message(), HasSubstr("Address already in use"));
}

TEST(RpcServerTest, NobodyCanShareItsPort) {
  Shard shard;
  const auto server = StartOrDie(shard);
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  const int on = 1;
  ASSERT_EQ(setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on)), 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<std::uint16_t>(ParseListenAddress(server->address())->port));
  EXPECT_EQ(bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), -1);
  EXPECT_EQ(errno, EADDRINUSE);
  close(fd);
}

TEST(RpcServerTest, AnAddressThatIsNoneIsInvalid) {
  const auto server = RpcServer::Start({.listen = "localhost"}, {});
  ASSERT_FALSE(server.ok());
  EXPECT_EQ(server.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(server.status().message(), HasSubstr("\"localhost\""));
}

TEST(RpcServerTest, HealthFollowsSetServingForTheServerAndEachService) {
  Shard shard;
  const auto server = StartOrDie(shard);
  for (const char* service : {"", "moe.v1.ExpertWorker"}) {
    server->SetServing(false);
    EXPECT_EQ(Health(server->address(), service), "NOT_SERVING") << service;
    server->SetServing(true);
    EXPECT_EQ(Health(server->address(), service), "SERVING") << service;
  }
  EXPECT_EQ(Health(server->address(), "moe.v1.Unheard"), "code 5") << "NOT_FOUND";
}

TEST(RpcServerTest, HealthSaysNotServingAtFirst) {
  Shard shard;
  const auto server = StartOrDie(shard);
  EXPECT_EQ(Health(server->address(), ""), "NOT_SERVING");
  EXPECT_EQ(Health(server->address(), "moe.v1.ExpertWorker"), "NOT_SERVING");
}

TEST(RpcServerTest, ReflectionListsTheServices) {
  Shard shard;
  const auto server = StartOrDie(shard);
  // ServerReflectionRequest {string list_services = 7}.
  const RawReply reply =
      RawCall(server->address(), "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "\x3a\x01*");
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_THAT(reply.bytes, HasSubstr("moe.v1.ExpertWorker"));
  EXPECT_THAT(reply.bytes, Not(HasSubstr("moe.v1.Inference")));
}

TEST(RpcServerTest, AMessageOverTheLimitIsResourceExhausted) {
  Shard shard;
  const auto server = StartOrDie(shard, {.max_receive_bytes = 1000});
  // An unknown field 15 of 900 and of 1100 bytes: only its size matters.
  const auto request = [](int size) {
    return std::string("\x7a") + static_cast<char>((size & 0x7f) | 0x80) + static_cast<char>(size >> 7) +
           std::string(static_cast<std::size_t>(size), 'x');
  };
  EXPECT_TRUE(RawCall(server->address(), "/moe.v1.ExpertWorker/GetShard", request(900)).status.ok());
  const grpc::Status status = RawCall(server->address(), "/moe.v1.ExpertWorker/GetShard", request(1100)).status;
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << status.error_message();
}

TEST(RpcServerTest, ShutdownLetsACallUnderWayEnd) {
  Shard shard;
  const auto server = StartOrDie(shard);
  std::future<RawReply> call = std::async(
      std::launch::async, [&] { return RawCall(server->address(), "/moe.v1.ExpertWorker/GetStatistics", ""); });
  Shard::Held* const held = shard.held.get_future().get();
  std::jthread shutdown([&] { server->Shutdown(kDeadline); });
  // Once a new call is refused the shutdown is under way; the call from before is still held.
  while (Health(server->address(), "") == "NOT_SERVING") std::this_thread::yield();
  EXPECT_EQ(shard.ended, 0);
  held->Finish(grpc::Status::OK);
  EXPECT_TRUE(call.get().status.ok());
  shutdown.join();
  EXPECT_EQ(shard.ended, 1);
}

TEST(RpcServerTest, ShutdownCancelsWhatOutlivesTheGrace) {
  Shard shard;
  const auto server = StartOrDie(shard);
  std::future<RawReply> call = std::async(
      std::launch::async, [&] { return RawCall(server->address(), "/moe.v1.ExpertWorker/GetStatistics", ""); });
  shard.held.get_future().wait();
  server->Shutdown(std::chrono::milliseconds(1));
  EXPECT_EQ(shard.ended, 1);
  EXPECT_FALSE(call.get().status.ok());
  server->Shutdown(std::chrono::milliseconds(1));
}

}  // namespace
}  // namespace moe
