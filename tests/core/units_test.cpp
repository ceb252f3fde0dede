// Amounts as people write them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/text.h"
#include "core/units.h"

namespace moe {
namespace {

TEST(Units, CountsHaveSeparators) {
  EXPECT_EQ(WithSeparators(0), "0");
  EXPECT_EQ(WithSeparators(999), "999");
  EXPECT_EQ(WithSeparators(1000), "1,000");
  EXPECT_EQ(WithSeparators(46'702'792'704), "46,702,792,704");
  EXPECT_EQ(WithSeparators(18'446'744'073'709'551'615u), "18,446,744,073,709,551,615");
}

TEST(Units, AmountsHaveTheirLargestUnit) {
  EXPECT_EQ(ShortCount(999), "999");
  EXPECT_EQ(ShortCount(46'702'792'704), "46.70 B");
  EXPECT_EQ(ShortCount(1.5713e12), "1.57 T");
  EXPECT_EQ(ShortBytes(1023), "1023 B");
  EXPECT_EQ(ShortBytes(1024), "1.00 KiB");
  EXPECT_EQ(ShortBytes(80.0 * 1024 * 1024 * 1024), "80.00 GiB");
}

TEST(Units, NumbersKeepTheirDigits) {
  EXPECT_EQ(Significant(1234567, 4), "1234567");
  EXPECT_EQ(Significant(12.3456, 4), "12.35");
  EXPECT_EQ(Significant(0.0012345, 3), "0.00123");
  EXPECT_EQ(Significant(0, 3), "0");
}

TEST(Units, BytesAreReadInBothSystems) {
  EXPECT_EQ(*ParseBytes("1000"), 1000);
  EXPECT_EQ(*ParseBytes("24GB"), 24'000'000'000);
  EXPECT_EQ(*ParseBytes("80GiB"), 80ull << 30);
  EXPECT_EQ(*ParseBytes(" 1.5 TiB "), 3ull << 39);
  EXPECT_EQ(*ParseBytes("512kB"), 512'000);
  EXPECT_EQ(*ParseBytes("2e3 B"), 2000);
}

TEST(Units, OtherBytesAreAnErrorThatRepeatsThem) {
  for (const char* text : {"", "abc", "GB", "-1", "0", "0.5", "12XB", "1 2", "nan", "inf", "1e30", "9.3e18", "80gib"}) {
    const Result<std::uint64_t> bytes = ParseBytes(text);
    ASSERT_FALSE(bytes.ok()) << text;
    EXPECT_THAT(bytes.status().message(), testing::StartsWith(Cat("\"", text, "\" is not a number of bytes")));
  }
}

TEST(Units, RatesAreRead) {
  EXPECT_DOUBLE_EQ(*ParseBandwidth("3.35TB/s"), 3.35e12);
  EXPECT_DOUBLE_EQ(*ParseBandwidth("1GiB"), 1024.0 * 1024 * 1024);
  EXPECT_DOUBLE_EQ(*ParseFlops("989.4T"), 989.4e12);
  EXPECT_DOUBLE_EQ(*ParseFlops("312 TFLOPS"), 312e12);
  EXPECT_DOUBLE_EQ(*ParseFlops("1.5GFLOP/s"), 1.5e9);
  EXPECT_DOUBLE_EQ(*ParseFlops("1e12"), 1e12);
  for (const char* text : {"", "fast", "3TB/h", "0"}) EXPECT_FALSE(ParseBandwidth(text).ok()) << text;
  for (const char* text : {"", "fast", "1TB", "0", "-3T"}) EXPECT_FALSE(ParseFlops(text).ok()) << text;
}

}  // namespace
}  // namespace moe
