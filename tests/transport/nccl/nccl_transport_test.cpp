#include "transport/nccl/nccl_transport.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/contract/scripted_worker.h"
#include "tests/contract/transport_contract.h"
#include "tests/transport/nccl/nccl_threads.h"
#include "transport/fault_injection.h"
#include "transport/nccl/nccl_message.h"

namespace moe {
namespace {

using testing::AllOf;
using testing::HasSubstr;

void ServeScripted(int /*worker*/, Result<std::unique_ptr<WorkerEndpoint>> endpoint) {
  // A router that fails at its first step may be gone before a worker has seen that it is connected.
  if (endpoint.status().code() == StatusCode::kUnavailable) return;
  MOE_CHECK(endpoint.ok(), endpoint.status().message());
  RunScriptedWorker(**endpoint);
}

class NcclHarness final : public TransportHarness {
 public:
  explicit NcclHarness(const NcclThreadsOptions& options) : threads_(options) {
    Result<std::unique_ptr<Transport>> made = threads_.Connect(ServeScripted);
    MOE_CHECK(made.ok(), made.status().message());
    transport_ = *std::move(made);
  }

  Transport& transport() override { return *transport_; }
  NcclThreads& threads() { return threads_; }
  void EndRouter() { transport_.reset(); }

 private:
  NcclThreads threads_;
  std::unique_ptr<Transport> transport_;
};

// The contract's harness, with faults in the taps of both ends.
class NcclContractHarness final : public TransportHarness {
 public:
  NcclContractHarness(const HarnessOptions& options, std::size_t small_bytes)
      : injector_(options.faults),
        inner_({.limits = options.limits,
                .num_workers = options.num_workers,
                .small_bytes = small_bytes,
                .tap = &injector_}) {}
  Transport& transport() override { return inner_.transport(); }

