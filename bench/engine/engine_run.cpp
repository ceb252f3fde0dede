#include "bench/engine/engine_run.h"

#include <utility>

#include "core/check.h"

namespace moe {
namespace {

bool Done(const Sequence& sequence) {
  if (sequence.request.kind == SequenceKind::kScore) return sequence.computed == sequence.request.prompt.size();
  return sequence.generated() == sequence.request.max_new_tokens;
}

}  // namespace

std::unique_ptr<Sequence> MakeSequence(SequenceRequest request, const ModelConfig& config,
                                       std::shared_ptr<SequenceOutput>* output) {
  auto shared = std::make_shared<SequenceOutput>(request, config);
  if (output != nullptr) *output = shared;
  return std::make_unique<Sequence>(std::move(request), std::move(shared), nullptr, config);
}

Status RunSequences(RouterEngine& router, const SchedulerLimits& limits,
                    std::vector<std::unique_ptr<Sequence>> sequences, AfterStep after_step) {
  Scheduler scheduler(limits, router.cache());
  for (std::unique_ptr<Sequence>& sequence : sequences) scheduler.Enqueue(std::move(sequence));
  Status status;
  for (bool go_on = true; go_on && status.ok();) {
    scheduler.Admit([](Sequence&) {});
    const std::span<const Chunk> chunks = scheduler.Schedule();
    if (chunks.empty()) {
      MOE_CHECK(scheduler.waiting() == 0, "a sequence does not fit the cache");
      break;
    }
    status = router.engine().Step(chunks);
    if (status.ok()) go_on = after_step(chunks, router.engine().report());
    scheduler.Retire([](const Sequence& sequence) { return Done(sequence); });
  }
  scheduler.Retire([](const Sequence&) { return true; });  // gives the pages back
  return status;
}

}  // namespace moe
