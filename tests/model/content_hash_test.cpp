#include "model/content_hash.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

namespace moe {
namespace {

std::uint64_t HashOf(std::string_view bytes) {
  ContentHash hash;
  hash.AddBytes(std::as_bytes(std::span(bytes)));
  return hash.value();
}

TEST(ContentHash, IsXxh3) { EXPECT_EQ(HashOf(""), 0x2d06800538d394c2u) << "the specification's value of no bytes"; }

TEST(ContentHash, DoesNotDependOnThePieces) {
  std::string text;
  for (int i = 0; i < 5000; ++i) text += static_cast<char>(i * 7 + i / 256);
  const std::uint64_t whole = HashOf(text);
  for (const std::size_t piece : {std::size_t{1}, std::size_t{63}, std::size_t{1024}, std::size_t{4999}}) {
    ContentHash hash;
    for (std::size_t at = 0; at < text.size(); at += piece)
      hash.AddBytes(std::as_bytes(std::span(text).subspan(at, std::min(piece, text.size() - at))));
    EXPECT_EQ(hash.value(), whole) << piece;
    EXPECT_EQ(hash.value(), whole) << "asking changes nothing";
  }
}

TEST(ContentHash, TellsAnyChangedBitApart) {
  std::string text(300, 'x');
  std::set<std::uint64_t> seen = {HashOf(text)};
  for (std::size_t bit = 0; bit < 8 * text.size(); ++bit) {
    std::string changed = text;
    changed[bit / 8] = static_cast<char>(changed[bit / 8] ^ (1 << (bit % 8)));
    EXPECT_TRUE(seen.insert(HashOf(changed)).second) << bit;
  }
}

TEST(ContentHash, NumbersAreLittleEndian) {
  ContentHash hash;
  hash.AddNumber(0x0807060504030201u);
  EXPECT_EQ(hash.value(), HashOf("\1\2\3\4\5\6\7\10"));
}

TEST(ContentHash, TextsDoNotRunIntoOneAnother) {
  const auto of = [](const std::vector<std::string>& texts) {
    ContentHash hash;
    for (const std::string& text : texts) hash.AddText(text);
    return hash.value();
  };
  EXPECT_NE(of({"ab", "c"}), of({"a", "bc"}));
  EXPECT_NE(of({"abc"}), of({"abc", ""}));
  EXPECT_EQ(of({"ab", "c"}), of({"ab", "c"}));
}

TEST(Hex, HasAllItsZeros) {
  EXPECT_EQ(Hex(0), "0000000000000000");
  EXPECT_EQ(Hex(0x00c0ffee), "0000000000c0ffee");
  EXPECT_EQ(Hex(~std::uint64_t{0}), "ffffffffffffffff");
}

}  // namespace
}  // namespace moe
