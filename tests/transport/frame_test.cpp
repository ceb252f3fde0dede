#include "transport/frame.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

namespace moe {
namespace {

using testing::HasSubstr;

constexpr std::size_t kLimit = 100;

std::vector<std::byte> Frame(FrameHeader header, std::size_t payload_bytes, bool seal = true) {
  if (seal) Seal(header);
  std::vector<std::byte> frame(kFrameHeaderBytes + payload_bytes);
  WriteFrameHeader(header, frame);
  return frame;
}

FrameHeader Reply(std::uint64_t payload_bytes = 10) {
  return {.kind = FrameKind::kReply, .epoch = 2, .sequence = 7, .payload_bytes = payload_bytes};
}

Result<FrameVerdict> Judge(const std::vector<std::byte>& frame) {
  return JudgeReply(frame, {.peer = Rank(3), .epoch = 2, .sequence = 7, .max_payload_bytes = kLimit});
}

// Wrong replies are UNAVAILABLE and name the peer.
std::string Complaint(const std::vector<std::byte>& frame) {
  const Result<FrameVerdict> verdict = Judge(frame);
  if (verdict.ok()) return "no complaint";
  EXPECT_EQ(verdict.status().code(), StatusCode::kUnavailable);
  EXPECT_THAT(verdict.status().message(), HasSubstr("rank 3"));
  return verdict.status().message();
}

TEST(Frame, ARightReplyIsAccepted) {
  for (const std::size_t bytes : {std::size_t{0}, std::size_t{10}, kLimit}) {
    const Result<FrameVerdict> verdict = Judge(Frame(Reply(bytes), bytes));
    ASSERT_TRUE(verdict.ok()) << verdict.status().message();
    EXPECT_EQ(*verdict, FrameVerdict::kAccept);
  }
}

TEST(Frame, HeadersSurviveTheWire) {
  const FrameHeader read = ReadFrameHeader(Frame(Reply(), 10));
  EXPECT_EQ(read.kind, FrameKind::kReply);
  EXPECT_EQ(read.epoch, 2u);
  EXPECT_EQ(read.sequence, 7u);
  EXPECT_EQ(read.payload_bytes, 10u);
}

TEST(Frame, EachWrongFieldIsNamed) {
  EXPECT_THAT(Complaint(std::vector<std::byte>(12)), HasSubstr("sent 12 bytes, fewer than the 64"));
  FrameHeader header = Reply();
  header.magic = 0xabcd;
  EXPECT_THAT(Complaint(Frame(header, 10)), HasSubstr("magic 0xabcd instead of 0x46454f4d"));
  header = Reply();
  header.version = 9;
  EXPECT_THAT(Complaint(Frame(header, 10)), HasSubstr("version 9 (this program speaks 2)"));
  EXPECT_THAT(Complaint(Frame(Reply(kLimit + 1), kLimit + 1)), HasSubstr("101 payload bytes, over the limit of 100"));
  EXPECT_THAT(Complaint(Frame(Reply(11), 10)), HasSubstr("says 11 payload bytes, but 10 arrived"));
  EXPECT_THAT(Complaint(Frame(Reply(9), 10)), HasSubstr("says 9 payload bytes, but 10 arrived"));
  header = Reply();
  header.flags = 2;
  EXPECT_THAT(Complaint(Frame(header, 10)), HasSubstr("flags 0x2 and reserved fields 0x0, 0x0 (known: flag 0x1)"));
  header = Reply();
  header.reserved = 7;
  header.reserved_too = 8;
  EXPECT_THAT(Complaint(Frame(header, 10)), HasSubstr("reserved fields 0x7, 0x8"));
  header = Reply();
  header.kind = FrameKind::kRequest;
  EXPECT_THAT(Complaint(Frame(header, 10)), HasSubstr("kind 1 instead of a reply"));
  header.kind = static_cast<FrameKind>(77);
  EXPECT_THAT(Complaint(Frame(header, 10)), HasSubstr("kind 77 instead of a reply"));
}

TEST(Frame, EveryFlippedBitOfAHeaderIsNoticed) {
  const std::vector<std::byte> right = Frame(Reply(), 10);
  for (std::size_t bit = 0; bit < kFrameHeaderBytes * 8; ++bit) {
    std::vector<std::byte> wrong = right;
    wrong[bit / 8] ^= static_cast<std::byte>(1 << (bit % 8));
    EXPECT_FALSE(Judge(wrong).ok()) << "bit " << bit;
  }
}

TEST(Frame, TheChecksumDependsOnEveryWordAndItsPlace) {
  FrameHeader one = Reply();
  FrameHeader two = Reply();
  std::swap(two.epoch, two.sequence);
  EXPECT_NE(FrameChecksum(one), FrameChecksum(two));
  one.checksum = 5;
  EXPECT_EQ(FrameChecksum(one), FrameChecksum(Reply())) << "but not on itself";
}

// A reply of ten bytes whose payload is summed up.
std::vector<std::byte> Summed() {
  FrameHeader header = Reply();
  std::vector<std::byte> frame(kFrameHeaderBytes + 10, std::byte{3});
  Seal(header, std::span(frame).subspan(kFrameHeaderBytes), /*payload_checksum=*/true);
  WriteFrameHeader(header, frame);
  return frame;
}

Result<FrameVerdict> JudgeSummed(const std::vector<std::byte>& frame) {
  return JudgeReply(
      frame, {.peer = Rank(3), .epoch = 2, .sequence = 7, .max_payload_bytes = kLimit, .payload_checksum = true});
}

TEST(Frame, EveryFlippedBitOfASummedPayloadIsNoticed) {
  ASSERT_TRUE(JudgeSummed(Summed()).ok());
  for (std::size_t bit = 0; bit < Summed().size() * 8; ++bit) {
    std::vector<std::byte> wrong = Summed();
    wrong[bit / 8] ^= static_cast<std::byte>(1 << (bit % 8));
    const Result<FrameVerdict> verdict = JudgeSummed(wrong);
    ASSERT_FALSE(verdict.ok()) << "bit " << bit;
    EXPECT_THAT(verdict.status().message(), HasSubstr("rank 3"));
    if (bit >= kFrameHeaderBytes * 8) {
      EXPECT_THAT(verdict.status().message(), HasSubstr("a payload of 10 bytes with checksum 0x"));
    }
  }
}

TEST(Frame, ThePayloadChecksumIsXxh3) {
  FrameHeader header;
  Seal(header, {}, /*payload_checksum=*/true);
  EXPECT_EQ(header.payload_checksum, 0x2d06'8005'38d3'94c2u) << "of no bytes, as published";
}

TEST(Frame, BothEndsCheckPayloadsOrNone) {
  EXPECT_THAT(Complaint(Summed()), HasSubstr("with a checksum of its payload, which this end does not expect"));
  EXPECT_THAT(JudgeSummed(Frame(Reply(), 10)).status().message(),
              HasSubstr("without a checksum of its payload, which this end expects"));
  FrameHeader header = Reply();
  header.payload_checksum = 5;
  EXPECT_THAT(Complaint(Frame(header, 10)), HasSubstr("checksum 0x5, but what arrived has 0x0"));
}

TEST(Frame, StaleRepliesAreDroppedAndFutureOnesRefused) {
  FrameHeader header = Reply();
  header.sequence = 6;
  EXPECT_EQ(*Judge(Frame(header, 10)), FrameVerdict::kDrop);
  header.epoch = 1;
  header.sequence = 8;
  EXPECT_EQ(*Judge(Frame(header, 10)), FrameVerdict::kDrop) << "an older epoch, whatever the sequence";
  header.epoch = 2;
  EXPECT_THAT(Complaint(Frame(header, 10)), HasSubstr("epoch 2, sequence 8"));
  header.epoch = 3;
  header.sequence = 1;
  EXPECT_THAT(Complaint(Frame(header, 10)), HasSubstr("epoch 3, sequence 1"));
}

TEST(Frame, AnErrorFrameCarriesItsSentence) {
  FrameHeader header = Reply(4);
  header.kind = FrameKind::kError;
  header.sequence = 0;  // whatever it says
  std::vector<std::byte> frame = Frame(header, 4);
  std::memcpy(frame.data() + kFrameHeaderBytes, "oops", 4);
  EXPECT_EQ(Complaint(frame), "rank 3 refused a request: oops");
  header.epoch = 1;
  EXPECT_EQ(*Judge(Frame(header, 4)), FrameVerdict::kDrop) << "an error of an older connection";
}

TEST(Frame, AClosedPeerIsNamed) {
  FrameHeader header = Reply(0);
  header.kind = FrameKind::kClose;
  EXPECT_EQ(Complaint(Frame(header, 0)), "rank 3 has closed its end of the transport");
  header.epoch = 1;
  EXPECT_EQ(*Judge(Frame(header, 0)), FrameVerdict::kDrop) << "the end of an older connection";
}

TEST(Frame, RequestsAreJudgedByEpochAndTheSequenceBefore) {
  const auto judge = [](std::uint64_t epoch, std::uint64_t sequence, FrameKind kind = FrameKind::kRequest) {
    return JudgeRequest(Frame({.kind = kind, .epoch = epoch, .sequence = sequence, .payload_bytes = 1}, 1),
                        {.peer = Rank(0), .epoch = 2, .last_sequence = 5, .max_payload_bytes = kLimit});
  };
  EXPECT_EQ(*judge(2, 6), FrameVerdict::kAccept);
  EXPECT_EQ(*judge(2, 60), FrameVerdict::kAccept);
  EXPECT_EQ(*judge(2, 5), FrameVerdict::kDrop);
  EXPECT_EQ(*judge(1, 6), FrameVerdict::kDrop);
  EXPECT_EQ(judge(3, 6).status().code(), StatusCode::kInternal);
  EXPECT_THAT(judge(2, 6, FrameKind::kReply).status().message(), HasSubstr("kind 2 instead of a request"));
  EXPECT_THAT(judge(3, 6).status().message(), HasSubstr("rank 0"));
}

}  // namespace
}  // namespace moe
