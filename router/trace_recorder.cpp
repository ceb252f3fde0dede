#include "router/trace_recorder.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <utility>

#include "core/check.h"
#include "core/date.h"
#include "core/errno_text.h"
#include "placement/trace_bytes.h"

namespace moe {
namespace {

// A record in the ring begins with the payload's length; kSkip: the next one is at the ring's beginning.
constexpr std::size_t kLengthBytes = 8;
constexpr std::uint64_t kSkip = ~std::uint64_t{0};
// Several of the largest steps, or many small ones between two looks of the recorder's thread; a larger ring would take
// more of the caches. A step that needs more than half of it is dropped.
constexpr std::size_t kMinRingBytes = std::size_t{4} << 20;
constexpr std::size_t kMaxRingBytes = std::size_t{64} << 20;
constexpr std::size_t kRingSteps = 4;
constexpr std::size_t kFileBufferBytes = std::size_t{1} << 20;
// The recorder's thread looks by itself: waking it would be a system call of the step's.
constexpr std::chrono::milliseconds kInterval{20};

std::size_t Aligned(std::size_t bytes) { return (bytes + kLengthBytes - 1) / kLengthBytes * kLengthBytes; }

std::size_t RingBytes(const TraceHeader& header, std::size_t max_step_rows) {
  // An encoder's rows and a decoder's share a step.
  const std::size_t rows = header.encoder_layers > 0 ? max_step_rows : 0;
  const std::size_t largest = TraceStepBytes(header, rows, max_step_rows);
  return Aligned(std::clamp(kRingSteps * (largest + kLengthBytes), kMinRingBytes, kMaxRingBytes));
}

}  // namespace

Result<std::unique_ptr<TraceRecorder>> TraceRecorder::Start(Options options, TraceHeader header) {
  header.started = NowUtc();
  const std::string begin = EncodeTraceHeader(header);
  if (begin.size() + kTraceEndBytes > options.limit_bytes)
    return InvalidArgument("a trace of ", options.limit_bytes, " bytes has no room for its header of ", begin.size());
  const bool refuse = options.existing == Existing::kRefuse;
  const int flags = O_WRONLY | O_CREAT | O_CLOEXEC | (refuse ? O_EXCL : O_TRUNC);
  constexpr mode_t kMode = 0644;
  const int descriptor = open(options.path.c_str(), flags, kMode);
  if (descriptor < 0) return InvalidArgument("trace ", options.path.string(), " cannot be written: ", ErrnoText());
  std::FILE* const file = fdopen(descriptor, "wb");
  MOE_CHECK(file != nullptr);
  std::setvbuf(file, nullptr, _IOFBF, kFileBufferBytes);
  std::unique_ptr<TraceRecorder> recorder(new TraceRecorder(std::move(options), std::move(header), file));
  recorder->WriteBytes(std::as_bytes(std::span(begin)));
  recorder->accepted_bytes_ = begin.size();
  if (recorder->options_.on_started) recorder->options_.on_started();
  recorder->thread_ = std::thread([r = recorder.get()] { r->WriteUntilFinished(); });
  return recorder;
}

TraceRecorder::TraceRecorder(Options options, TraceHeader header, std::FILE* file)
    : options_(std::move(options)),
      header_(std::move(header)),
      begin_(Clock::now()),
      file_(file),
      ring_(RingBytes(header_, options_.max_step_rows)) {}

TraceRecorder::~TraceRecorder() {
  Finish();
  if (thread_.joinable()) thread_.join();
}

void TraceRecorder::BeginStep(std::size_t encoder_rows, std::size_t decoder_rows) {
  payload_ = {};
  no_room_ = false;
  if (finishing_.load(std::memory_order_relaxed)) return;  // a hint: what comes too late is not read any more
  head_ = {.encoder_rows = static_cast<std::uint32_t>(encoder_rows),
           .decoder_rows = static_cast<std::uint32_t>(decoder_rows)};
  const std::size_t payload = TraceStepBytes(header_, encoder_rows, decoder_rows);
  if (accepted_bytes_ + kTraceFrameBytes + payload + kTraceEndBytes > options_.limit_bytes) {
    limit_reached_.store(true, std::memory_order_relaxed);
    finishing_.store(true, std::memory_order_release);  // pairs with WriteUntilFinished
    return;
  }
  const std::size_t needed = kLengthBytes + Aligned(payload);
  const std::uint64_t put = put_.load(std::memory_order_relaxed);  // this thread's own
  const std::size_t at = put % ring_.size();
  const std::size_t skipped = at + needed > ring_.size() ? ring_.size() - at : 0;
  const std::uint64_t taken = taken_.load(std::memory_order_acquire);  // pairs with WriteRecords
  const std::size_t room = ring_.size() - static_cast<std::size_t>(put - taken);
  no_room_ = payload > kMaxTracePayload || needed > ring_.size() / 2 || skipped + needed > room;
  if (no_room_) return;
  if (skipped > 0) PutNumber(kSkip, ring_, at);
  const std::size_t begin = skipped > 0 ? 0 : at;
  PutNumber(static_cast<std::uint64_t>(payload), ring_, begin);
  payload_ = std::span(ring_).subspan(begin + kLengthBytes, payload);
  next_put_ = put + skipped + needed;
}

void TraceRecorder::NoteLayer(std::size_t sparse_index, MatrixView<const std::int32_t> ids,
                              MatrixView<const float> weights) {
  if (payload_.empty()) return;
  const std::size_t pairs = TraceStep{.head = head_, .ids = {}, .weights = {}}.begin(header_, sparse_index);
  EncodeTraceLayer(
      ids, weights,
      payload_.subspan(kTraceStepHeadBytes + kTracePairBytes * pairs, kTracePairBytes * ids.rows() * ids.cols()));
}

void TraceRecorder::EndStep(std::uint64_t step, std::uint64_t generation, TimePoint now) {
  if (no_room_) dropped_.fetch_add(1, std::memory_order_relaxed);
  if (payload_.empty()) return;
  head_.step = step;
  head_.nanoseconds =
      static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(now - begin_).count());
  head_.generation = generation;
  EncodeTraceStepHead(head_, payload_);
  accepted_bytes_ += kTraceFrameBytes + payload_.size();
  payload_ = {};
  put_.store(next_put_, std::memory_order_release);  // pairs with WriteRecords
}

