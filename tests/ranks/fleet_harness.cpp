#include "tests/ranks/fleet_harness.h"

#include <gtest/gtest.h>

#include <utility>

#include "core/check.h"
#include "tests/metrics/exposition.h"

namespace moe {
namespace {

RankSetup PrepareRouter(const FleetOptions& options) {
  const RankPlace place{.topology = {.workers = options.workers, .embedded = false}};
  Result<RankSetup> setup = PrepareRank(options.rank_options(), place);
  MOE_CHECK(setup.ok(), setup.status().message());
  return *std::move(setup);
}

KvPlan PlanCache(const FleetOptions& options, const ModelConfig& config) {
  const std::size_t chunk = options.prefill_chunk == 0 ? options.max_step_tokens : options.prefill_chunk;
  return PlanKv(config, {.tokens = 64 * kPageTokens,
                         .max_sequences = options.max_sequences,
                         .max_step_tokens = options.max_step_tokens,
                         .max_chunk = std::min(chunk, options.max_step_tokens)});
}

}  // namespace

RankOptions FleetOptions::rank_options() const {
  return {.model = SourcePath(model),
          .threads = 1,
          .redundant_experts = redundant_experts,
          .max_step_tokens = max_step_tokens,
          .micro_batches = micro_batches,
          .exchange_timeout = exchange_timeout,
          .load_timeout = std::chrono::minutes(2)};
}

FleetHarness::FleetHarness(FleetOptions options, TestWorkers* workers)
    : options_(std::move(options)),
      own_workers_(workers == nullptr ? std::make_unique<TestWorkers>(options_.workers, options_.rank_options())
                                      : nullptr),
      workers_(workers == nullptr ? own_workers_.get() : workers),
      setup_(PrepareRouter(options_)) {
  const auto make_links = [this]() -> Result<std::unique_ptr<WorkerLinks>> {
    return workers_->Links(setup_.transport_limits);
  };
  fleet_ = std::make_unique<RemoteFleet>(RemoteFleet::Options{.exchange_timeout = options_.exchange_timeout,
                                                              .load_timeout = setup_.load_timeout,
                                                              .first_pause = std::chrono::milliseconds(1),
                                                              .last_pause = std::chrono::milliseconds(20),
                                                              .watch_interval = std::chrono::milliseconds(20)},
                                         RemoteFleet::Links{.steps = make_links, .search = make_links},
                                         AssignWorkers(setup_));
  Result<LoadedWeights> weights = LoadRouter(setup_, pool_, *fleet_);
  MOE_CHECK(weights.ok(), weights.status().message());
  const KvPlan kv = PlanCache(options_, setup_.config);
  metrics_.emplace(RouterMetrics::Setup{.config = setup_.config,
                                        .parameters = setup_.parameters,
                                        .transport = &fleet_->transport(),
                                        .placement_generation = setup_.placement.generation,
                                        .kv_tokens_capacity = kv.pages.front() * kPageTokens},
                   registry_, nullptr);
  engine_.emplace(RouterEngine::Options{.kv = kv, .load_window_steps = 64, .on_micro_batches = {}}, setup_, pool_,
                  fleet_->transport(), *std::move(weights), &*metrics_);
  router_.emplace(Router::Options{.limits = {.max_sequences = options_.max_sequences,
                                             .max_step_tokens = options_.max_step_tokens,
                                             .prefill_chunk = options_.prefill_chunk},
                                  .max_queued = 1024,
                                  .drain_timeout = std::chrono::minutes(10),
                                  .migration = options_.migration},
                  engine_->engine(), engine_->cache(), *metrics_, fleet_.get());
  fleet_->Bind(*engine_->exchange(),
               {.on_worker = [this](WorkerId w, const RemoteFleet::WorkerState& s) { metrics_->OnWorker(w, s.up); },
                .on_news = [this] { router_->OnEngineThread([this] { fleet_->BeforeStep(); }); }});
}

FleetHarness::~FleetHarness() {
  if (thread_.joinable()) (void)Stop();
  fleet_.reset();  // before the exchange that it is bound to, and before the workers
}

double FleetHarness::Metric(const std::string& series) const {
  const std::optional<double> value = SampleValue(registry_.Text(), series);
  MOE_CHECK(value.has_value(), "there is no series " + series);
  return *value;
}

void FleetHarness::Start() {
  thread_ = std::thread([this] { served_ = router_->Run(); });
}

Status FleetHarness::Stop() {
  router_->Drain();
  thread_.join();
  return served_;
}

std::vector<Client> FleetHarness::Submit(const std::vector<SequenceRequest>& requests) {
  std::vector<Client> clients;
  std::vector<std::unique_ptr<Sequence>> batch;
  for (const SequenceRequest& request : requests) {
    Client& client = clients.emplace_back();
    client.output = std::make_shared<SequenceOutput>(request, config());
    client.watcher = std::make_shared<OutputWatcher>(*client.output);
    batch.push_back(std::make_unique<Sequence>(request, client.output, client.watcher, config()));
  }
  const Status status = router_->Submit(std::move(batch));
  EXPECT_TRUE(status.ok()) << status.message();
  return clients;
}

std::vector<Client> FleetHarness::Finish(const std::vector<SequenceRequest>& requests) {
  std::vector<Client> clients = Submit(requests);
  for (const Client& client : clients) client.watcher->WaitFinished();
  return clients;
}

void FleetHarness::WaitForWorkers(int up) {
  while (true) {
    int now = 0;
    for (const RemoteFleet::WorkerState& worker : fleet_->Workers()) now += worker.up ? 1 : 0;
    if (now == up) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

void FleetHarness::Replace(int w) {
  workers_->Kill(w);
  WaitForWorkers(workers_->size() - 1);
  workers_->Start(w);
  WaitForWorkers(workers_->size());
}

}  // namespace moe
