// A worker's loop over the in-process transport, with real experts behind it, for the tests of it.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "experts/worker.h"
#include "kernels/weight_type.h"
#include "test_folders.h"
#include "tests/kernels/kernel_cases.h"
#include "transport/fault_injection.h"
#include "transport/in_process.h"

namespace moe {

using Pairs = std::vector<DispatchPair>;

inline constexpr std::size_t kHidden = 56;
inline constexpr std::size_t kMaxPairs = 32;
inline constexpr std::uint32_t kLayer = 1;
inline constexpr std::uint64_t kGeneration = 7;
inline constexpr TransportLimits kLimits{
    .max_request_bytes = 64 * 1024, .max_reply_bytes = kMaxControlBytes, .max_exchanges = 2};

inline Deadline Generous() { return After(std::chrono::minutes(2)); }

/// Experts 3, 0 and 5 of layer 1 of a golden model, one slot of layer 2, none of layer 0.
inline Placement TestPlacement() {
  return {.generation = kGeneration,
          .num_experts = 6,
          .workers = 1,
          .layers = {{0, {{}}}, {static_cast<int>(kLayer), {{3, 0, 5}}}, {2, {{1}}}}};
}

/// A golden model.
struct Model {
  explicit Model(const std::string& golden)
      : folder(std::filesystem::path(MOE_SOURCE_DIR) / "tests/goldens" / golden),
        config(*ReadModelConfig(folder)),
        checkpoint(*Checkpoint::Open(folder)) {}

  ExpertShard LoadShard(const Placement& placement, ThreadPool& pool) const {
    return *ExpertShard::Load(config, checkpoint, placement, WorkerId(0), WeightType::kF32, pool);
  }
  Result<MlpWeights> LoadExpert(int layer, int expert) const {
    return LoadExpertWeights(config, checkpoint, layer, expert, WeightType::kF32);
  }

  const std::filesystem::path folder;
  const ModelConfig config;
  const Checkpoint checkpoint;
};

inline InProcessEnds MakeEnds(int routers, const TransportLimits& limits, FrameTap* tap) {
  Result<InProcessEnds> ends = MakeInProcess({.limits = limits, .num_routers = routers, .tap = tap});
  MOE_CHECK(ends.ok(), ends.status().message());
  return *std::move(ends);
}

/// What a router sends: pairs over rows that depend on `seed`.
struct Request {
  Pairs pairs;
  std::uint32_t rows = 1;
  std::uint32_t seed = 0;
  std::uint32_t layer = kLayer;
  std::uint64_t generation = kGeneration;
  std::uint32_t hidden = kHidden;
  ExchangeType type = ExchangeType::kF32;

  DispatchShape shape() const {
    return {.layer = layer,
            .generation = generation,
            .rows = rows,
            .pairs = static_cast<std::uint32_t>(pairs.size()),
            .hidden = hidden,
            .type = type};
  }
  std::vector<float> Row(std::size_t row) const {
    return RandomValues(hidden, seed * 1000 + static_cast<std::uint32_t>(row));
  }
  std::size_t Write(std::span<std::byte> buffer) const {
    const DispatchWriter writer(buffer, shape());
    std::copy(pairs.begin(), pairs.end(), writer.pairs().begin());
    for (std::size_t row = 0; row < rows; ++row) writer.SetRow(row, Row(row));
    return writer.bytes();
  }
};

/// The reply to the first `bytes` bytes of the exchange's request.
inline std::span<const std::byte> Ask(Exchange& exchange, std::size_t bytes) {
  const std::size_t sizes[] = {bytes};
  const Status started = exchange.Start(sizes);
  MOE_CHECK(started.ok(), started.message());
  const Status done = exchange.Wait(Generous());
  MOE_CHECK(done.ok(), done.message());
  return exchange.reply(WorkerId(0));
}

class WorkerTest : public ::testing::Test {
 protected:
  explicit WorkerTest(const std::string& golden = "mixtral", const Placement& placement = TestPlacement())
      : model_(golden),
        pool_(1),
        shard_(model_.LoadShard(placement, pool_)),
        hidden_(shard_.Find(kLayer)->weights[0]->down.rows()) {
    views_.HoldForAll(placement.generation, std::make_shared<const ExpertShard>(shard_));
    reference_ =
        MakeCpuExpertBackend(SimdKernels(), pool_, {.rows = 1, .mlps = 8, .hidden = hidden_, .intermediate = 64});
  }
  ~WorkerTest() override { (void)Stop(); }

