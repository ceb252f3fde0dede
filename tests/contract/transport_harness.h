// What the contract of transports is run on, and what its tests have in common.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tests/contract/scripted_worker.h"
#include "transport/fault_injection.h"
#include "transport/transport.h"

namespace moe {

/// A transport and its running workers. Destroying it destroys the router's end and waits for the workers to end.
class TransportHarness {
 public:
  virtual ~TransportHarness() = default;
  virtual Transport& transport() = 0;
  /// Whether the library under the transport allocates for each message. gRPC does; of ours nothing may even then, but
  /// a count of all allocations cannot tell whose they are.
  virtual bool library_allocates() const { return false; }
};

struct HarnessOptions {
  TransportLimits limits;
  int num_workers = 3;
  FaultScript faults;  // for the taps of both ends
};

/// How to make one; nullptr when it cannot have so many workers (the ranks of an MPI job are given).
using HarnessFactory = std::function<std::unique_ptr<TransportHarness>(const HarnessOptions&)>;

struct TransportContractParam {
  std::string name;
  HarnessFactory make;
};

inline void PrintTo(const TransportContractParam& param, std::ostream* out) { *out << param.name; }

class TransportContract : public testing::TestWithParam<TransportContractParam> {
 protected:
  using Sizes = std::vector<std::size_t>;

  static constexpr std::size_t kLimit = 512;

  static TransportLimits Limits() {
    return {.max_request_bytes = kLimit, .max_reply_bytes = kLimit, .max_exchanges = 3};
  }

  // A job whose ranks are too few or too many for a test skips it; it is run with others too.
  void SetUp() override { Make({.limits = Limits()}); }

  void Make(const HarnessOptions& options) {
    harness_.reset();
    harness_ = GetParam().make(options);
    if (harness_ == nullptr) GTEST_SKIP() << "there are no " << options.num_workers << " workers here";
    ASSERT_EQ(transport().num_workers(), options.num_workers);
  }
  void Make(const TransportLimits& limits) { Make(HarnessOptions{.limits = limits}); }

  Transport& transport() { return harness_->transport(); }
  std::size_t num_workers() { return static_cast<std::size_t>(transport().num_workers()); }
  static WorkerId Worker(std::size_t w) { return WorkerId(static_cast<int>(w)); }
  Sizes Everyone(std::size_t bytes) { return Sizes(num_workers(), bytes); }
  Sizes Only(std::size_t worker, std::size_t bytes) {
    Sizes sizes(num_workers());
    sizes[worker] = bytes;
    return sizes;
  }
  // "rank 3", as it stands in messages.
  std::string RankName(std::size_t worker) { return Cat("rank ", transport().rank(Worker(worker))); }

  static Deadline Generous() { return After(std::chrono::minutes(2)); }
  static Deadline Short() { return After(std::chrono::milliseconds(30)); }

  static std::size_t WriteCommand(Exchange& exchange, std::size_t worker, const CommandHeader& header) {
    std::memcpy(exchange.request(Worker(worker)).data(), &header, sizeof(header));
    return sizeof(header);
  }
  // Fills all requests with bytes that differ by worker and by `seed`, to be echoed.
  void WriteEcho(Exchange& exchange, std::uint64_t seed) {
    for (std::size_t w = 0; w < num_workers(); ++w) {
      FillPattern(seed * 1000 + w, exchange.request(Worker(w)));
      exchange.request(Worker(w))[0] = static_cast<std::byte>(Command::kEcho);
    }
  }
  // One command to everyone, and its replies.
  void RunCommand(Exchange& exchange, const CommandHeader& header) {
    for (std::size_t w = 0; w < num_workers(); ++w) WriteCommand(exchange, w, header);
    ASSERT_TRUE(exchange.Start(Everyone(sizeof(header))).ok());
    const Status status = exchange.Wait(Generous());
    ASSERT_TRUE(status.ok()) << status.message();
  }
  void ExpectEchoes(Exchange& exchange, const Sizes& sizes) {
    for (std::size_t w = 0; w < sizes.size(); ++w) {
      const std::span<const std::byte> reply = exchange.reply(Worker(w));
      ASSERT_EQ(reply.size(), sizes[w]) << RankName(w);
      if (reply.empty()) continue;
      ASSERT_EQ(std::memcmp(reply.data(), exchange.request(Worker(w)).data(), reply.size()), 0) << RankName(w);
    }
  }
  void EchoOnce(Exchange& exchange, const Sizes& sizes, std::uint64_t seed) {
    WriteEcho(exchange, seed);
    ASSERT_TRUE(exchange.Start(sizes).ok());
    const Status status = exchange.Wait(Generous());
    ASSERT_TRUE(status.ok()) << status.message();
    ExpectEchoes(exchange, sizes);
  }
  // What the exchange ends in. A peer that is gone or sends nonsense may be met before Start has sent all.
  static Status StartAndWait(Exchange& exchange, const Sizes& sizes, Deadline deadline) {
    const Status status = exchange.Start(sizes);
    return status.ok() ? exchange.Wait(deadline) : status;
  }
  // Lets the exchange fail because worker `silent`, asked alone, says nothing.
  Status FailBySilence(Exchange& exchange, std::size_t silent) {
    WriteCommand(exchange, silent, {.command = Command::kSilent});
    EXPECT_TRUE(exchange.Start(Only(silent, sizeof(CommandHeader))).ok());
    return exchange.Wait(Short());
  }
  template <typename T>
  T ReplyAs(const Exchange& exchange, std::size_t worker) {
    T value{};
    EXPECT_EQ(exchange.reply(Worker(worker)).size(), sizeof(T));
    std::memcpy(&value, exchange.reply(Worker(worker)).data(),
                std::min(sizeof(T), exchange.reply(Worker(worker)).size()));
    return value;
  }

  std::unique_ptr<TransportHarness> harness_;
};

}  // namespace moe
