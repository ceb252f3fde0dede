#include "rpc/listen_address.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

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
