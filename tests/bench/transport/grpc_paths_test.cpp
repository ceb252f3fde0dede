// Exchanges over gRPC in one process: the transport beside its bare stream, and the bare stream alone.
#include "bench/transport/grpc_paths.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "bench/transport/raw_grpc.h"

namespace moe {
namespace {

using testing::HasSubstr;

constexpr ExchangeBytes kLargest{.request = 100'000, .reply = 70'000};

// Bare streams to so many workers, each of which answers what `sizes` says.
class RawStreams {
 public:
  RawStreams(std::size_t workers, const std::vector<ExchangeBytes>& sizes) : ended_(workers) {
    std::vector<std::string> addresses;
    for (std::size_t w = 0; w < workers; ++w) {
      RawGrpcWorker& worker = *workers_.emplace_back(*StartRawGrpcWorker("127.0.0.1:0", kLargest));
      addresses.push_back(worker.address());
      threads_.emplace_back([this, w, sizes, &worker] {
        for (const ExchangeBytes& bytes : sizes)
          if (ended_[w].ok()) ended_[w] = worker.Answer(bytes);
      });
    }
    router_ = *ConnectRawGrpcRouter(addresses, kLargest);
  }

  RouterPath& router() { return *router_; }
  void RouterLeaves() { router_.reset(); }
  void WorkerLeaves(std::size_t w) { workers_[w].reset(); }
  /// What worker `w` ended with.
  const Status& ended(std::size_t w) {
    if (threads_[w].joinable()) threads_[w].join();
    return ended_[w];
  }

 private:
  std::vector<Status> ended_;                            // by worker
  std::vector<std::unique_ptr<RawGrpcWorker>> workers_;  // the same
  std::unique_ptr<RouterPath> router_;
  std::vector<std::jthread> threads_;
};

TEST(RawGrpc, MovesMessagesOfAnySizeUpToTheLargest) {
  const std::vector<ExchangeBytes> sizes = {{.request = 1, .reply = 1}, kLargest, {.request = 64, .reply = 0}};
  RawStreams streams(3, sizes);
  for (const ExchangeBytes& bytes : sizes) {
    const Status status = streams.router().Exchange(bytes, 3);
    EXPECT_TRUE(status.ok()) << status.message();
  }
  for (std::size_t w = 0; w < 3; ++w) EXPECT_TRUE(streams.ended(w).ok());
}

TEST(RawGrpc, LeavesWorkersOut) {
  RawStreams streams(2, {{.request = 8, .reply = 8}});
  EXPECT_TRUE(streams.router().Exchange({.request = 8, .reply = 8}, 1).ok());
  EXPECT_TRUE(streams.ended(0).ok());
  streams.RouterLeaves();
  EXPECT_EQ(streams.ended(1).code(), StatusCode::kUnavailable);
  EXPECT_THAT(streams.ended(1).message(), HasSubstr("the router has left"));
}

TEST(RawGrpc, NoticesAWorkerThatIsGone) {
  RawStreams streams(1, {{.request = 8, .reply = 8}});
  EXPECT_TRUE(streams.router().Exchange({.request = 8, .reply = 8}, 1).ok());
  EXPECT_TRUE(streams.ended(0).ok());
  streams.WorkerLeaves(0);
  const Status status = streams.router().Exchange({.request = 8, .reply = 8}, 1);
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(status.message(), HasSubstr("the stream to raw gRPC worker at 127.0.0.1:"));
}

TEST(RawGrpc, SizesThatDifferAreAnError) {
  RawStreams streams(1, {{.request = 9, .reply = 8}});
  // Its reply never comes; the worker, when it goes, ends the stream.
  std::jthread exchange([&] { (void)streams.router().Exchange({.request = 8, .reply = 8}, 1); });
  EXPECT_THAT(streams.ended(0).message(), HasSubstr("a request of 8 bytes arrived instead of 9"));
  streams.WorkerLeaves(0);
}

TEST(StartRawGrpcWorker, NamesAnAddressThatIsNone) {
  const Result<std::unique_ptr<RawGrpcWorker>> worker = StartRawGrpcWorker("192.0.2.1:0", kLargest);
  ASSERT_FALSE(worker.ok());
  EXPECT_THAT(worker.status().message(), HasSubstr("cannot listen on 192.0.2.1:0"));
}

TEST(GrpcEnds, AreMeasuredInTurnsWithOthers) {
  ExchangeBenchOptions options{.bytes = {64, 5000}, .workers = {3}, .repetitions = 2, .exchanges = 3};
  std::vector<std::unique_ptr<LocalEnds>> ends;
  ends.push_back(*MakeGrpcEnds(options, 3, /*shared_memory=*/true));
  ends.push_back(*MakeInProcessEnds(options, 3));
  const auto results = RunExchangeBenchInProcess(options, 3, ends, [](const ExchangeTest&) {});
  ASSERT_TRUE(results.ok()) << results.status().message();
  ASSERT_EQ(results->size(), 6u);
  for (std::size_t i = 0; i < 6; ++i) {
    const ExchangeResult& result = (*results)[i];
    EXPECT_EQ(result.paths[0].name, i < 3 ? "grpc" : "inprocess");
    EXPECT_EQ(result.paths[1].name, i < 3 ? "raw_grpc" : "memcpy");
    EXPECT_EQ(result.paths[0].exchanges.size(), 6u);
    EXPECT_EQ(result.paths[1].exchanges.size(), 6u);
    EXPECT_EQ(result.one_way_latency(0).has_value(), i % 3 == 0);
  }
}

}  // namespace
}  // namespace moe
