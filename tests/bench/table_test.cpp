#include "bench/table.h"

#include <gtest/gtest.h>

namespace moe {
namespace {

TEST(TextTable, AlignsByCharacters) {
  TextTable table({"", "µs", "last"});
  table.Add({"first", "1", ""});
  table.Add({"x", "1000", "2"});
  EXPECT_EQ(table.Text(),
            "         µs  last\n"
            "-----------------\n"
            "first     1\n"
            "x      1000     2\n");
}

TEST(Format, WritesAsPrintfDoes) {
  EXPECT_EQ(Format("%.1f of %s, %zu%%", 2.25, "x", std::size_t{7}), "2.2 of x, 7%");
  EXPECT_EQ(Format("%s", ""), "");
  EXPECT_EQ(Format("%600d", 1).size(), 600u);
}

}  // namespace
}  // namespace moe