  /// Runs the loop on a thread of its own, or ServeFailure when `failure` is one.
  void Start(int routers = 1, TransportLimits limits = kLimits, Status failure = {}, FrameTap* tap = nullptr) {
    InProcessEnds ends = MakeEnds(routers, limits, tap);
    routers_ = std::move(ends.routers);
    exchange_ = router(0).MakeExchange();
    thread_ = std::thread([this, failure, endpoint = std::move(ends.workers[0])]() mutable {
      ThreadPool pool(2);
      const auto backend = MakeCpuExpertBackend(SimdKernels(), pool,
                                                {.rows = kMaxPairs, .mlps = 8, .hidden = hidden_, .intermediate = 64});
      Worker worker(
          {.hidden = hidden_, .max_pairs = kMaxPairs, .max_slots = 8}, [this] { return description_; }, views_,
          *backend, pool, totals_, [this](const DispatchFigures& figures) { observed_.push_back(figures); });
      result_ = failure.ok() ? worker.Run(*endpoint) : ServeFailure(*endpoint, failure);
      endpoint.reset();
    });
  }

  /// Closes the routers' ends and gives what the loop returned.
  Status Stop() {
    exchange_.reset();
    routers_.clear();
    return Join();
  }
  Status Join() {
    if (thread_.joinable()) thread_.join();
    return result_;
  }

  Transport& router(std::size_t r) { return *routers_[r]; }

  /// What the expert in `slot` makes of a row that has travelled there and back.
  std::vector<float> Expected(const Request& request, const DispatchPair& pair) const {
    const auto travel = [&](std::vector<float>& values) {
      if (request.type == ExchangeType::kBf16)
        for (float& value : values) value = Bf16ToF32(F32ToBf16(value));
    };
    std::vector<float> in = request.Row(pair.row);
    travel(in);
    const ExpertShard::Layer& all = *shard_.Find(request.layer);
    if (all.scales_input)
      for (float& value : in) value *= pair.weight;
    std::vector<std::uint32_t> offsets(all.experts.size() + 1, 0);
    for (std::size_t slot = pair.slot; slot < all.experts.size(); ++slot) offsets[slot + 1] = 1;
    std::vector<float> out(hidden_);
    const Status status = reference_->Run(all, {.offsets = offsets,
                                                .in = MatrixView<const float>(in.data(), 1, hidden_),
                                                .out = MatrixView<float>(out.data(), 1, hidden_)});
    EXPECT_TRUE(status.ok()) << status.message();
    travel(out);
    return out;
  }

  void ExpectRightReply(std::span<const std::byte> payload, const Request& request) const {
    const Result<DispatchReplyReader> reply = DispatchReplyReader::Parse(payload, request.shape());
    ASSERT_TRUE(reply.ok()) << reply.status().message();
    std::vector<float> row(hidden_);
    for (std::size_t i = 0; i < request.pairs.size(); ++i) {
      reply->GetRow(i, row);
      ASSERT_TRUE(SameBits(row, Expected(request, request.pairs[i]))) << "pair " << i;
    }
  }
  void ExpectServed(const Request& request) {
    ExpectRightReply(Ask(*exchange_, request.Write(exchange_->request(WorkerId(0)))), request);
  }

  /// The words of the failure that answers `request`, after `spoil` had its way with the payload; the loop goes on.
  template <typename Spoil>
  std::string Refusal(const Request& request, Spoil&& spoil) {
    const std::span<std::byte> buffer = exchange_->request(WorkerId(0));
    const std::size_t bytes = spoil(buffer, request.Write(buffer));
    const Status status = DispatchReplyReader::Parse(Ask(*exchange_, bytes), request.shape()).status();
    EXPECT_EQ(status.code(), StatusCode::kInternal);
    ExpectServed({.pairs = {{.row = 0, .slot = 1}}});
    return status.message();
  }
  std::string Refusal(const Request& request) {
    return Refusal(request, [](std::span<std::byte>, std::size_t bytes) { return bytes; });
  }

  const Model model_;
  ThreadPool pool_;  // of the test itself
  const ExpertShard shard_;
  const std::size_t hidden_;
  std::unique_ptr<ExpertBackend> reference_;
  ExpertViews views_{{.config = model_.config,
                      .types = WeightTypes(WeightType::kF32),
                      .load = [this](int layer, int expert) { return model_.LoadExpert(layer, expert); },
                      .free_memory = [] { return std::uint64_t{0}; }}};
  WorkerDescription description_{.host = "here", .pid = 42, .kernel_target = "avx9", .threads = 2};
  WorkerTotals totals_;
  std::vector<DispatchFigures> observed_;  // read after Stop
  std::vector<std::unique_ptr<Transport>> routers_;
  std::unique_ptr<Exchange> exchange_;
  std::thread thread_;
  Status result_;
};

}  // namespace moe