 private:
  FaultInjector injector_;
  NcclHarness inner_;
};

HarnessFactory WithSmallBytes(std::size_t small_bytes) {
  return [small_bytes](const HarnessOptions& options) {
    return std::make_unique<NcclContractHarness>(options, small_bytes);
  };
}

// Messages of one part and of two, as their sizes fall; and nearly all of one part.
MOE_INSTANTIATE_TRANSPORT_CONTRACT(Nccl, TransportContractParam{"both_forms", WithSmallBytes(256)});
INSTANTIATE_TEST_SUITE_P(NcclInOnePart, TransportContract,
                         testing::Values(TransportContractParam{"one_part", WithSmallBytes(kNcclSmallBytes)}),
                         [](const auto& test) { return test.param.name; });

constexpr TransportLimits kLimits{.max_request_bytes = 128, .max_reply_bytes = 128, .max_exchanges = 2};

Deadline Generous() { return After(std::chrono::minutes(2)); }

std::size_t Count(const std::vector<FakeNcclRecord>& records, FakeNcclCall call) {
  return static_cast<std::size_t>(std::ranges::count(records, call, &FakeNcclRecord::call));
}

// `bytes` to everyone, echoed.
Status EchoOnce(Transport& transport, Exchange& exchange, std::size_t bytes) {
  for (int w = 0; w < transport.num_workers(); ++w) {
    exchange.request(WorkerId(w))[0] = static_cast<std::byte>(Command::kEcho);
  }
  const std::vector<std::size_t> sizes(static_cast<std::size_t>(transport.num_workers()), bytes);
  MOE_RETURN_IF_ERROR(exchange.Start(sizes));
  return exchange.Wait(Generous());
}

// One good exchange, then what one with the faulty worker alone ends in.
Status OutcomeOf(FaultKind kind, std::size_t small_bytes, std::chrono::milliseconds patience) {
  FaultInjector injector({{.kind = kind, .worker = WorkerId(1), .exchange = 1}});
  TransportLimits limits = kLimits;
  limits.payload_checksums = true;
  NcclHarness harness({.limits = limits, .small_bytes = small_bytes, .tap = &injector});
  const auto exchange = harness.transport().MakeExchange();
  EXPECT_TRUE(EchoOnce(harness.transport(), *exchange, 32).ok());
  EXPECT_TRUE(exchange->Start(std::vector<std::size_t>{0, 32, 0}).ok());
  return exchange->Wait(After(patience));
}

TEST(Nccl, LostFramesEndInTheDeadlineAndNameTheRank) {
  for (const FaultKind kind :
       {FaultKind::kDropRequest, FaultKind::kDropReply, FaultKind::kStaleReply, FaultKind::kDeadPeer}) {
    const Status status = OutcomeOf(kind, kNcclSmallBytes, std::chrono::milliseconds(30));
    EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
    EXPECT_THAT(status.message(), HasSubstr("no reply from rank 2 before"));
  }
}

TEST(Nccl, MangledFramesAreUnavailableAndSayWhatIsWrong) {
  const std::vector<std::pair<FaultKind, std::string>> complaints = {
      {FaultKind::kCorruptReplyLength, "says 33 payload bytes, but 32 arrived"},
      {FaultKind::kOversizeReplyLength, "payload bytes, over the limit of 128"},
      {FaultKind::kFlipReplyHeaderBit, "checksum"},
      {FaultKind::kWrongReplyMagic, "magic"},
      {FaultKind::kCorruptReplyPayload, "payload of 32 bytes with checksum"},
      {FaultKind::kCorruptRequestLength, "refused a request: rank 0 sent a frame that says 33 payload bytes, but 32"},
      {FaultKind::kCorruptRequestPayload, "refused a request: rank 0 sent a payload of 32 bytes with checksum"},
  };
  for (const auto& [kind, complaint] : complaints) {
    for (const std::size_t small_bytes : {kNcclSmallBytes, std::size_t{0}}) {
      const Status status = OutcomeOf(kind, small_bytes, std::chrono::minutes(2));
      EXPECT_EQ(status.code(), StatusCode::kUnavailable);
      EXPECT_THAT(status.message(), AllOf(HasSubstr("rank 2"), HasSubstr(complaint)));
    }
  }
}

TEST(Nccl, TheTransportDescribesItself) {
  NcclHarness harness({.limits = kLimits});
  EXPECT_EQ(harness.transport().name(), "nccl");
  EXPECT_EQ(harness.transport().memory_space(), MemorySpace::kHost);
  EXPECT_EQ(harness.transport().num_workers(), 3);
  EXPECT_EQ(harness.transport().rank(WorkerId(2)), Rank(3));
}

// The calls of one exchange at the router, of the wanted kinds.
std::vector<FakeNcclRecord> CallsOfOneExchange(std::size_t small_bytes, std::size_t payload_bytes) {
  NcclHarness harness({.limits = kLimits, .small_bytes = small_bytes});
  const std::size_t before = harness.threads().nccl(0).records().size();
  {
    const auto exchange = harness.transport().MakeExchange();
    EXPECT_TRUE(EchoOnce(harness.transport(), *exchange, payload_bytes).ok());
  }
  std::vector<FakeNcclRecord> records = harness.threads().nccl(0).records();
  records.erase(records.begin(), records.begin() + static_cast<std::ptrdiff_t>(before));
  return records;
}

TEST(Nccl, ASmallExchangeIsOneGroupOfReceivesAndThenSends) {
  const std::vector<FakeNcclRecord> records = CallsOfOneExchange(64, 64);
  std::vector<FakeNcclCall> calls;
  for (const FakeNcclRecord& record : records) calls.push_back(record.call);
  using enum FakeNcclCall;
  EXPECT_THAT(calls, testing::ElementsAre(kGroupStart, kReceive, kReceive, kReceive, kSend, kSend, kSend, kGroupEnd));
  std::vector<void*> streams;
  for (const FakeNcclRecord& record : records) {
    if (record.communicator == 0) continue;
    EXPECT_EQ(record.bytes, kNcclPayloadOffset + 64);
    streams.push_back(record.stream.handle);
  }
  std::ranges::sort(streams);
  EXPECT_EQ(std::ranges::adjacent_find(streams), streams.end()) << "a lane has a stream of its own";
}

TEST(Nccl, ALargeExchangeSendsTheRestInASecondGroup) {
  const std::vector<FakeNcclRecord> records = CallsOfOneExchange(64, 100);
  EXPECT_EQ(Count(records, FakeNcclCall::kSend), 6U);
  EXPECT_EQ(Count(records, FakeNcclCall::kReceive), 6U);
  std::size_t rests = 0;
  for (const FakeNcclRecord& record : records) rests += record.bytes == 100 - 64 ? 1 : 0;
  EXPECT_EQ(rests, 6U);
}

TEST(Nccl, ACleanEndFinalizesAndDestroysAndAbortsNothing) {
  NcclHarness harness({.limits = kLimits});
  {
    const auto exchange = harness.transport().MakeExchange();
    ASSERT_TRUE(EchoOnce(harness.transport(), *exchange, 32).ok());
  }
  harness.EndRouter();
  harness.threads().Join();
  for (int rank = 0; rank <= 3; ++rank) {
    const std::vector<FakeNcclRecord> records = harness.threads().nccl(rank).records();
    EXPECT_EQ(Count(records, FakeNcclCall::kAbort), 0U) << "rank " << rank;
    EXPECT_EQ(Count(records, FakeNcclCall::kFinalize), rank == 0 ? 6U : 2U);
    EXPECT_EQ(Count(records, FakeNcclCall::kDestroy), rank == 0 ? 6U : 2U);
  }
}

TEST(Nccl, AReplyThatNeverComesIsAborted) {
  NcclHarness harness({.limits = kLimits});
  {
    const auto exchange = harness.transport().MakeExchange();
    exchange->request(WorkerId(1))[0] = static_cast<std::byte>(Command::kSilent);
    ASSERT_TRUE(exchange->Start(std::vector<std::size_t>{0, sizeof(CommandHeader), 0}).ok());
    ASSERT_EQ(exchange->Wait(After(std::chrono::milliseconds(20))).code(), StatusCode::kDeadlineExceeded);
  }
  harness.EndRouter();
  harness.threads().Join();
  EXPECT_GE(Count(harness.threads().nccl(0).records(), FakeNcclCall::kAbort), 1U);
}

TEST(Nccl, AnAsynchronousErrorEndsTheExchangeAndNamesTheRank) {
  NcclHarness harness({.limits = kLimits});
  const auto exchange = harness.transport().MakeExchange();
  exchange->request(WorkerId(2))[0] = static_cast<std::byte>(Command::kSilent);
  ASSERT_TRUE(exchange->Start(std::vector<std::size_t>{0, 0, sizeof(CommandHeader)}).ok());
  // The router makes a lane to each worker and one back, in order: the fifth and sixth are rank 3's.
  harness.threads().nccl(0).FailLater(6, Unavailable("NCCL: unhandled system error"));
  const Status status = exchange->Wait(Generous());
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("rank 3"), HasSubstr("unhandled system error")));
}

