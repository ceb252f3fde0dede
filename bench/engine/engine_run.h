// Runs sequences through an engine to their ends, as a server would batch them, without a server.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/function_ref.h"
#include "core/status.h"
#include "model/config.h"
#include "ranks/router_engine.h"
#include "router/scheduler.h"
#include "router/sequence.h"

namespace moe {

/// `output` may be null when nobody reads it.
std::unique_ptr<Sequence> MakeSequence(SequenceRequest request, const ModelConfig& config,
                                       std::shared_ptr<SequenceOutput>* output = nullptr);

/// Called after every step with what it computed: chunks of the sequences, which it may change, and the engine's
/// report. False ends the run.
using AfterStep = FunctionRef<bool(std::span<const Chunk>, const StepReport&)>;

/// All of `sequences`, at most limits.max_sequences at a time, until each is scored or has its max_new_tokens; stop
/// tokens are not looked at. Each must fit the engine's KV cache.
Status RunSequences(RouterEngine& router, const SchedulerLimits& limits,
                    std::vector<std::unique_ptr<Sequence>> sequences, AfterStep after_step);

}  // namespace moe
