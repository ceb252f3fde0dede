// Writes a routing trace while an engine runs: the engine thread copies each step's choices into a ring, and a thread
// beside it sums them up and writes them. A step never waits for the disk: what finds no room is dropped and counted.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "core/clock.h"
#include "core/matrix.h"
#include "core/status.h"
#include "placement/trace_file.h"

namespace moe {

/// How far a recording is.
struct TraceProgress {
  std::string path;
  bool recording = true;
  std::uint64_t steps = 0;            // in the file
  std::uint64_t dropped = 0;          // found no room in the ring
  std::uint64_t bytes = 0;            // of the file
  TraceEnd end = TraceEnd::kStopped;  // why it is over, when it is
  Status failure;                     // or that the file could not be written to its end
};

class TraceRecorder {
 public:
  enum class Existing : std::uint8_t { kRefuse, kReplace };

  /// Told by the recorder's thread of what has come into the file since the last time.
  using OnWritten = std::function<void(std::uint64_t steps, std::uint64_t dropped, std::uint64_t bytes)>;

  struct Options {
    std::filesystem::path path;
    Existing existing = Existing::kRefuse;
    /// Of the file: a step that would go over it is not written, and the recording ends.
    std::uint64_t limit_bytes = 0;
    std::size_t max_step_rows = 0;
    std::function<void()> on_started;                    // may be empty; once the file is there
    OnWritten on_written;                                // may be empty
    std::function<void(const TraceProgress&)> on_ended;  // may be empty; once, by the recorder's thread
  };
  /// Opens the file and writes the header. `header.started` is set to now. INVALID_ARGUMENT naming the path when that
  /// cannot be, or a limit that has no room for a header.
  static Result<std::unique_ptr<TraceRecorder>> Start(Options options, TraceHeader header);
  /// Ends the recording and waits for the file. No step may be under way.
  ~TraceRecorder();

  // --- by the engine thread; they allocate nothing and call nothing of the system

  /// A step's rows; after one that failed, of the next attempt.
  void BeginStep(std::size_t encoder_rows, std::size_t decoder_rows);
  /// What all rows of a layer chose, (rows, k).
  void NoteLayer(std::size_t sparse_index, MatrixView<const std::int32_t> ids, MatrixView<const float> weights);
  /// The step counts.
  void EndStep(std::uint64_t step, std::uint64_t generation, TimePoint now);

  // --- by any thread

  /// Ends the recording; `ended` is told once the file is closed, by the recorder's thread, or at once if it is.
  void Finish(std::function<void(const TraceProgress&)> ended = {});
  TraceProgress progress() const;

 private:
  TraceRecorder(Options options, TraceHeader header, std::FILE* file);

  void WriteUntilFinished();
  /// Everything that the engine thread has handed over.
  void WriteRecords();
  void WriteBytes(std::span<const std::byte> bytes);
  /// What errno says; the first one stays. Ends the recording.
  void NoteFailure();
  void Close();
  void Tell();

  const Options options_;
  const TraceHeader header_;
  const TimePoint begin_;
  std::FILE* const file_;

  // A ring of records, each its length and its payload, none over the ring's end. One thread puts in, one takes out.
  std::vector<std::byte> ring_;
  std::atomic<std::uint64_t> put_{0};    // bytes ever put in, with what was skipped at the ring's end
  std::atomic<std::uint64_t> taken_{0};  // and taken out

  // The engine thread's.
  std::span<std::byte> payload_;  // of the step that runs; empty: it is not recorded
  std::uint64_t next_put_ = 0;    // where the ring goes on after it
  bool no_room_ = false;          // for it
  TraceStepHead head_;
  std::uint64_t accepted_bytes_ = 0;  // of the file, once all that was handed over is written

  std::atomic<std::uint64_t> dropped_{0};
  std::atomic<std::uint64_t> steps_{0};
  std::atomic<std::uint64_t> bytes_{0};
  std::atomic<bool> limit_reached_{false};
  std::atomic<bool> finishing_{false};

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::function<void(const TraceProgress&)>> waiting_;
  bool closed_ = false;
  Status failure_;

  struct Told {
    std::uint64_t steps = 0, dropped = 0, bytes = 0;
  } told_;  // the recorder's thread's
  std::thread thread_;
};

}  // namespace moe