TEST(Nccl, AWorkerWhoseRouterAbortsEnds) {
  NcclHarness harness({.limits = kLimits});
  for (int communicator = 1; communicator <= 6; ++communicator) {
    harness.threads().nccl(0).FailLater(communicator, Unavailable("NCCL: gone"));
  }
  const auto exchange = harness.transport().MakeExchange();
  EXPECT_EQ(EchoOnce(harness.transport(), *exchange, 8).code(), StatusCode::kUnavailable);
}  // the harness waits for the workers

TEST(Nccl, FailuresOfEveryCallAreUnavailable) {
  for (const FakeNcclCall call :
       {FakeNcclCall::kGroupStart, FakeNcclCall::kGroupEnd, FakeNcclCall::kSend, FakeNcclCall::kReceive}) {
    NcclHarness harness({.limits = kLimits});
    const auto exchange = harness.transport().MakeExchange();
    harness.threads().nccl(0).FailCall(call, 1, Unavailable("NCCL: made to fail"));
    const Status status = EchoOnce(harness.transport(), *exchange, 8);
    EXPECT_EQ(status.code(), StatusCode::kUnavailable);
    EXPECT_THAT(status.message(), HasSubstr("made to fail"));
  }
}

TEST(Nccl, FailuresOfTheDeviceAreUnavailableAndNameTheRank) {
  for (const FakeCall call : {FakeCall::kCopyToDevice, FakeCall::kCopyToHost, FakeCall::kRecordEvent}) {
    NcclHarness harness({.limits = kLimits});
    const auto exchange = harness.transport().MakeExchange();
    harness.threads().device(0).FailCall(call, 2, Internal("cudaErrorIllegalAddress"));
    const Status status = EchoOnce(harness.transport(), *exchange, 8);
    EXPECT_EQ(status.code(), StatusCode::kUnavailable);
    EXPECT_THAT(status.message(), AllOf(HasSubstr("rank 2"), HasSubstr("cudaErrorIllegalAddress")));
  }
}

