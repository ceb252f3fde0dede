#include "tests/router/service_harness.h"

#include <gtest/gtest.h>

#include <array>
#include <future>

#include "core/check.h"

namespace moe {
namespace {

InferenceSetup MakeInferenceSetup(const ServiceOptions& options, EngineHarness& engine) {
  return {.model_name = "test-model",
          .weight_type = "f32",
          .parameters = engine.parameters(),
          .limits = options.limits,
          .max_sequences = static_cast<std::uint32_t>(options.engine.max_sequences),
          .max_queued = static_cast<std::uint32_t>(options.engine.max_queued),
          .max_step_tokens = static_cast<std::uint32_t>(options.engine.max_step_tokens),
          .kv_tokens = engine.cache().capacity_tokens(),
          .max_message_bytes = static_cast<std::uint64_t>(options.max_receive_bytes)};
}

ClusterSetup MakeClusterSetup(const ServiceOptions& options, EngineHarness& engine, Balancer& balancer) {
  ClusterSetup setup{.topology = {.workers = options.engine.workers, .embedded = options.engine.embedded},
                     .transport = "inprocess",
                     .backend = "cpu",
                     .weight_type = "f32",
                     .parameters = engine.parameters(),
                     .router = {.host = "router-host", .pid = 11, .device = "cpu", .parameters = 5, .weight_bytes = 20},
                     .drain = [&engine] { engine.router().Drain(); },
                     .balancer = &balancer,
                     .bytes_per_expert = 7392};
  for (int w = 0; w < options.engine.workers; ++w)
    setup.workers.push_back({.host = Cat("worker-host-", w),
                             .pid = static_cast<std::uint64_t>(100 + w),
                             .device = "cpu",
                             .parameters = static_cast<std::uint64_t>(1000 + w),
                             .weight_bytes = static_cast<std::uint64_t>(4000 + w)});
  return setup;
}

}  // namespace

ServiceHarness::ServiceHarness(ServiceOptions options) : engine_(options.engine) {
  inference_.emplace(MakeInferenceSetup(options, engine_), engine_.config(), engine_.router(), engine_.metrics());
  balancer_.emplace(Balancer::Options{.slots = engine_.config().num_experts(),
                                      .bytes_per_expert = 7392,
                                      .in_force = [this] { return engine_.placement(); }},
                    engine_.router());
  cluster_.emplace(MakeClusterSetup(options, engine_, *balancer_), engine_.config(), engine_.router());
  const std::array<grpc::Service*, 2> services = {inference_->service(), cluster_->service()};
  Result<std::unique_ptr<RpcServer>> server =
      RpcServer::Start({.listen = "127.0.0.1:0", .max_receive_bytes = options.max_receive_bytes}, services);
  MOE_CHECK(server.ok(), server.status().message());
  server_ = *std::move(server);
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);  // a window of 64 KiB for good, which a slow reader fills
  const auto channel = grpc::CreateCustomChannel(server_->address(), grpc::InsecureChannelCredentials(), arguments);
  inference_stub_ = v1::Inference::NewStub(channel);
  cluster_stub_ = v1::Cluster::NewStub(channel);
  engine_.Start();
  balancer_->Start();
}

ServiceHarness::~ServiceHarness() {
  // As moe_serve ends: the router, the server, and only then what they call.
  engine_.router().StopNow();
  (void)engine_.Stop();
  server_->Shutdown(std::chrono::seconds(30));
}

bool ServiceHarness::Eventually(const std::function<bool()>& condition) {
  const Deadline deadline = After(std::chrono::minutes(1));
  while (!condition()) {
    if (Clock::now() >= deadline) return false;
    std::promise<void> between;
    if (engine_.router().OnEngineThread([&] { between.set_value(); })) between.get_future().wait();
  }
  return true;
}

bool ServiceHarness::EventuallyIdle() {
  return Eventually([&] {
    return engine_.Metric("moe_kv_tokens_used") == 0 && engine_.Metric("moe_requests_running") == 0 &&
           engine_.Metric("moe_requests_waiting") == 0;
  });
}

v1::GenerateRequest GenerateBatch(const std::vector<std::vector<std::uint32_t>>& prompts,
                                  std::uint32_t max_new_tokens) {
  v1::GenerateRequest request;
  request.set_ignore_eos(true);
  request.set_max_new_tokens(max_new_tokens);
  for (const auto& prompt : prompts) request.add_sequences()->mutable_token_ids()->Add(prompt.begin(), prompt.end());
  return request;
}

v1::ScoreRequest ScoreBatch(const std::vector<std::vector<std::uint32_t>>& sequences) {
  v1::ScoreRequest request;
  for (const auto& sequence : sequences)
    request.add_sequences()->mutable_token_ids()->Add(sequence.begin(), sequence.end());
  return request;
}

void Receive(const v1::GenerateEvent& event, std::vector<Received>& sequences) {
  if (sequences.size() <= event.sequence()) sequences.resize(event.sequence() + 1);
  Received& received = sequences[event.sequence()];
  EXPECT_FALSE(received.finish.has_value()) << "an event after the last of sequence " << event.sequence();
  EXPECT_TRUE(event.token_ids_size() > 0 || event.has_finish()) << "an event without anything in it";
  ++received.events;
  received.tokens.insert(received.tokens.end(), event.token_ids().begin(), event.token_ids().end());
  received.logprobs.insert(received.logprobs.end(), event.logprobs().begin(), event.logprobs().end());
  for (int i = 0; i < event.routing_size(); ++i) {
    const v1::LayerRouting& routing = event.routing(i);
    EXPECT_EQ(routing.expert_ids_size(), routing.weights_size());
    if (received.routed.size() <= static_cast<std::size_t>(i)) received.routed.emplace_back();
    std::vector<std::uint32_t>& ids = received.routed[static_cast<std::size_t>(i)];
    ids.insert(ids.end(), routing.expert_ids().begin(), routing.expert_ids().end());
  }
  if (event.has_finish()) received.finish = event.finish();
}

GenerateOutcome Generate(v1::Inference::Stub& stub, const v1::GenerateRequest& request) {
  grpc::ClientContext context;
  const auto reader = stub.Generate(&context, request);
  GenerateOutcome outcome;
  v1::GenerateEvent event;
  while (reader->Read(&event)) Receive(event, outcome.sequences);
  outcome.status = reader->Finish();
  return outcome;
}

}  // namespace moe
