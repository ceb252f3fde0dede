#include "placement/move_meter.h"

#include <algorithm>

namespace moe {

MoveMeter::MoveMeter(std::size_t steps) : keep_(1 - 1 / static_cast<double>(std::max<std::size_t>(steps, 2))) {}

bool MoveMeter::EndStep(const Step& step) {
  bool concluded = false;
  if (step.workers != workers_) Forget();
  workers_ = step.workers;
  if (step.generation != generation_) concluded = Switch(step);
  if (step.migrating) {
    if (!dropping_) moving_.Add(step.rows, step.seconds);
    return concluded;
  }
  dropping_ = false;
  EndMoving();  // one that has failed, since it has not switched
  usual_.Add(step.rows, step.seconds);
  usual_.Fade(keep_);
  if (!measuring_) return concluded;
  since_.Add(step.rows, step.seconds);
  return since_.steps() >= before_.steps() ? Conclude() : concluded;
}

bool MoveMeter::Switch(const Step& step) {
  EndMoving();
  const bool concluded = measuring_ && since_.steps() >= kLeastSteps && Conclude();
  measuring_ = usual_.steps() >= kLeastSteps;
  before_ = usual_;
  usual_ = {};
  since_ = {};
  expected_gain_.reset();
  dropping_ = step.migrating;
  generation_ = step.generation;
  return concluded;
}

void MoveMeter::Forget() {
  measuring_ = false;
  usual_ = {};
  moving_ = {};
}

bool MoveMeter::Conclude() {
  measuring_ = false;
  outcome_ = {.generation = generation_, .steps = StepComparison(since_, before_), .expected_gain = expected_gain_};
  return true;
}

void MoveMeter::EndMoving() {
  if (moving_.steps() == 0) return;
  const StepComparison meanwhile(moving_, usual_);
  moving_ = {};
  if (usual_.steps() < kLeastSteps || meanwhile.steps < kLeastSteps || meanwhile.seconds <= 0) return;
  slowdown_ = std::clamp(1 - meanwhile.seconds_before / meanwhile.seconds, 0.0, 1.0);
}

}  // namespace moe