void TraceRecorder::Finish(std::function<void(const TraceProgress&)> ended) {
  finishing_.store(true, std::memory_order_release);  // pairs with WriteUntilFinished
  bool closed = false;
  {
    const std::lock_guard lock(mutex_);
    closed = closed_;
    if (!closed && ended) waiting_.push_back(std::move(ended));
  }
  changed_.notify_one();
  if (closed && ended) ended(progress());
}

TraceProgress TraceRecorder::progress() const {
  // Counts for people: nothing is read through them.
  TraceProgress progress{.path = options_.path.string(),
                         .steps = steps_.load(std::memory_order_relaxed),
                         .dropped = dropped_.load(std::memory_order_relaxed),
                         .bytes = bytes_.load(std::memory_order_relaxed),
                         .end = limit_reached_.load(std::memory_order_relaxed) ? TraceEnd::kLimit : TraceEnd::kStopped};
  const std::lock_guard lock(mutex_);
  progress.recording = !closed_;
  progress.failure = failure_;
  return progress;
}

void TraceRecorder::WriteUntilFinished() {
  for (bool finishing = false; !finishing;) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait_for(lock, kInterval, [this] { return finishing_.load(std::memory_order_relaxed); });
    }
    finishing =
        finishing_.load(std::memory_order_acquire);  // pairs with BeginStep and Finish: what came before is there
    WriteRecords();
  }
  Close();
  Tell();
  TraceProgress end = progress();
  end.recording = false;
  if (options_.on_ended) options_.on_ended(end);  // before anybody else hears of it
  std::vector<std::function<void(const TraceProgress&)>> waiting;
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    waiting.swap(waiting_);
  }
  for (const auto& ended : waiting) ended(end);
}

void TraceRecorder::WriteRecords() {
  const std::uint64_t put = put_.load(std::memory_order_acquire);  // pairs with EndStep
  std::uint64_t taken = taken_.load(std::memory_order_relaxed);    // this thread's own
  while (taken < put) {
    const std::size_t at = taken % ring_.size();
    const auto length = GetNumber<std::uint64_t>(ring_, at);
    if (length == kSkip) {
      taken += ring_.size() - at;
    } else {
      const std::span<const std::byte> payload = std::span(ring_).subspan(at + kLengthBytes, length);
      std::array<std::byte, kTraceFrameBytes> frame;
      EncodeTraceStepFrame(payload, frame);
      WriteBytes(frame);
      WriteBytes(payload);
      steps_.fetch_add(1, std::memory_order_relaxed);
      taken += kLengthBytes + Aligned(length);
    }
    taken_.store(taken, std::memory_order_release);  // pairs with BeginStep
  }
  if (std::fflush(file_) != 0) NoteFailure();
  Tell();
}

// After a failure nothing more is written: a file that breaks off is readable, one with a hole is not.
void TraceRecorder::WriteBytes(std::span<const std::byte> bytes) {
  {
    const std::lock_guard lock(mutex_);
    if (!failure_.ok()) return;
  }
  const bool written = std::fwrite(bytes.data(), 1, bytes.size(), file_) == bytes.size() && std::ferror(file_) == 0;
  if (!written) return NoteFailure();
  bytes_.fetch_add(bytes.size(), std::memory_order_relaxed);
}

void TraceRecorder::NoteFailure() {
  const Status failure = Internal("trace ", options_.path.string(), " cannot be written: ", ErrnoText());
  const std::lock_guard lock(mutex_);
  if (failure_.ok()) failure_ = failure;
  finishing_.store(true, std::memory_order_release);  // pairs with WriteUntilFinished
}

void TraceRecorder::Close() {
  const TraceEnd end = limit_reached_.load(std::memory_order_relaxed) ? TraceEnd::kLimit : TraceEnd::kStopped;
  const std::string record =
      EncodeTraceEnd(steps_.load(std::memory_order_relaxed), dropped_.load(std::memory_order_relaxed), end);
  WriteBytes(std::as_bytes(std::span(record)));
  if (std::fclose(file_) != 0) NoteFailure();
}

void TraceRecorder::Tell() {
  if (!options_.on_written) return;
  const Told now{.steps = steps_.load(std::memory_order_relaxed),
                 .dropped = dropped_.load(std::memory_order_relaxed),
                 .bytes = bytes_.load(std::memory_order_relaxed)};
  options_.on_written(now.steps - told_.steps, now.dropped - told_.dropped, now.bytes - told_.bytes);
  told_ = now;
}

}  // namespace moe
