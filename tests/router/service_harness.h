// The router's gRPC services over an engine harness, and a client's stubs, in one process.
#pragma once

#include <grpcpp/grpcpp.h>
#include <moe/v1/cluster.grpc.pb.h>
#include <moe/v1/inference.grpc.pb.h>

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "router/cluster_service.h"
#include "router/inference_service.h"
#include "rpc/server.h"
#include "tests/router/engine_harness.h"

namespace moe {

struct ServiceOptions {
  HarnessOptions engine;
  RequestLimits limits{
      .max_sequences_per_request = 16, .max_streams = 16, .max_reply_bytes = 64 << 20, .max_output_bytes = 256 << 20};
  int max_receive_bytes = 1 << 20;
};

class ServiceHarness {
 public:
  /// Serves; the router's loop runs.
  explicit ServiceHarness(ServiceOptions options = {});
  ~ServiceHarness();
  ServiceHarness(const ServiceHarness&) = delete;
  ServiceHarness& operator=(const ServiceHarness&) = delete;

  EngineHarness& engine() { return engine_; }
  v1::Inference::Stub& inference() { return *inference_stub_; }
  v1::Cluster::Stub& cluster() { return *cluster_stub_; }

  /// Waits between steps of the engine until `condition` holds; false when it does not within a minute.
  bool Eventually(const std::function<bool()>& condition);
  /// Until nothing runs or waits and the cache is empty.
  bool EventuallyIdle();

 private:
  EngineHarness engine_;
  std::optional<Balancer> balancer_;
  std::optional<InferenceService> inference_;
  std::optional<ClusterService> cluster_;
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<v1::Inference::Stub> inference_stub_;
  std::unique_ptr<v1::Cluster::Stub> cluster_stub_;
};

/// A batch of prompts, each to be continued greedily past any stop token.
v1::GenerateRequest GenerateBatch(const std::vector<std::vector<std::uint32_t>>& prompts, std::uint32_t max_new_tokens);
v1::ScoreRequest ScoreBatch(const std::vector<std::vector<std::uint32_t>>& sequences);

/// What came for one sequence of a Generate call; its events' order is checked on the way.
struct Received {
  std::vector<std::uint32_t> tokens;
  std::vector<v1::TokenLogprobs> logprobs;
  std::vector<std::vector<std::uint32_t>> routed;  // by layer of the routing, ids in order of position
  int events = 0;
  std::optional<v1::Finish> finish;
};

struct GenerateOutcome {
  std::vector<Received> sequences;
  grpc::Status status;
};

/// Adds an event to what came before it.
void Receive(const v1::GenerateEvent& event, std::vector<Received>& sequences);
/// The whole of a call.
GenerateOutcome Generate(v1::Inference::Stub& stub, const v1::GenerateRequest& request);

}  // namespace moe
