// Which transports `moe_bench transport` measures, of those that a job or a process can have.
#pragma once

#include <string>
#include <vector>

#include "core/status.h"

namespace moe {

/// What decides.
struct TransportSurroundings {
  int ranks = 1;             // that mpirun started; 1 also without it
  std::string nccl_refusal;  // why this program cannot use NCCL here; empty: it can
};

struct TransportSelection {
  std::vector<std::string> names;    // in the order in which they take turns
  std::vector<std::string> skipped;  // a sentence for each that was not asked for by name and cannot run
};

/// `asked` is "auto" (the one that a job takes by itself), "all" (every one that can run here), or names.
/// INVALID_ARGUMENT for a name that is unknown, given twice, or that cannot run here.
Result<TransportSelection> SelectTransports(const std::vector<std::string>& asked,
                                            const TransportSurroundings& surroundings);

}  // namespace moe
