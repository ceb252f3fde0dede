// The handshake of a router with one worker that it tells what to host.
#pragma once

#include <chrono>
#include <functional>
#include <span>
#include <vector>

#include "core/clock.h"
#include "core/status.h"
#include "core/worker_mask.h"
#include "model/dispatch_format.h"
#include "router/worker_links.h"

namespace moe {

struct AttachOptions {
  std::chrono::milliseconds answer_timeout{0};  // to be reached, and to say who it is
  std::chrono::milliseconds load_timeout{0};    // to load its shard
  std::function<bool()> stopping;               // asked often while waiting; true gives up with CANCELLED
};

/// Reaches the worker that `wanted` is for, checks that it fits, has it load its shard unless it has, and leaves. What
/// it then says of itself, or why not, with its rank and address before the sentence: INVALID_ARGUMENT when it serves
/// something else and asking again will not help, any other code when it may.
Result<WorkerDescription> AttachWorker(WorkerLinks& links, const WorkerAssignment& wanted,
                                       const AttachOptions& options);

struct LostWorker {
  WorkerId worker;
  Status why;
};
/// Over a transport to workers that have been attached: makes sure that each still hosts what it shall, which a new
/// process in its place would not. Adds to `lost` those that do not or let the deadline pass. The transport's failure;
/// whom it was about, if it was a broken connection, is the transport's to say.
Status ConfirmWorkers(Transport& transport, const WorkerMask& attached, std::span<const WorkerAssignment> wanted,
                      Deadline deadline, std::vector<LostWorker>& lost);

}  // namespace moe
