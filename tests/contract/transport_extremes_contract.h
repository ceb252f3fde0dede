// The contract of transports at its limits: one worker and sixteen, nothing to say and 16 MiB of it, peers that are
// slow, silent, gone or damage what they send, an end in the middle, and very many exchanges.
#pragma once

#include "tests/contract/transport_harness.h"

namespace moe {

class TransportExtremes : public TransportContract {
 protected:
  // The test makes what it needs.
  void SetUp() override {}

  static TransportLimits Checked(TransportLimits limits) {
    limits.payload_checksums = true;
    return limits;
  }
  // Worker 1 (rank 2) has `kind` in exchange 1; one good exchange with everyone, and then what that with worker 1 ends
  // in. Alone: a busy machine may delay the others beyond a short deadline.
  Status OutcomeOf(FaultKind kind, Deadline deadline, bool payload_checksums = false) {
    TransportLimits limits = Limits();
    limits.payload_checksums = payload_checksums;
    Make({.limits = limits, .faults = {{.kind = kind, .worker = WorkerId(1), .exchange = 1}}});
    if (harness_ == nullptr) return Status::Ok();
    const auto exchange = transport().MakeExchange();
    EchoOnce(*exchange, Everyone(48), 1);
    WriteEcho(*exchange, 2);
    Status status = StartAndWait(*exchange, Only(1, 32), deadline);
    EXPECT_EQ(exchange->Start(Everyone(8)).message(), status.message()) << "not terminal";
    return status;
  }
};

TEST_P(TransportExtremes, OneWorkerIsEnough) {
  Make({.limits = Limits(), .num_workers = 1});
  if (IsSkipped()) return;
  const auto one = transport().MakeExchange();
  const auto two = transport().MakeExchange();
  for (std::uint64_t round = 0; round < 20; ++round) {
    WriteEcho(*one, 2 * round);
    WriteEcho(*two, 2 * round + 1);
    ASSERT_TRUE(one->Start(Everyone(kLimit)).ok());
    ASSERT_TRUE(two->Start(Everyone(1)).ok());
    ASSERT_TRUE(one->Wait(Generous()).ok());
    ASSERT_TRUE(two->Wait(Generous()).ok());
    ASSERT_NO_FATAL_FAILURE(ExpectEchoes(*one, Everyone(kLimit)));
    ASSERT_NO_FATAL_FAILURE(ExpectEchoes(*two, Everyone(1)));
  }
}

TEST_P(TransportExtremes, SixteenWorkersAnswerEach) {
  Make({.limits = Limits(), .num_workers = 16});
  if (IsSkipped()) return;
  EXPECT_EQ(transport().rank(WorkerId(15)).value() - transport().rank(WorkerId(0)).value(), 15);
  const auto exchange = transport().MakeExchange();
  for (std::uint64_t round = 0; round < 20; ++round) {
    Sizes sizes;
    for (std::size_t w = 0; w < 16; ++w) sizes.push_back((round + w) % 5 == 0 ? 0 : 1 + (round * 31 + w * 17) % kLimit);
    ASSERT_NO_FATAL_FAILURE(EchoOnce(*exchange, sizes, round));
  }
}

TEST_P(TransportExtremes, RequestsAndRepliesMayHaveNothingToSay) {
  Make({.limits = {.max_request_bytes = sizeof(CommandHeader), .max_reply_bytes = 0, .max_exchanges = 1}});
  if (IsSkipped()) return;
  const auto exchange = transport().MakeExchange();
  for (int round = 0; round < 10; ++round) {
    ASSERT_NO_FATAL_FAILURE(RunCommand(*exchange, {.command = Command::kReplyBytes}));
    for (std::size_t w = 0; w < num_workers(); ++w) EXPECT_TRUE(exchange->reply(Worker(w)).empty());
    ASSERT_TRUE(exchange->Start(Everyone(0)).ok());
    ASSERT_TRUE(exchange->Wait(Generous()).ok());
  }
}

TEST_P(TransportExtremes, SixteenMebibytesArriveWhole) {
  constexpr std::size_t kHuge = std::size_t{16} << 20;
  Make({.limits = Checked({.max_request_bytes = kHuge, .max_reply_bytes = kHuge, .max_exchanges = 1})});
  if (IsSkipped()) return;
  const auto exchange = transport().MakeExchange();
  ASSERT_NO_FATAL_FAILURE(EchoOnce(*exchange, Everyone(kHuge), 1));
  ASSERT_NO_FATAL_FAILURE(EchoOnce(*exchange, Only(2, kHuge - 1), 2));
}

TEST_P(TransportExtremes, ASlowWorkerIsWaitedFor) {
  Make({.limits = Limits()});
  if (IsSkipped()) return;
  const auto exchange = transport().MakeExchange();
  const auto other = transport().MakeExchange();
  WriteEcho(*exchange, 1);
  WriteEcho(*other, 2);
  WriteCommand(*exchange, 1, {.command = Command::kSlow, .argument = 100});
  ASSERT_TRUE(exchange->Start(Everyone(64)).ok());
  Sizes others = Everyone(64);
  others[1] = 0;
  ASSERT_TRUE(other->Start(others).ok());
  ASSERT_TRUE(other->Wait(Generous()).ok()) << "the others are not held up";
  ASSERT_NO_FATAL_FAILURE(ExpectEchoes(*other, others));
  ASSERT_TRUE(exchange->Wait(Generous()).ok());
  ASSERT_NO_FATAL_FAILURE(ExpectEchoes(*exchange, Everyone(64)));
}

TEST_P(TransportExtremes, LostFramesEndInTheDeadlineAndNameTheRank) {
  for (const FaultKind kind :
       {FaultKind::kDropRequest, FaultKind::kDropReply, FaultKind::kStaleReply, FaultKind::kDeadPeer}) {
    const Status status = OutcomeOf(kind, Short());
    if (IsSkipped()) return;
    EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
    EXPECT_THAT(status.message(), testing::HasSubstr("no reply from " + RankName(1) + " before"));
  }
}

TEST_P(TransportExtremes, DamagedHeadersAreUnavailableAndSayWhatIsWrong) {
  const std::vector<std::pair<FaultKind, std::string>> complaints = {
      {FaultKind::kCorruptReplyLength, "says 33 payload bytes, but 32 arrived"},
      {FaultKind::kOversizeReplyLength, "payload bytes, over the limit of 512"},
      {FaultKind::kFlipReplyHeaderBit, "checksum"},
      {FaultKind::kWrongReplyMagic, "magic"},
      {FaultKind::kWrongReplyVersion, "version"},
      {FaultKind::kCorruptRequestLength, "refused a request: rank 0 sent a frame that says 33 payload bytes, but 32"},
  };
  for (const auto& [kind, complaint] : complaints) {
    const Status status = OutcomeOf(kind, Generous());
    if (IsSkipped()) return;
    EXPECT_EQ(status.code(), StatusCode::kUnavailable);
    EXPECT_THAT(status.message(), testing::AllOf(testing::HasSubstr(RankName(1)), testing::HasSubstr(complaint)));
  }
}

TEST_P(TransportExtremes, DamagedPayloadsAreNoticedWhereTheyCarryChecksums) {
  const std::vector<std::pair<FaultKind, std::string>> complaints = {
      {FaultKind::kCorruptReplyPayload, "sent a payload of 32 bytes with checksum 0x"},
      {FaultKind::kCorruptRequestPayload, "refused a request: rank 0 sent a payload of 32 bytes with checksum 0x"},
  };
  for (const auto& [kind, complaint] : complaints) {
    const Status status = OutcomeOf(kind, Generous(), /*payload_checksums=*/true);
    if (IsSkipped()) return;
    EXPECT_EQ(status.code(), StatusCode::kUnavailable);
    EXPECT_THAT(status.message(), testing::AllOf(testing::HasSubstr(RankName(1)), testing::HasSubstr(complaint)));
  }
}

TEST_P(TransportExtremes, WithoutChecksumsDamagedPayloadsPass) {
  EXPECT_TRUE(OutcomeOf(FaultKind::kCorruptReplyPayload, Generous()).ok()) << "or the test above shows nothing";
}

TEST_P(TransportExtremes, AnEndInMidExchangeEndsEverything) {
  for (const bool silent : {true, false}) {
    Make({.limits = Limits()});
    if (IsSkipped()) return;
    auto one = transport().MakeExchange();
    auto two = transport().MakeExchange();
    WriteEcho(*one, 1);
    WriteEcho(*two, 2);
    if (silent) WriteCommand(*one, 1, {.command = Command::kSilent});
    ASSERT_TRUE(one->Start(Everyone(kLimit)).ok());
    ASSERT_TRUE(two->Start(Everyone(kLimit)).ok());
    one.reset();
    two.reset();
    harness_.reset();  // returns only when every worker has ended
  }
  // And nothing of it is left in the way of the next.
  Make({.limits = Limits()});
  const auto exchange = transport().MakeExchange();
  ASSERT_NO_FATAL_FAILURE(EchoOnce(*exchange, Everyone(kLimit), 3));
}

// Under a sanitizer a tenth: what it finds it finds in those.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr std::uint64_t kManyExchanges = 10'000;
#else
inline constexpr std::uint64_t kManyExchanges = 100'000;
#endif

TEST_P(TransportExtremes, AHundredThousandExchangesLoseAndDoubleNothing) {
  // Many in flight, so that they follow one another and do not wait for threads to wake up.
  Make({.limits = Checked({.max_request_bytes = kLimit, .max_reply_bytes = kLimit, .max_exchanges = 16})});
  if (IsSkipped()) return;
  constexpr std::uint64_t kExchanges = kManyExchanges;
  std::vector<std::unique_ptr<Exchange>> exchanges;
  for (int i = 0; i < transport().limits().max_exchanges; ++i) exchanges.push_back(transport().MakeExchange());
  std::vector<Sizes> sizes(exchanges.size(), Everyone(0));
  std::vector<std::uint64_t> asked(num_workers());
  // Which of its requests, as the worker counts them, a reply has come to.
  std::vector<std::vector<bool>> answered(num_workers(), std::vector<bool>(kExchanges + 1));
  std::uint64_t random = 1;
  const auto finish = [&](std::size_t i) {
    const Status status = exchanges[i]->Wait(Generous());
    ASSERT_TRUE(status.ok()) << status.message();
    for (std::size_t w = 0; w < num_workers(); ++w) {
      if (sizes[i][w] == 0) continue;
      const auto digest = ReplyAs<Digest>(*exchanges[i], w);
      ASSERT_LE(digest.requests, asked[w]) << RankName(w) << " was asked more often than that";
      ASSERT_FALSE(answered[w][digest.requests]) << "two replies to one request of " << RankName(w);
      answered[w][digest.requests] = true;
      ASSERT_EQ(digest.bytes, sizes[i][w]);
      ASSERT_EQ(digest.hash, HashBytes(exchanges[i]->request(Worker(w)).first(sizes[i][w])));
    }
  };
  for (std::uint64_t n = 0; n < kExchanges + exchanges.size(); ++n) {
    const std::size_t i = n % exchanges.size();
    if (n >= exchanges.size()) {
      ASSERT_NO_FATAL_FAILURE(finish(i));
    }
    if (n >= kExchanges) continue;
    for (std::size_t w = 0; w < num_workers(); ++w) {
      random = random * 6364136223846793005 + 1442695040888963407;
      const std::size_t bytes = sizeof(CommandHeader) + (random >> 33) % (kLimit - sizeof(CommandHeader) + 1);
      sizes[i][w] = (random >> 60) < 11 ? 0 : bytes;
      if (sizes[i][w] > 0) ++asked[w];
      FillPattern(random, exchanges[i]->request(Worker(w)).first(bytes));
      WriteCommand(*exchanges[i], w, {.command = Command::kDigest, .seed = random});
    }
    ASSERT_TRUE(exchanges[i]->Start(sizes[i]).ok());
  }
  for (std::size_t w = 0; w < num_workers(); ++w) {
    EXPECT_EQ(static_cast<std::uint64_t>(std::count(answered[w].begin(), answered[w].end(), true)), asked[w]);
  }
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(TransportExtremes);

}  // namespace moe
