#include "tests/router/engine_harness.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <random>
#include <utility>

#include "core/check.h"
#include "experts/expert_backend.h"
#include "experts/expert_shard.h"
#include "experts/worker.h"
#include "kernels/kernels.h"
#include "model/migration_format.h"
#include "model/step_buffers.h"
#include "model/tensor_check.h"
#include "model/weights.h"
#include "placement/forced_routing.h"
#include "test_folders.h"
#include "tests/metrics/exposition.h"

namespace moe {
namespace {

Placement MakePlacement(const HarnessOptions& options, const ModelConfig& config) {
  const PlacementShape shape{.num_experts = config.num_experts(),
                             .workers = options.workers,
                             .layers = config.sparse_layers(),
                             .redundant_experts = options.redundant_experts};
  return *(options.placement == PlacementRule::kLinear ? LinearPlacement(shape) : RoundRobinPlacement(shape));
}

KvPlan PlanCache(const HarnessOptions& options, const ModelConfig& config) {
  const std::size_t chunk = options.prefill_chunk == 0 ? options.max_step_tokens : options.prefill_chunk;
  return PlanKv(config, {.tokens = options.kv_pages * kPageTokens,
                         .max_sequences = options.max_sequences,
                         .max_step_tokens = options.max_step_tokens,
                         .max_chunk = std::min(chunk, options.max_step_tokens),
                         .type = options.kv_type});
}

void ExpectSameFloats(const std::vector<float>& actual, const std::vector<float>& expected, const char* what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (std::size_t i = 0; i < actual.size(); ++i)
    ASSERT_EQ(std::bit_cast<std::uint32_t>(actual[i]), std::bit_cast<std::uint32_t>(expected[i]))
        << what << "[" << i << "]: " << actual[i] << " and " << expected[i];
}

}  // namespace

std::filesystem::path SourcePath(const std::string& relative) {
  return std::filesystem::path(MOE_SOURCE_DIR) / relative;
}

void OutputWatcher::OnOutput() {
  if (output_.finished()) ends_.fetch_add(1);
  calls_.fetch_add(1);
  calls_.notify_all();
}

void OutputWatcher::WaitForTokens(std::size_t count) const {
  while (true) {
    const std::uint32_t seen = calls_.load();
    if (output_.tokens() >= count || output_.finished()) return;
    calls_.wait(seen);
  }
}

void OutputWatcher::WaitFinished() const {
  while (true) {
    const std::uint32_t seen = calls_.load();
    // The end is told after it is written; waiting for the telling, too, leaves nothing behind that is still running.
    if (ends_.load() > 0) return;
    calls_.wait(seen);
  }
}

// One worker: its shard, its own pool, and the thread that serves.
struct EngineHarness::WorkerSide {
  WorkerSide(const EngineHarness& harness, WorkerId worker, std::unique_ptr<WorkerEndpoint> end)
      : pool(harness.options_.threads),
        views({.config = harness.config_,
               .types = harness.weight_types_,
               .load = LoaderOf(harness, worker),
               .free_memory = [] { return std::uint64_t{0}; }}),
        max_slots(static_cast<std::size_t>(harness.config_.num_experts())),
        max_pairs(harness.exchange_options_.max_tokens * harness.exchange_options_.experts_per_token),
        backend(MakeCpuExpertBackend(SimdKernels(), pool,
                                     {.rows = max_pairs,
                                      .mlps = max_slots,
                                      .hidden = harness.exchange_options_.hidden,
                                      .intermediate = Widest(harness.config_, ExpertIntermediate),
                                      .type = harness.weight_types_.mlps})),
        loop(
            {.hidden = harness.exchange_options_.hidden, .max_pairs = max_pairs, .max_slots = max_slots},
            [worker] { return WorkerDescription{.host = Cat("worker-host-", worker.value())}; }, views, *backend, pool,
            totals),
        endpoint(std::move(end)) {
    views.HoldForAll(harness.placement_.generation, std::make_shared<const ExpertShard>(*ExpertShard::Load(
                                                        harness.config_, *harness.checkpoint_, harness.placement_,
                                                        worker, harness.weight_types_, pool)));
    thread = std::thread([this] { ended = loop.Run(*endpoint); });
  }
  ~WorkerSide() { thread.join(); }

