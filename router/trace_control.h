// Starts and stops routing traces of a running router, one at a time.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>

#include "core/status.h"
#include "router/engine.h"
#include "router/router.h"
#include "router/trace_recorder.h"

namespace moe {

class TraceControl {
 public:
  struct Setup {
    TraceHeader header;  // but for the placement, which is that in force
    std::size_t max_step_rows = 0;
    std::uint64_t limit_bytes = 0;  // where a start names none
    std::function<void()> on_started;
    TraceRecorder::OnWritten on_written;
    std::function<void(const TraceProgress&)> on_ended;
  };
  /// Both must outlive this but for their threads: once this goes, no step may run.
  TraceControl(Setup setup, Engine& engine, Router& router);

  struct Start {
    std::filesystem::path path;
    TraceRecorder::Existing existing = TraceRecorder::Existing::kRefuse;
    std::uint64_t limit_bytes = 0;  // 0: the setup's
  };
  /// From the next step on. RESOURCE_EXHAUSTED while another trace is recorded, INVALID_ARGUMENT for a path that cannot
  /// be written or a model without experts, UNAVAILABLE when the router has ended.
  Status Begin(const Start& start);
  /// `done` is told, by whatever thread, how the trace ended once its file is closed: the one that is recorded, else
  /// the last one. NOT_FOUND when there was none.
  void End(std::function<void(Result<TraceProgress>)> done);
  /// Of the one that is recorded, else the last one.
  std::optional<TraceProgress> progress() const;

 private:
  const Setup setup_;
  Engine& engine_;
  Router& router_;
  mutable std::mutex mutex_;
  std::shared_ptr<TraceRecorder> recorder_;  // the engine's too, until it is told of the next one
};

}  // namespace moe
