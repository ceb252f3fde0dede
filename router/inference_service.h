// moe.v1.Inference: checks requests, queues sequences, streams what comes out.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "model/config.h"
#include "model/parameter_count.h"
#include "router/request.h"
#include "router/router.h"
#include "router/router_metrics.h"

namespace grpc {
class Service;
}

namespace moe {

/// What GetModel tells beside the config, and the limits that calls are held to.
struct InferenceSetup {
  std::string model_name;
  std::string weight_type;
  std::string routing = "gate";
  ParameterCount parameters;
  RequestLimits limits;
  std::uint32_t max_sequences = 0;
  std::uint32_t max_queued = 0;
  std::uint32_t max_step_tokens = 0;
  std::uint64_t kv_tokens = 0;
  std::uint64_t max_message_bytes = 0;
};

/// The service and its delivery thread. Must be destroyed after the server that it is registered with has shut down and
/// after the router has ended.
class InferenceService {
 public:
  InferenceService(InferenceSetup setup, const ModelConfig& config, Router& router, RouterMetrics& metrics);
  ~InferenceService();

  grpc::Service* service();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moe
