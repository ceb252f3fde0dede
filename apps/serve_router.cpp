#include "apps/serve_router.h"

#include <grpcpp/grpcpp.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "apps/serve_balancer.h"
#include "apps/serve_log.h"
#include "apps/signals.h"
#include "core/machine.h"
#include "kernels/kernels.h"
#include "ranks/rank_device.h"
#include "ranks/router_engine.h"
#include "router/cluster_service.h"
#include "router/inference_service.h"
#include "router/router.h"
#include "router/router_metrics.h"
#include "router/trace_control.h"
#include "rpc/server.h"

namespace moe {
namespace {

// A request's message: a batch of long prompts. An answer's: the logits of a few thousand positions.
constexpr int kMaxReceiveBytes = 16 << 20;
constexpr int kMaxSendBytes = 256 << 20;
// What all open calls together may hold of results that nobody has read yet.
constexpr std::uint64_t kMaxOutputBytes = std::uint64_t{2} << 30;
// HTTP/2 streams of a connection. The limit that clients meet is the service's, which refuses at once instead of making
// them wait.
constexpr int kMaxStreamsPerConnection = 1 << 16;
constexpr std::chrono::seconds kShutdownTimeout{10};
// gRPC closes a connection as soon as its last call has ended. What the client sends just then, a window update say,
// meets a reset, and the client drops what it has received and not read yet: the last tokens, or why there are none. So
// clients get the time to read before the connections close.
constexpr std::chrono::milliseconds kReadingTime{500};

KvLimits CacheLimits(const ServeOptions& options, std::size_t tokens) {
  const std::size_t chunk = options.prefill_chunk == 0 ? options.max_step_tokens : options.prefill_chunk;
  return {.tokens = tokens,
          .max_sequences = options.max_sequences,
          .max_step_tokens = options.max_step_tokens,
          .max_chunk = std::min(chunk, options.max_step_tokens),
          .type = options.kv_type};
}

// The KV cache: as asked for, else enough for every sequence that may run to fill its context, within a quarter of the
// memory.
Result<KvPlan> PlanCache(const ServeSetup& setup) {
  const std::uint64_t memory = MachineMemoryBytes();
  const auto plan = [&](std::size_t tokens) { return PlanKv(setup.config, CacheLimits(setup.options, tokens)); };
  if (const std::size_t asked = setup.options.kv_tokens; asked > 0) {
    const KvPlan exact = plan(asked);
    if (exact.bytes > memory)
      return InvalidArgument("--kv-tokens ", asked, " take ", exact.bytes, " bytes, the machine has ", memory);
    return exact;
  }
  // The most tokens whose pages fit: by halving the interval, since bytes grow with tokens.
  std::size_t fits = kPageTokens;
  std::size_t wanted =
      setup.options.max_sequences * PagesFor(static_cast<std::size_t>(setup.config.context_length)) * kPageTokens;
  if (plan(wanted).bytes <= memory / 4) return plan(wanted);
  while (wanted - fits > kPageTokens) {
    const std::size_t middle = fits + (wanted - fits) / 2;
    (plan(middle).bytes <= memory / 4 ? fits : wanted) = middle;
  }
  return plan(fits);
}

InferenceSetup MakeInferenceSetup(const ServeSetup& setup, std::size_t kv_tokens) {
  const auto u32 = [](std::size_t value) { return static_cast<std::uint32_t>(value); };
  const ServeOptions& o = setup.options;
  return {.model_name = std::filesystem::canonical(o.model).filename().string(),
          .weight_type = std::string(Name(setup.weight_types.mlps)),
          .routing = RoutingName(setup.routing),
          .parameters = setup.parameters,
          .limits = {.max_sequences_per_request = u32(o.max_queued),
                     .max_streams = u32(o.max_queued + o.max_sequences),
                     .max_source_tokens = u32(o.max_step_tokens),
                     .max_reply_bytes = kMaxSendBytes - (1 << 20),
                     .max_output_bytes = kMaxOutputBytes},
          .max_sequences = u32(o.max_sequences),
          .max_queued = u32(o.max_queued),
          .max_step_tokens = u32(o.max_step_tokens),
          .kv_tokens = kv_tokens,
          .max_message_bytes = kMaxReceiveBytes};
}

std::string ReadyText(const ServeSetup& setup, const std::string& grpc, const std::vector<std::string>& metrics) {
  const nlohmann::json ready = {
      {"grpc", grpc}, {"http", nullptr}, {"metrics", metrics}, {"ranks", setup.topology.ranks()}, {"pid", getpid()}};
  return ready.dump();
}

/// "cpu" or "cuda"; both, where workers differ.
std::string BackendOfWorkers(const std::vector<WorkerDescription>& workers) {
  std::set<std::string_view> names;
  for (const WorkerDescription& worker : workers) names.insert(BackendName(worker.device));
  if (names.empty()) return "cpu";
  return names.size() == 1 ? std::string(*names.begin()) : "cpu and cuda";
}

TraceControl::Setup MakeTraceSetup(const ServeSetup& setup, const RouterMetrics& metrics) {
  TraceHeader header = MakeTraceHeader(setup.config, setup.placement);
  header.model = std::filesystem::canonical(setup.options.model).filename().string();
  header.weight_type = std::string(Name(setup.weight_types.mlps));
  header.routing = RoutingName(setup.routing);
  return {.header = std::move(header),
          .max_step_rows = setup.options.max_step_tokens,
          .limit_bytes = setup.options.trace_limit,
          .on_started = [&metrics] { metrics.OnTraceStarted(); },
          .on_written = [&metrics](std::uint64_t steps, std::uint64_t dropped,
                                   std::uint64_t bytes) { metrics.OnTraced(steps, dropped, bytes); },
          .on_ended =
              [&metrics](const TraceProgress& trace) {
                metrics.OnTraceEnded();
                LogTrace(trace);
              }};
}

std::function<std::vector<WorkerPresence>()> PresenceOf(const RemoteFleet& fleet) {
  return [&fleet] {
    std::vector<WorkerPresence> presence;
    for (RemoteFleet::WorkerState& worker : fleet.Workers())
      presence.push_back({.up = worker.up, .description = std::move(worker.description)});
    return presence;
  };
}

// The router once its dense part and its workers are there. Members are built in order and destroyed in reverse.
class RouterProcess {
 public:
  /// `fleet` is null where workers do not come and go.
  RouterProcess(const ServeSetup& setup, ThreadPool& pool, RankMetrics& metrics, Transport& transport,
                RemoteFleet* fleet, const KvPlan& kv, LoadedWeights weights)
      : setup_(setup),
        rank_metrics_(metrics),
        fleet_(fleet),
        metrics_({.config = setup.config,
                  .parameters = setup.parameters,
                  .transport = &transport,
                  .placement_generation = setup.placement.generation,
                  .kv_tokens_capacity = kv.pages.front() * kPageTokens,
                  .routing = RoutingName(setup.routing)},
                 metrics.registry(), metrics.experts()),
        engine_({.kv = kv,
                 .load_window_steps = setup.options.load_window_steps,
                 .load_window_age = setup.options.load_window_age,
                 .on_micro_batches = LogMicroBatches},
                setup, pool, transport, std::move(weights), &metrics_),
        router_({.limits = {.max_sequences = setup.options.max_sequences,
                            .max_step_tokens = setup.options.max_step_tokens,
                            .prefill_chunk = setup.options.prefill_chunk},
                 .max_queued = setup.options.max_queued,
                 .drain_timeout = setup.options.drain_timeout,
                 .on_health = [&setup](const RoutingHealth::Change& change) { LogHealth(setup.config, change); },
                 .cost_steps = setup.options.load_window_steps,
                 .migration = {.bytes_per_s = setup.options.migration_bandwidth,
                               .timeout = setup.load_timeout,
                               .on_change = LogMigration},
                 .on_move_measured = LogMoveOutcome},
                engine_.engine(), engine_.cache(), metrics_, fleet),
        trace_(MakeTraceSetup(setup, metrics_), engine_.engine(), router_),
        balancer_(MakeBalancerOptions(setup, metrics_, router_), router_),
        transport_name_(transport.name()),
        inference_(MakeInferenceSetup(setup, engine_.cache().capacity_tokens()), setup.config, router_, metrics_) {}
  ~RouterProcess() {
    if (fleet_ == nullptr) return;
    fleet_->Stop();  // its threads speak to the members, the server among them
    fleet_->Unbind();
  }
  RouterProcess(const RouterProcess&) = delete;
  RouterProcess& operator=(const RouterProcess&) = delete;

