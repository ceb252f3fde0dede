// TLS by files, with a throw-away CA of the openssl program.
#include "rpc/tls.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "rpc/server.h"
#include "tests/rpc/shard_service.h"
#include "tests/rpc/throwaway_ca.h"

namespace moe {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class Tls : public testing::Test {
 protected:
  static void SetUpTestSuite() { ca_ = std::make_unique<ThrowawayCa>("tls"); }
  static void TearDownTestSuite() { ca_.reset(); }

  // What a call to a server with `server` from a client with `client` ends in.
  grpc::Status Call(const TlsFiles& server, const TlsFiles& client) {
    ShardService shard;
    grpc::Service* const services[] = {&shard};
    const auto running = RpcServer::Start({.listen = "127.0.0.1:0", .tls = server}, services);
    EXPECT_TRUE(running.ok()) << running.status().message();
    const auto credentials = MakeChannelCredentials(client);
    EXPECT_TRUE(credentials.ok()) << credentials.status().message();
    return CallShard((*running)->address(), *credentials);
  }
  TlsFiles Server() { return ca_->Files("server", /*with_ca=*/false); }
  TlsFiles MutualServer() { return ca_->Files("server", /*with_ca=*/true); }
  TlsFiles Client() { return {.ca = ca_->ca()}; }
  TlsFiles MutualClient() { return ca_->Files("client", /*with_ca=*/true); }

  static std::unique_ptr<ThrowawayCa> ca_;
};

std::unique_ptr<ThrowawayCa> Tls::ca_;

TEST_F(Tls, AClientThatKnowsTheCaIsServed) {
  const grpc::Status status = Call(Server(), Client());
  EXPECT_TRUE(status.ok()) << status.error_message();
}

TEST_F(Tls, APlainClientIsNotServed) { EXPECT_FALSE(Call(Server(), {}).ok()); }

TEST_F(Tls, AServerOfAnotherCaIsNotTrusted) {
  const ThrowawayCa other("tls_other");
  EXPECT_FALSE(Call(Server(), {.ca = other.ca()}).ok());
}

TEST_F(Tls, MutualTlsWantsTheClientsCertificate) {
  EXPECT_FALSE(Call(MutualServer(), Client()).ok());
  const grpc::Status status = Call(MutualServer(), MutualClient());
  EXPECT_TRUE(status.ok()) << status.error_message();
}

TEST_F(Tls, FilesThatDoNotFitAreNamed) {
  const auto server = [](const TlsFiles& files) { return MakeServerCredentials(files).status(); };
  const auto client = [](const TlsFiles& files) { return MakeChannelCredentials(files).status(); };
  const TlsFiles good = Server();
  EXPECT_THAT(server({.certificate = "/nowhere.pem", .key = good.key}).message(),
              HasSubstr("TLS certificate /nowhere.pem cannot be read"));
  EXPECT_THAT(server({.certificate = good.key, .key = good.key}).message(),
              AllOf(HasSubstr(good.key.string()), HasSubstr("is no PEM file")));
  EXPECT_THAT(server({.certificate = good.certificate, .key = good.certificate}).message(),
              AllOf(HasSubstr("TLS key " + good.certificate.string()), HasSubstr("PRIVATE KEY")));
  EXPECT_THAT(server({.certificate = good.certificate}).message(), HasSubstr("is given without its key"));
  EXPECT_THAT(server({.key = good.key}).message(), HasSubstr("is given without its certificate"));
  EXPECT_THAT(server({.ca = ca_->ca()}).message(), HasSubstr("without a certificate and a key of this server"));
  EXPECT_THAT(client(good).message(), HasSubstr("without the CA"));
  EXPECT_THAT(client({.ca = "/"}).message(), HasSubstr("TLS CA / cannot be read"));
  EXPECT_EQ(client({.ca = "/nowhere"}).code(), StatusCode::kInvalidArgument);
}

TEST_F(Tls, AKeyOfAnotherCertificateDoesNotServe) {
  TlsFiles files = Server();
  files.key = MutualClient().key;
  const auto server = RpcServer::Start({.listen = "127.0.0.1:0", .tls = files}, {});
  EXPECT_EQ(server.status().code(), StatusCode::kUnavailable);
  EXPECT_THAT(server.status().message(), HasSubstr(files.key.string()));
}

}  // namespace
}  // namespace moe