// What the router and the first worker say when the ends are made with `change`.
std::pair<Status, Status> FailToConnect(const NcclThreadsOptions& options, const NcclThreads::Change& change) {
  NcclThreads threads(options);
  Status at_worker;
  const auto serve = [&](int worker, Result<std::unique_ptr<WorkerEndpoint>> endpoint) {
    if (worker == 0) at_worker = endpoint.status();
  };
  const Status at_router = threads.Connect(serve, change).status();
  threads.Join();
  return {at_router, at_worker};
}

TEST(Nccl, RanksThatDisagreeOnLimitsBothRefuse) {
  const auto [router, worker] =
      FailToConnect({.limits = kLimits, .num_workers = 1}, [](int rank, NcclTransportOptions& options) {
        if (rank == 1) options.limits.max_request_bytes += 8;
      });
  for (const Status& status : {router, worker}) {
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(), AllOf(HasSubstr("128"), HasSubstr("136"), HasSubstr("rank 1"), HasSubstr("rank 0")));
  }
}

TEST(Nccl, ARankThatDoesNotComeIsNamed) {
  NcclThreads threads({.limits = kLimits, .num_workers = 0});
  const Status status = MakeNcclTransport(threads.nccl(0), threads.device(0),
                                          {.limits = kLimits,
                                           .rank = 0,
                                           .num_ranks = 3,
                                           .share = [](const std::string& bytes) { return Result<std::string>(bytes); },
                                           .connect_timeout = std::chrono::milliseconds(20)})
                            .status();
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(status.message(), HasSubstr("no NCCL connection with ranks 1, 2 within 20 ms"));
}

TEST(Nccl, WhatKeepsTheRouterFromStartingIsToldToTheWorkers) {
  NcclThreads threads({.limits = kLimits, .num_workers = 2});
  threads.nccl(0).FailCall(FakeNcclCall::kGetUniqueId, 1, Unavailable("ncclGetUniqueId: no network"));
  std::vector<Status> at_workers(2);
  const Status status = threads
                            .Connect([&](int worker, Result<std::unique_ptr<WorkerEndpoint>> endpoint) {
                              at_workers[static_cast<std::size_t>(worker)] = endpoint.status();
                            })
                            .status();
  threads.Join();
  at_workers.push_back(status);
  for (const Status& each : at_workers) {
    EXPECT_EQ(each.code(), StatusCode::kUnavailable);
    EXPECT_THAT(each.message(), HasSubstr("rank 0: ncclGetUniqueId: no network"));
  }
}

TEST(Nccl, AFailureWhileConnectingLeavesNothingBehind) {
  for (const FakeCall call : {FakeCall::kAllocateDevice, FakeCall::kAllocatePinned, FakeCall::kCreateStream,
                              FakeCall::kCreateEvent, FakeCall::kSetDevice}) {
    for (int nth = 1; nth <= (call == FakeCall::kSetDevice ? 1 : 3); ++nth) {
      NcclThreads threads({.limits = kLimits, .num_workers = 0});
      threads.device(0).FailCall(call, nth, ResourceExhausted("no more of that"));
      const Status status =
          MakeNcclTransport(threads.nccl(0), threads.device(0),
                            {.limits = kLimits,
                             .rank = 0,
                             .num_ranks = 3,
                             .share = [](const std::string& bytes) { return Result<std::string>(bytes); },
                             .connect_timeout = std::chrono::milliseconds(1)})
              .status();
      EXPECT_THAT(status.message(), HasSubstr("no more of that"));
    }
  }
}  // the fakes look for leaks

