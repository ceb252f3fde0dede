#include "placement/layer_kick.h"

namespace moe {
namespace {

constexpr int kKicksAtATime = 4;

/// A worker that hosts the expert, or that does not and has a slot; −1: there is none.
int RandomWorker(const LayerAssignment& a, int expert, bool hosting, KickStream& random) {
  const int start = random.Below(a.workers());
  for (int i = 0; i < a.workers(); ++i) {
    const int w = (start + i) % a.workers();
    if (a.Hosts(w, expert) == hosting && (hosting || a.HasSlot(w))) return w;
  }
  return -1;
}

}  // namespace

void Kick(LayerAssignment& a, KickStream& random) {
  const int kicks = 1 + random.Below(kKicksAtATime);
  for (int i = 0; i < kicks; ++i) {
    const int gone = random.Below(a.experts());
    const int from = RandomWorker(a, gone, /*hosting=*/true, random);
    if (a.replicas(gone) > 1) {
      a.Remove(from, gone);
    } else if (const int to = RandomWorker(a, gone, /*hosting=*/false, random); to >= 0) {
      a.Remove(from, gone);
      a.Add(to, gone);
    }
    const int more = random.Below(a.experts());
    if (!a.HasTotal()) continue;
    if (const int to = RandomWorker(a, more, /*hosting=*/false, random); to >= 0) a.Add(to, more);
  }
}

}  // namespace moe
