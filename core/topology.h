// Who is who: built once at start, so that no code asks whether its rank is 0.
#pragma once

#include "core/ids.h"

namespace moe {

/// One router and its workers. Embedded, rank 0 is the router and worker 0 in one process.
struct Topology {
  int workers = 1;
  bool embedded = true;

  int ranks() const { return embedded ? 1 : workers + 1; }
  Rank router() const { return Rank(0); }
  /// Of a rank that is no router, or of the embedded one.
  WorkerId worker(Rank rank) const { return WorkerId(embedded ? 0 : rank.value() - 1); }
  Rank rank(WorkerId worker) const { return Rank(embedded ? 0 : worker.value() + 1); }
};

}  // namespace moe
