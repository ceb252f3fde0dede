// Checks client messages against the model and the limits, and turns them into sequences.
#pragma once

#include <cstdint>
#include <vector>

#include "core/status.h"
#include "model/config.h"
#include "router/sequence.h"

namespace moe::v1 {
class GenerateRequest;
class ScoreRequest;
}  // namespace moe::v1

namespace moe {

/// Above any of these a call is refused at once.
struct RequestLimits {
  std::uint32_t max_sequences_per_request = 0;
  std::uint32_t max_logprobs = 20;
  std::uint32_t max_stop_token_ids = 64;
  std::uint32_t max_streams = 0;
  std::uint32_t max_source_tokens = 0;  // that an encoder can take, in one step
  std::uint64_t max_reply_bytes = 0;    // of a ScoreResponse
  std::uint64_t max_output_bytes = 0;   // of all open calls' outputs together
};

/// INVALID_ARGUMENT naming the field and the value. `drawn_seed` is used when the request has none.
Result<std::vector<SequenceRequest>> ParseGenerate(const v1::GenerateRequest& message, const ModelConfig& config,
                                                   const RequestLimits& limits, std::uint64_t drawn_seed);
Result<std::vector<SequenceRequest>> ParseScore(const v1::ScoreRequest& message, const ModelConfig& config,
                                                const RequestLimits& limits);

}  // namespace moe