  Status Serve();

 private:
  ClusterSetup MakeClusterSetup(const std::string& address, std::function<void()> drain);
  std::vector<std::string> MetricsAddresses() const;
  void LogServing(const std::string& address) const;
  /// From here on lost workers are noticed, and the server says whether anything can be served.
  void WatchFleet();

  const ServeSetup& setup_;
  RankMetrics& rank_metrics_;
  RemoteFleet* const fleet_;
  RouterMetrics metrics_;
  RouterEngine engine_;
  Router router_;
  TraceControl trace_;
  Balancer balancer_;
  const std::string transport_name_;
  InferenceService inference_;
  std::unique_ptr<ClusterService> cluster_;
  std::unique_ptr<RpcServer> server_;
};

ClusterSetup RouterProcess::MakeClusterSetup(const std::string& address, std::function<void()> drain) {
  WorkerDescription self = DescribeRank(setup_, rank_metrics_);
  self.parameters = engine_.dense_parameters();
  self.weight_bytes = engine_.dense_bytes();
  self.control_address = address;
  return {.topology = setup_.topology,
          .transport = transport_name_,
          .backend = BackendOfWorkers(engine_.workers()),
          .weight_type = std::string(Name(setup_.weight_types.mlps)),
          .routing = RoutingName(setup_.routing),
          .parameters = setup_.parameters,
          .router = std::move(self),
          .workers = engine_.workers(),
          .drain = std::move(drain),
          .trace = &trace_,
          .balancer = &balancer_,
          .bytes_per_expert = BytesPerExpert(setup_),
          .presence = fleet_ == nullptr ? std::function<std::vector<WorkerPresence>()>() : PresenceOf(*fleet_)};
}

std::vector<std::string> RouterProcess::MetricsAddresses() const {
  if (rank_metrics_.address().empty()) return {};
  std::vector<std::string> addresses = {rank_metrics_.address()};
  if (setup_.topology.embedded) return addresses;
  for (const WorkerDescription& worker : engine_.workers()) addresses.push_back(worker.metrics_address);
  return addresses;
}

void RouterProcess::LogServing(const std::string& address) const {
  spdlog::info("serving {} ({} of {} parameters active) on {}, {} rank(s), {} thread(s) each, kernels {}",
               std::filesystem::canonical(setup_.options.model).filename().string(), setup_.parameters.active,
               setup_.parameters.total, address, setup_.topology.ranks(), setup_.threads, SimdKernels().name());
  if (setup_.routing.forced())
    spdlog::warn("--routing {}: experts are not chosen by the model's gate, so what it says means nothing",
                 RoutingName(setup_.routing));
}

Status RouterProcess::Serve() {
  // The cluster service tells the address that the server is bound to, which exists only once the server runs; a call
  // that comes in between waits for neither.
  const std::function<void()> drain = [this] {
    if (router_.draining()) return;
    spdlog::info("draining: what is accepted finishes, for at most {} s", setup_.options.drain_timeout.count() / 1000);
    server_->SetServing(false);
    router_.Drain();
  };
  cluster_ = std::make_unique<ClusterService>(MakeClusterSetup(setup_.options.listen, drain), setup_.config, router_);
  const std::array<grpc::Service*, 2> services = {inference_.service(), cluster_->service()};
  MOE_ASSIGN_OR_RETURN(server_, RpcServer::Start({.listen = setup_.options.listen,
                                                  .tls = setup_.options.tls,
                                                  .health_services = {"moe.v1.Inference"},
                                                  .max_receive_bytes = kMaxReceiveBytes,
                                                  .max_send_bytes = kMaxSendBytes,
                                                  .max_streams_per_connection = kMaxStreamsPerConnection},
                                                 services));
  rank_metrics_.Describe(setup_,
                         {.role = setup_.topology.embedded ? "both" : "router",
                          .transport = transport_name_,
                          .device = setup_.topology.embedded ? engine_.workers().front().device : "cpu",
                          .expert_parameters = setup_.topology.embedded ? engine_.workers().front().parameters : 0,
                          .dense_parameters = engine_.dense_parameters(),
                          .expert_bytes = setup_.topology.embedded ? engine_.workers().front().weight_bytes : 0,
                          .dense_bytes = engine_.dense_bytes()});
  rank_metrics_.Serve();
  if (const std::filesystem::path& path = setup_.options.trace; !path.empty()) {
    MOE_RETURN_IF_ERROR(
        trace_.Begin({.path = path, .existing = TraceRecorder::Existing::kReplace}).WithContext("--trace"));
    spdlog::info("recording the routing of every step in {}", path.string());
  }
  server_->SetServing(true);
  if (fleet_ != nullptr) WatchFleet();
  MOE_RETURN_IF_ERROR(WriteReadyFile(setup_, ReadyText(setup_, server_->address(), MetricsAddresses())));
  LogServing(server_->address());

  Status served;
  {
    const SignalWatcher watcher({.first = drain, .second = [this] { router_.StopNow(); }});
    balancer_.Start();
    served = router_.Run();
  }
  balancer_.Stop();
  server_->SetServing(false);
  std::this_thread::sleep_for(kReadingTime);
  server_->Shutdown(kShutdownTimeout);
  return served;
}

void RouterProcess::WatchFleet() {
  const auto on_worker = [this](WorkerId worker, const RemoteFleet::WorkerState& state) {
    metrics_.OnWorker(worker, state.up);
    if (state.up) {
      spdlog::info("{} is there again", fleet_->Peer(worker));
    } else {
      spdlog::warn("lost {}: {}", fleet_->Peer(worker), state.why.message());
    }
    const std::vector<RemoteFleet::WorkerState> all = fleet_->Workers();
    const bool any = std::ranges::any_of(all, [](const RemoteFleet::WorkerState& other) { return other.up; });
    server_->SetServing(any && !router_.draining());
    if (router_.draining()) server_->SetServing(false);  // a drain may begin at any moment
  };
  const auto on_news = [this] { router_.OnEngineThread([this] { fleet_->BeforeStep(); }); };
  fleet_->Bind(*engine_.exchange(), {.on_worker = on_worker, .on_news = on_news});
}

/// Over workers that belong to this router, or, where there is a fleet, over that.
Status LoadAndServe(const ServeSetup& setup, ThreadPool& pool, RankMetrics& metrics, Transport* transport,
                    RemoteFleet* fleet) {
  for (const std::string& warning : setup.config.warnings) spdlog::warn("{}", warning);
  LogIdleRanks(setup);
  MOE_ASSIGN_OR_RETURN(const KvPlan kv, PlanCache(setup));
  MOE_ASSIGN_OR_RETURN(LoadedWeights weights,
                       fleet == nullptr ? LoadRouter(setup, pool, *transport) : LoadRouter(setup, pool, *fleet));
  LogWeightCache(setup);
  RouterProcess process(setup, pool, metrics, fleet == nullptr ? *transport : fleet->transport(), fleet, kv,
                        std::move(weights));
  return process.Serve();
}

}  // namespace

Status RunRouter(const ServeSetup& setup, ThreadPool& pool, RankMetrics& metrics, Transport& transport) {
  return EndWorkers(transport, LoadAndServe(setup, pool, metrics, &transport, nullptr));
}

Status RunFleetRouter(const ServeSetup& setup, ThreadPool& pool, RankMetrics& metrics, RemoteFleet& fleet) {
  return LoadAndServe(setup, pool, metrics, nullptr, &fleet);
}

}  // namespace moe
