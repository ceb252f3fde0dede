// The buffers of a step, by what the engine allocates at its start.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/status.h"
#include "model/config.h"
#include "model/dispatch_format.h"

namespace moe {

struct Buffer {
  std::string name;
  std::uint64_t bytes = 0;
};

struct StepShape {
  std::uint64_t max_step_tokens = 512;
  ExchangeType exchange_type = ExchangeType::kF32;
};

/// What a router computes in: rows of all step tokens, f32, and the logits of at most 64 of them.
std::vector<Buffer> RouterBuffers(const ModelConfig& config, const StepShape& shape);
/// What a worker computes in: every (token, expert) pair of a step may be its.
std::vector<Buffer> WorkerBuffers(const ModelConfig& config, const StepShape& shape);

/// Between a router and one worker, at either end: the largest request and the largest reply. 0 for a dense model.
/// INVALID_ARGUMENT when a step has more pairs than a message can count.
Result<std::uint64_t> ExchangeBytes(const ModelConfig& config, const StepShape& shape);

std::uint64_t SumOf(const std::vector<Buffer>& buffers);

}  // namespace moe
