// An ExpertExchange over the in-process transport, with stand-ins for workers and the plain sum to compare with.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <memory>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "core/check.h"
#include "kernels/weight_type.h"
#include "router/expert_exchange.h"
#include "transport/fault_injection.h"
#include "transport/in_process.h"

namespace moe {

constexpr std::size_t kHidden = 20;
constexpr std::size_t kExperts = 6;
constexpr std::size_t kTopK = 3;
constexpr std::size_t kTokens = 37;
constexpr std::uint32_t kLayer = 4;  // absolute; the second sparse layer

// A stand-in for an expert, cheap, and different for each expert and element.
inline float ExpertOutput(int expert, std::size_t element, float in) {
  return in * (1.0f + 0.37f * static_cast<float>(expert)) +
         static_cast<float>(element) / (3.0f + static_cast<float>(expert));
}

// Workers that compute ExpertOutput, until the transport goes.
class FakeWorkers {
 public:
  FakeWorkers(const Placement& placement, std::vector<std::unique_ptr<WorkerEndpoint>> ends, bool scales_input)
      : scales_input_(scales_input) {
    for (std::size_t w = 0; w < ends.size(); ++w) {
      if (!ends[w]) continue;
      threads_.emplace_back([this, w, slots = placement.layers[1].slots[w], end = std::move(ends[w])] {
        while (true) {
          const Result<std::optional<IncomingRequest>> request = end->Receive(kNoDeadline);
          if (!request.ok() && request.status().code() == StatusCode::kUnavailable) return;
          if (!request.ok()) continue;  // one wrong frame
          const std::span<std::byte> buffer = end->reply_buffer(**request);
          const std::size_t bytes = Answer(w, slots, (*request)->payload, buffer);
          MOE_CHECK(end->Reply(**request, bytes).ok());
        }
      });
    }
  }
  ~FakeWorkers() {
    for (std::thread& thread : threads_) thread.join();
  }

  /// From the next exchange on, worker w says that it was busy for so long, and w nanoseconds. To be set between
  /// exchanges.
  void ClaimBusy(std::uint64_t nanoseconds) { busy_ns_ = nanoseconds; }
  /// From the next exchange on, this worker answers with a failure. To be set between exchanges.
  void Fail(std::size_t worker, Status why) {
    failing_ = worker;
    why_ = std::move(why);
  }

 private:
  std::size_t Answer(std::size_t worker, const std::vector<int>& slots, std::span<const std::byte> payload,
                     std::span<std::byte> buffer) const {
    if (worker == failing_) return WriteFailure(buffer, why_);
    const Result<DispatchReader> dispatch = DispatchReader::Parse(payload);
    if (!dispatch.ok()) return WriteFailure(buffer, dispatch.status());
    if (dispatch->shape().layer != kLayer) return WriteFailure(buffer, Internal("another layer was meant"));
    const DispatchReplyWriter writer(buffer, dispatch->shape());
    std::vector<float> row(kHidden);
    for (std::size_t i = 0; i < dispatch->pairs().size(); ++i) {
      const DispatchPair& pair = dispatch->pairs()[i];
      dispatch->GetRow(pair.row, row);
      for (std::size_t e = 0; e < kHidden; ++e)
        row[e] = ExpertOutput(slots[pair.slot], e, scales_input_ ? row[e] * pair.weight : row[e]);
      writer.SetRow(i, row);
    }
    return writer.Finish(busy_ns_ + worker);
  }

  const bool scales_input_;  // as the layer's config says to workers
  std::uint64_t busy_ns_ = 1000;
  std::size_t failing_ = ~std::size_t{0};
  Status why_;
  std::vector<std::thread> threads_;
};

struct Arrangement {
  int workers = 3;
  int redundant = 0;
  bool round_robin = false;
  bool scales_input = false;
  std::size_t micro_batches = 1;
  ExchangeType type = ExchangeType::kF32;
  int threads = 1;
  std::chrono::milliseconds timeout{120'000};
  FaultScript faults;
};

class CountingObserver final : public ExchangeObserver {
 public:
  void OnExchange(WorkerId worker, double seconds) override {
    EXPECT_GE(seconds, 0);
    ++calls[worker.index()];
  }
  std::vector<int> calls = std::vector<int>(16);
};

class ExpertExchangeTest : public testing::Test {
 protected:
  void Make(const Arrangement& arrangement) {
    exchange_.reset();
    transport_.reset();
    workers_.reset();
    const PlacementShape shape{.num_experts = static_cast<int>(kExperts),
                               .workers = arrangement.workers,
                               .layers = {1, static_cast<int>(kLayer)},
                               .redundant_experts = arrangement.redundant};
    Result<Placement> placed = arrangement.round_robin ? RoundRobinPlacement(shape) : LinearPlacement(shape);
    ASSERT_TRUE(placed.ok()) << placed.status().message();
    placement_ = *std::move(placed);
    options_ = {.max_tokens = kTokens,
                .max_micro_batches = arrangement.micro_batches,
                .hidden = kHidden,
                .num_experts = kExperts,
                .experts_per_token = kTopK,
                .type = arrangement.type,
                .timeout = arrangement.timeout};
    injector_ = std::make_unique<FaultInjector>(arrangement.faults);
    TransportLimits limits = ExpertExchange::Limits(options_);
    limits.max_exchanges *= 2;  // for a second one beside it
    Result<InProcessEnds> ends =
        MakeInProcess({.limits = limits, .num_workers = arrangement.workers, .tap = injector_.get()});
    ASSERT_TRUE(ends.ok()) << ends.status().message();
    transport_ = MakeFaultyTransport(std::move(ends->routers.front()), *injector_);
    workers_ = std::make_unique<FakeWorkers>(placement_, std::move(ends->workers), arrangement.scales_input);
    scales_input_ = arrangement.scales_input;
    pool_ = std::make_unique<ThreadPool>(arrangement.threads);
    exchange_ = MakeExchange();
    exchange_->BeginStep();
  }
  std::unique_ptr<ExpertExchange> MakeExchange() {
    return std::make_unique<ExpertExchange>(options_, *transport_, placement_, SimdKernels(), *pool_, &observer_);
  }
  void TearDown() override {
    exchange_.reset();
    transport_.reset();  // ends the workers
    workers_.reset();
  }