TEST(Nccl, OneRankIsNoJob) {
  NcclThreads threads({.limits = kLimits, .num_workers = 0});
  const Status status =
      MakeNcclTransport(threads.nccl(0), threads.device(0), {.limits = kLimits, .rank = 0, .num_ranks = 1}).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("at least 2 ranks"));
}

TEST(NcclMessage, APreambleThatContradictsItselfIsRefused) {
  std::vector<std::byte> message(kNcclPayloadOffset);
  WriteNcclPreamble(100, message);
  EXPECT_EQ(*ReadNcclPreamble(message, 100, Rank(4)), 100U);
  EXPECT_THAT(ReadNcclPreamble(message, 99, Rank(4)).status().message(), AllOf(HasSubstr("rank 4"), HasSubstr("100")));
  message[0] ^= std::byte{1};
  EXPECT_EQ(ReadNcclPreamble(message, 1000, Rank(4)).status().code(), StatusCode::kUnavailable);
}

TEST(Nccl, AReplyToARouterThatIsGoneIsHarmless) {
  NcclThreads threads({.limits = kLimits, .num_workers = 1});
  std::promise<void> gone;
  Status at_end;
  Result<std::unique_ptr<Transport>> transport =
      threads.Connect([&](int, Result<std::unique_ptr<WorkerEndpoint>> endpoint) {
        MOE_CHECK(endpoint.ok(), endpoint.status().message());
        const auto request = (*endpoint)->Receive(Generous());
        MOE_CHECK(request.ok() && request->has_value());
        gone.get_future().wait();
        EXPECT_EQ((*request)->payload[0], std::byte{7});
        EXPECT_TRUE((*endpoint)->Reply(**request, 4).ok());
        at_end = (*endpoint)->Receive(Generous()).status();
      });
  ASSERT_TRUE(transport.ok());
  auto exchange = (*transport)->MakeExchange();
  exchange->request(WorkerId(0))[0] = std::byte{7};
  ASSERT_TRUE(exchange->Start(std::vector<std::size_t>{8}).ok());
  exchange.reset();
  transport->reset();
  gone.set_value();
  threads.Join();
  EXPECT_EQ(at_end.code(), StatusCode::kUnavailable);
}

TEST(Nccl, AStreamOfWorkIsNeverTheDefaultOne) {
  NcclHarness harness({.limits = kLimits});
  const auto exchange = harness.transport().MakeExchange();
  ASSERT_TRUE(EchoOnce(harness.transport(), *exchange, 32).ok());
  for (int rank = 0; rank <= 3; ++rank) {
    for (const FakeNcclRecord& record : harness.threads().nccl(rank).records()) {
      EXPECT_EQ(record.stream.handle != nullptr, record.bytes > 0);
    }
  }
}

// What the workers find when the other end goes without a word and nobody tells them: their own deadline.
TEST(Nccl, APeerThatIsNotHeardOfAgainDoesNotKeepAnEndFromGoing) {
  NcclThreads threads({.limits = kLimits, .num_workers = 1, .aborts_are_noticed = false});
  Result<std::unique_ptr<Transport>> transport =
      threads.Connect([](int, Result<std::unique_ptr<WorkerEndpoint>> endpoint) {
        MOE_CHECK(endpoint.ok(), endpoint.status().message());
        const auto request = (*endpoint)->Receive(Generous());
        MOE_CHECK(request.ok() && request->has_value());
        endpoint->reset();
      });
  ASSERT_TRUE(transport.ok());
  auto exchange = (*transport)->MakeExchange();
  ASSERT_TRUE(exchange->Start(std::vector<std::size_t>{8}).ok());
  EXPECT_THAT(exchange->Wait(Generous()).message(), HasSubstr("rank 1 has closed its end"));
  exchange.reset();
  transport->reset();
}

}  // namespace
}  // namespace moe
