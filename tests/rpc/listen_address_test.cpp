#include "rpc/listen_address.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "tests/temporary_folder.h"

namespace moe {
namespace {

using ::testing::HasSubstr;

TEST(ListenAddressTest, ReadsHostAndPort) {
  const auto ipv4 = ParseListenAddress("127.0.0.1:50051");
  ASSERT_TRUE(ipv4.ok());
  EXPECT_EQ(ipv4->host, "127.0.0.1");
  EXPECT_EQ(ipv4->port, 50051);
  EXPECT_EQ(ipv4->WithPort(7), "127.0.0.1:7");
  const auto ipv6 = ParseListenAddress("[::1]:0");
  ASSERT_TRUE(ipv6.ok());
  EXPECT_EQ(ipv6->host, "::1");
  EXPECT_EQ(ipv6->port, 0);
  EXPECT_EQ(ipv6->WithPort(80), "[::1]:80");
}

TEST(ListenAddressTest, RefusesWhatIsNotHostAndPortByName) {
  for (const char* text : {"", "50051", ":50051", "127.0.0.1", "127.0.0.1:", "h:x", "h:-1", "h:65536", "h:1 ",
                           "::1:50051", "h:99999999999"}) {
    const auto address = ParseListenAddress(text);
    ASSERT_FALSE(address.ok()) << text;
    EXPECT_EQ(address.status().code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(address.status().message(), HasSubstr(std::string("\"") + text + "\""));
  }
}

TEST(ListenAddressTest, ReadsLocalSockets) {
  const auto file = ParseListenAddress("unix:/run/moe/1");
  ASSERT_TRUE(file.ok());
  EXPECT_EQ(file->kind, ListenAddress::Kind::kFile);
  EXPECT_EQ(file->host, "/run/moe/1");
  EXPECT_EQ(file->WithPort(1), "unix:/run/moe/1");
  const auto name = ParseListenAddress("unix-abstract:moe-1");
  ASSERT_TRUE(name.ok());
  EXPECT_EQ(name->kind, ListenAddress::Kind::kAbstract);
  EXPECT_EQ(name->WithPort(1), "unix-abstract:moe-1");
  EXPECT_TRUE(name->local());
  EXPECT_TRUE(ParseListenAddress("unix:/" + std::string(106, 'a')).ok());
}

TEST(ListenAddressTest, RefusesLocalSocketsThatCannotBe) {
  const auto refusal = [](const std::string& text) {
    const auto address = ParseListenAddress(text);
    EXPECT_EQ(address.status().code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(address.status().message(), HasSubstr("\"" + text + "\""));
    return address.status().message();
  };
  EXPECT_THAT(refusal("unix:"), HasSubstr("names no path"));
  EXPECT_THAT(refusal("unix:run/moe"), HasSubstr("names no path"));
  EXPECT_THAT(refusal("unix-abstract:"), HasSubstr("names no socket"));
  EXPECT_THAT(refusal("unix:/" + std::string(107, 'a')), HasSubstr("a path of 108 bytes (at most 107)"));
  EXPECT_THAT(refusal("unix-abstract:" + std::string(108, 'a')), HasSubstr("a name of 108 bytes (at most 107)"));
  EXPECT_THAT(refusal("unix:/a b"), HasSubstr("has a \" \""));
  EXPECT_THAT(refusal("unix:/a#b"), HasSubstr("has a \"#\""));
}

// A folder, and in it sockets as servers leave them.
class LocalSockets : public testing::Test {
 protected:
  void TearDown() override {
    for (const int descriptor : open_) close(descriptor);
  }

  std::string Path(const std::string& name) const { return folder_.path() / name; }
  /// Bound, and listened on while the test runs.
  void Listen(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.data(), path.size());
    open_.push_back(socket(AF_UNIX, SOCK_STREAM, 0));
    ASSERT_EQ(bind(open_.back(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    ASSERT_EQ(listen(open_.back(), 0), 0);
  }
  void Kill() {
    close(open_.back());
    open_.pop_back();
  }
  /// Why `path` cannot be bound; empty when it can.
  static std::string Obstacle(const std::string& path) {
    const Status status = CheckBindable({.kind = ListenAddress::Kind::kFile, .host = path});
    if (status.ok()) return "";
    EXPECT_EQ(status.code(), StatusCode::kUnavailable);
    EXPECT_THAT(status.message(), HasSubstr("cannot listen on unix:" + path + ": "));
    return status.message();
  }

 private:
  const TemporaryFolder folder_;
  std::vector<int> open_;
};

TEST_F(LocalSockets, AFreePathCanBeBoundAndStaysFree) {
  EXPECT_EQ(Obstacle(Path("free")), "");
  EXPECT_FALSE(std::filesystem::exists(Path("free")));
}

TEST_F(LocalSockets, ARunningServersIsTaken) {
  Listen(Path("taken"));
  EXPECT_THAT(Obstacle(Path("taken")), HasSubstr("Address already in use"));
  EXPECT_TRUE(std::filesystem::exists(Path("taken")));
}

TEST_F(LocalSockets, WhatAKilledServerHasLeftIsRemoved) {
  Listen(Path("stale"));
  Kill();
  ASSERT_TRUE(std::filesystem::exists(Path("stale")));
  EXPECT_EQ(Obstacle(Path("stale")), "");
  EXPECT_FALSE(std::filesystem::exists(Path("stale")));
}

TEST_F(LocalSockets, OtherFilesAreKept) {
  std::ofstream(Path("file")) << "kept";
  EXPECT_THAT(Obstacle(Path("file")), HasSubstr("there is a file that is no socket"));
  EXPECT_EQ(std::filesystem::file_size(Path("file")), 4u);
  EXPECT_THAT(Obstacle(Path(".")), HasSubstr("there is a file that is no socket"));
}

TEST_F(LocalSockets, FoldersThatAreNotThereOrForbiddenAreTold) {
  EXPECT_THAT(Obstacle(Path("none/socket")), HasSubstr("No such file or directory"));
  EXPECT_NE(Obstacle("/sys/moe"), "") << "nobody may make files there";
}

TEST_F(LocalSockets, ANameIsTakenWhileItsServerRuns) {
  const ListenAddress address{.kind = ListenAddress::Kind::kAbstract, .host = Path("name")};
  EXPECT_TRUE(CheckBindable(address).ok());
  sockaddr_un local{};
  local.sun_family = AF_UNIX;
  std::memcpy(local.sun_path + 1, address.host.data(), address.host.size());
  const int server = socket(AF_UNIX, SOCK_STREAM, 0);
  const auto bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + address.host.size());
  ASSERT_EQ(bind(server, reinterpret_cast<const sockaddr*>(&local), bytes), 0);
  const Status taken = CheckBindable(address);
  EXPECT_THAT(taken.message(), HasSubstr("cannot listen on unix-abstract:" + address.host + ": Address already"));
  close(server);
  EXPECT_TRUE(CheckBindable(address).ok());
}

TEST(ListenAddressTest, AddressesOfOthersCannotBeBound) {
  // 192.0.2.0/24 is set aside for documentation (RFC 5737): no machine has it.
  const Status other = CheckBindable({.host = "192.0.2.1", .port = 0});
  EXPECT_EQ(other.code(), StatusCode::kUnavailable);
  EXPECT_THAT(other.message(), HasSubstr("192.0.2.1:0"));
  const Status unknown = CheckBindable({.host = "256.0.0.1", .port = 9});
  EXPECT_EQ(unknown.code(), StatusCode::kUnavailable);
  EXPECT_THAT(unknown.message(), HasSubstr("256.0.0.1:9"));
  EXPECT_TRUE(CheckBindable({.host = "127.0.0.1", .port = 0}).ok());
}

}  // namespace
}  // namespace moe