  /// Random rows and choices of `tokens` tokens, without shared experts.
  void Fill(std::uint64_t seed, std::size_t tokens) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    const auto draw = [&](std::size_t count) {
      std::vector<float> values(count);
      for (float& value : values) value = normal(random);
      return values;
    };
    in_ = draw(tokens * kHidden);
    residual_ = draw(tokens * kHidden);
    weights_ = draw(tokens * kTopK);
    shared_.clear();
    ids_.clear();
    std::vector<std::int32_t> all = {0, 1, 2, 3, 4, 5};
    for (std::size_t token = 0; token < tokens; ++token) {
      std::shuffle(all.begin(), all.end(), random);
      ids_.insert(ids_.end(), all.begin(), all.begin() + kTopK);
    }
  }
  Status Run() {
    MOE_RETURN_IF_ERROR(Start());
    return Finish();
  }
  /// Some of the tokens.
  struct Part {
    std::size_t micro_batch = 0;
    std::size_t first = 0;
    std::size_t tokens = 0;
  };
  Part All() const { return {.tokens = in_.size() / kHidden}; }
  Status Start() { return Start(All()); }
  Status Start(const Part& part) {
    const auto [micro_batch, first, tokens] = part;
    return exchange_->Start({.micro_batch = micro_batch,
                             .first_token = first,
                             .layer = kLayer,
                             .sparse_index = 1,
                             .scales_input = scales_input_,
                             .in = {in_.data() + first * kHidden, tokens, kHidden},
                             .ids = {ids_.data() + first * kTopK, tokens, kTopK},
                             .weights = {weights_.data() + first * kTopK, tokens, kTopK}});
  }
  Status Finish() { return Finish(All()); }
  Status Finish(const Part& part) {
    const auto [micro_batch, first, tokens] = part;
    const std::size_t shared = shared_.empty() ? 0 : tokens;
    return exchange_->Finish({.micro_batch = micro_batch,
                              .shared = {shared == 0 ? nullptr : shared_.data() + first * kHidden, shared, kHidden},
                              .scale = scale_,
                              .residual = {residual_.data() + first * kHidden, tokens, kHidden}});
  }
  /// The plain sum in fp32: the experts in the order of the top-k list, then the shared part, scaled onto the residual.
  std::vector<float> Expected(const std::function<float(float)>& travel) const {
    std::vector<float> out = residual_;
    for (std::size_t i = 0; i < out.size(); ++i) {
      const std::size_t token = i / kHidden;
      float sum = 0;
      for (std::size_t j = 0; j < kTopK; ++j) {
        const float weight = weights_[token * kTopK + j];
        if (weight == 0) continue;
        const float in = scales_input_ ? travel(in_[i]) * weight : travel(in_[i]);
        const float row = travel(ExpertOutput(ids_[token * kTopK + j], i % kHidden, in));
        sum = scales_input_ ? sum + row : std::fma(weight, row, sum);
      }
      if (!shared_.empty()) sum += shared_[i];
      out[i] = std::fma(scale_, sum, residual_[i]);
    }
    return out;
  }
  void ExpectResidual(const std::vector<float>& expected) const {
    for (std::size_t i = 0; i < expected.size(); ++i)
      ASSERT_EQ(std::bit_cast<std::uint32_t>(residual_[i]), std::bit_cast<std::uint32_t>(expected[i]))
          << "token " << i / kHidden << ", element " << i % kHidden;
  }

  ExpertExchange::Options options_;
  Placement placement_;
  std::unique_ptr<FaultInjector> injector_;
  std::unique_ptr<FakeWorkers> workers_;
  std::unique_ptr<Transport> transport_;
  std::unique_ptr<ThreadPool> pool_;
  CountingObserver observer_;
  std::unique_ptr<ExpertExchange> exchange_;
  std::vector<float> in_, residual_, weights_;
  std::vector<std::int32_t> ids_;
  std::vector<float> shared_;  // empty: there are no shared experts
  float scale_ = 1;
  bool scales_input_ = false;
};

inline float Unchanged(float value) { return value; }
inline float ThroughBf16(float value) { return Bf16ToF32(F32ToBf16(value)); }

}  // namespace moe
