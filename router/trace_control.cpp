#include "router/trace_control.h"

#include <utility>

namespace moe {

TraceControl::TraceControl(Setup setup, Engine& engine, Router& router)
    : setup_(std::move(setup)), engine_(engine), router_(router) {}

Status TraceControl::Begin(const Start& start) {
  const std::lock_guard lock(mutex_);
  if (setup_.header.layers.empty()) return InvalidArgument("a trace needs a model with experts, this one has none");
  if (recorder_ && recorder_->progress().recording)
    return ResourceExhausted("a trace is being recorded to ", recorder_->progress().path,
                             "; it must be stopped before another one starts");
  TraceHeader header = setup_.header;
  if (const std::shared_ptr<const Placement> placement = router_.placement()) header.placement = *placement;
  Result<std::unique_ptr<TraceRecorder>> made =
      TraceRecorder::Start({.path = start.path,
                            .existing = start.existing,
                            .limit_bytes = start.limit_bytes > 0 ? start.limit_bytes : setup_.limit_bytes,
                            .max_step_rows = setup_.max_step_rows,
                            .on_started = setup_.on_started,
                            .on_written = setup_.on_written,
                            .on_ended = setup_.on_ended},
                           header);
  if (!made.ok()) return made.status();
  const std::shared_ptr<TraceRecorder> recorder = *std::move(made);
  // The one before lives until the engine has let go of it.
  const auto attach = [this, recorder, before = recorder_] { engine_.Record(recorder.get()); };
  if (!router_.OnEngineThread(attach)) return Unavailable("the router has stopped");
  recorder_ = recorder;
  return Status::Ok();
}

void TraceControl::End(std::function<void(Result<TraceProgress>)> done) {
  std::shared_ptr<TraceRecorder> recorder;
  {
    const std::lock_guard lock(mutex_);
    recorder = recorder_;
  }
  if (!recorder) return done(NotFound("no trace is being recorded, and none was"));
  const auto finish = [this, recorder, done = std::move(done)] {
    if (engine_.recorder() == recorder.get()) engine_.Record(nullptr);
    recorder->Finish([done](const TraceProgress& end) {
      if (end.failure.ok()) return done(end);
      done(end.failure);
    });
  };
  // After the last step nobody records, and any thread may do it.
  if (!router_.OnEngineThread(finish)) finish();
}

std::optional<TraceProgress> TraceControl::progress() const {
  const std::lock_guard lock(mutex_);
  if (!recorder_) return std::nullopt;
  return recorder_->progress();
}

}  // namespace moe