  static ExpertLoader LoaderOf(const EngineHarness& harness, WorkerId worker) {
    return [&harness, worker](int layer, int expert) {
      Result<MlpWeights> loaded =
          LoadExpertWeights(harness.config_, *harness.checkpoint_, layer, expert, harness.weight_types_);
      const auto& on_load = harness.options_.on_load;
      return on_load ? on_load(worker.value(), layer, expert, std::move(loaded)) : std::move(loaded);
    };
  }

  ThreadPool pool;
  ExpertViews views;
  std::size_t max_slots;
  std::size_t max_pairs;
  std::unique_ptr<ExpertBackend> backend;
  WorkerTotals totals;
  Worker loop;
  std::unique_ptr<WorkerEndpoint> endpoint;
  Status ended;
  std::thread thread;
};

EngineHarness::EngineHarness(HarnessOptions options)
    : options_(std::move(options)),
      config_(*ReadModelConfig(SourcePath(options_.model))),
      checkpoint_(std::make_unique<Checkpoint>(*Checkpoint::Open(SourcePath(options_.model)))),
      weight_types_(options_.weight_type.value_or(CheckTensors(config_, *checkpoint_)->exact_type)),
      parameters_(CountParameters(config_)),
      injector_(options_.faults),
      pool_(options_.threads) {
  if (config_.num_experts() > 0) StartWorkers();
  MakeRouter();
}

EngineHarness::~EngineHarness() {
  if (thread_.joinable()) (void)Stop();
  router_.reset();
  engine_.reset();
  exchange_.reset();
  transport_.reset();  // ends the workers
}

void EngineHarness::StartWorkers() {
  placement_ = MakePlacement(options_, config_);
  exchange_options_ = {.max_tokens = options_.max_step_tokens,
                       .max_micro_batches = static_cast<std::size_t>(options_.micro_batches.most),
                       .hidden = static_cast<std::size_t>(config_.hidden),
                       .num_experts = static_cast<std::size_t>(config_.num_experts()),
                       .experts_per_token = static_cast<std::size_t>(config_.experts_per_token()),
                       .type = options_.exchange_type,
                       .timeout = options_.exchange_timeout};
  TransportLimits limits = ExpertExchange::Limits(exchange_options_);
  const std::size_t layers = placement_.layers.size();
  limits.max_request_bytes = std::max(
      limits.max_request_bytes, MaxPreparationBytes(layers, layers * static_cast<std::size_t>(config_.num_experts())));
  InProcessEnds ends = options_.connect ? options_.connect(limits, options_.workers)
                                        : *MakeInProcess({.limits = limits,
                                                          .num_workers = options_.workers,
                                                          .embedded = options_.embedded,
                                                          .tap = options_.faults.empty() ? options_.tap : &injector_});
  if (!ends.routers.empty()) transport_ = std::move(ends.routers.front());
  if (!options_.faults.empty()) transport_ = MakeFaultyTransport(std::move(transport_), injector_);
  for (int w = 0; w < options_.workers; ++w)
    workers_.push_back(
        std::make_unique<WorkerSide>(*this, WorkerId(w), std::move(ends.workers[static_cast<std::size_t>(w)])));
  if (transport_ == nullptr) transport_ = options_.connect_router();
}

void EngineHarness::MakeRouter() {
  routing_ = *MakeForcedRouting(*ParseRouting(options_.routing), 1, config_);
  backend_ =
      MakeCpuDenseBackend(config_, *LoadDenseWeights(config_, *checkpoint_, weight_types_, pool_), SimdKernels(), pool_,
                          {.kv = PlanCache(options_, config_),
                           .max_step_tokens = options_.max_step_tokens,
                           .max_batches = static_cast<std::size_t>(options_.micro_batches.most),
                           .routing = routing_.get()});
  metrics_.emplace(RouterMetrics::Setup{.config = config_,
                                        .parameters = parameters_,
                                        .transport = transport_.get(),
                                        .placement_generation = placement_.generation,
                                        .kv_tokens_capacity = cache().capacity_tokens()},
                   registry_, nullptr);
  if (transport_) exchange_.emplace(exchange_options_, *transport_, placement_, SimdKernels(), pool_, &*metrics_);
  engine_.emplace(Engine::Options{.max_step_tokens = options_.max_step_tokens,
                                  .load_window_steps = 64,
                                  .micro_batches = options_.micro_batches},
                  Engine::Parts{.config = config_,
                                .backend = *backend_,
                                .exchange = exchange_ ? &*exchange_ : nullptr,
                                .kernels = SimdKernels(),
                                .pool = pool_});
  router_.emplace(Router::Options{.limits = {.max_sequences = options_.max_sequences,
                                             .max_step_tokens = options_.max_step_tokens,
                                             .prefill_chunk = options_.prefill_chunk},
                                  .max_queued = options_.max_queued,
                                  .drain_timeout = options_.drain_timeout,
                                  .cost_steps = options_.cost_steps,
                                  .migration = options_.migration},
                  *engine_, cache(), *metrics_);
}

HostedExperts EngineHarness::hosted(int worker) const {
  return workers_[static_cast<std::size_t>(worker)]->views.hosted();
}

double EngineHarness::Metric(const std::string& series) const {
  const std::optional<double> value = SampleValue(registry_.Text(), series);
  MOE_CHECK(value.has_value(), "there is no series " + series);
  return *value;
}

std::unique_ptr<Sequence> EngineHarness::Make(SequenceRequest request, Client& client) const {
  client.output = std::make_shared<SequenceOutput>(request, config_);
  client.watcher = std::make_shared<OutputWatcher>(*client.output);
  return std::make_unique<Sequence>(std::move(request), client.output, client.watcher, config_);
}

Status EngineHarness::Submit(std::vector<SequenceRequest> requests, std::vector<Client>& clients) {
  std::vector<std::unique_ptr<Sequence>> batch;
  for (SequenceRequest& request : requests) batch.push_back(Make(std::move(request), clients.emplace_back()));
  return router_->Submit(std::move(batch));
}

Client EngineHarness::Submit(SequenceRequest request) {
  std::vector<Client> clients;
  const Status status = Submit(std::vector<SequenceRequest>{std::move(request)}, clients);
  MOE_CHECK(status.ok(), status.message());
  return clients.front();
}

void EngineHarness::Start() {
  thread_ = std::thread([this] { served_ = router_->Run(); });
}

Status EngineHarness::Stop() {
  router_->Drain();
  thread_.join();
  return served_;
}

Status EngineHarness::Drain() {
  router_->Drain();
  return router_->Run();
}

std::vector<Client> EngineHarness::RunAll(std::vector<SequenceRequest> requests) {
  std::vector<Client> clients;
  Status status = Submit(std::move(requests), clients);
  if (status.ok()) status = Drain();
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(cache().used_tokens(), 0u);
  for (const Client& client : clients) EXPECT_EQ(client.watcher->ends(), status.ok() ? 1 : 0);
  return clients;
}

SequenceRequest Greedy(std::vector<std::uint32_t> prompt, std::uint32_t max_new_tokens) {
  return {.prompt = std::move(prompt), .max_new_tokens = max_new_tokens};
}

SequenceRequest Scoring(std::vector<std::uint32_t> tokens, ScoreLogits logits) {
  return {.kind = SequenceKind::kScore, .prompt = std::move(tokens), .score_logits = logits};
}

SequenceRequest ForModel(const ModelConfig& config, SequenceRequest request) {
  if (config.has_encoder()) request.source = std::exchange(request.prompt, {*config.decoder_start_token});
  return request;
}

std::vector<std::uint32_t> RandomTokens(std::uint64_t seed, std::size_t count, int vocab) {
  std::mt19937_64 random(seed);
  std::vector<std::uint32_t> tokens(count);
  for (std::uint32_t& token : tokens) token = static_cast<std::uint32_t>(random() % static_cast<std::uint64_t>(vocab));
  return tokens;
}

std::vector<std::uint32_t> Tokens(const SequenceOutput& output) {
  return {output.token_ids.begin(), output.token_ids.begin() + static_cast<std::ptrdiff_t>(output.tokens())};
}

void ExpectSameBits(const SequenceOutput& actual, const SequenceOutput& expected) {
  EXPECT_EQ(actual.result.finish, expected.result.finish);
  EXPECT_EQ(Tokens(actual), Tokens(expected));
  EXPECT_EQ(actual.top_token_ids, expected.top_token_ids);
  EXPECT_EQ(actual.routing_ids, expected.routing_ids);
  ExpectSameFloats(actual.token_logprobs, expected.token_logprobs, "token_logprobs");
  ExpectSameFloats(actual.top_logprobs, expected.top_logprobs, "top_logprobs");
  ExpectSameFloats(actual.logits, expected.logits, "logits");
  ExpectSameFloats(actual.routing_weights, expected.routing_weights, "routing_weights");
  EXPECT_EQ(actual.result.expert_rows, expected.result.expert_rows);
  EXPECT_EQ(actual.result.unique_experts, expected.result.unique_experts);
}

}  // namespace moe
