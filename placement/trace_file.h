// Routing traces: who went where, step by step. Both halves of the format (docs/trace-format.md): what a recorder
// writes, and what a reader checks. Nothing here opens a file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/matrix.h"
#include "core/status.h"
#include "model/config.h"
#include "placement/placement.h"

namespace moe {

/// What a trace is of.
struct TraceHeader {
  std::string model;             // the checkpoint's folder
  std::string weight_type;       // "bf16"
  std::string routing = "gate";  // RoutingName
  std::string started;           // UTC, ISO 8601
  int num_experts = 0;
  int experts_per_token = 0;
  int encoder_layers = 0;   // of `layers`, the first so many see an encoder's rows
  std::vector<int> layers;  // absolute indices of the sparse layers
  Placement placement;      // in force when it was started
};

/// With what follows from a model and its placement.
TraceHeader MakeTraceHeader(const ModelConfig& config, const Placement& placement);

/// What stands before the pairs of a step.
struct TraceStepHead {
  std::uint64_t step = 0;          // counted by the engine since it started
  std::uint64_t nanoseconds = 0;   // since the recording started
  std::uint64_t generation = 0;    // of the placement that the rows went by
  std::uint32_t encoder_rows = 0;  // of each of the encoder's layers
  std::uint32_t decoder_rows = 0;  // of each of the others
};

enum class TraceEnd : std::uint32_t {
  kStopped = 0,
  kLimit = 1,  // the next step would have gone over the limit of bytes
};

// --- writing

inline constexpr std::size_t kTraceFrameBytes = 12;     // of a record: kind, bytes of the payload, checksum
inline constexpr std::size_t kTraceStepHeadBytes = 32;  // the first of a step's payload
inline constexpr std::size_t kTracePairBytes = 6;       // an id and a weight
inline constexpr std::size_t kTraceEndBytes = kTraceFrameBytes + 20;
/// A step that would take more is not recorded; a reader refuses it.
inline constexpr std::size_t kMaxTracePayload = std::size_t{256} << 20;

std::string EncodeTraceHeader(const TraceHeader& header);
/// Of a step's payload: the head, then for each sparse layer the ids of its rows and the weights of its rows.
std::size_t TraceStepBytes(const TraceHeader& header, std::size_t encoder_rows, std::size_t decoder_rows);
/// Into the first kTraceStepHeadBytes of a payload.
void EncodeTraceStepHead(const TraceStepHead& head, std::span<std::byte> out);
/// Into kTracePairBytes * rows * k: ids (rows, k), then weights.
void EncodeTraceLayer(MatrixView<const std::int32_t> ids, MatrixView<const float> weights, std::span<std::byte> out);
/// Into the kTraceFrameBytes before a step's payload.
void EncodeTraceStepFrame(std::span<const std::byte> payload, std::span<std::byte> out);
/// The last record, whole.
std::string EncodeTraceEnd(std::uint64_t steps, std::uint64_t dropped, TraceEnd end);

/// CRC-32 as in zlib and PNG (reflected, 0xEDB88320) of `bytes` after those that gave `before`.
std::uint32_t Crc32(std::span<const std::byte> bytes, std::uint32_t before = 0);

// --- reading

/// The vectors are reused by the next step.
struct TraceStep {
  TraceStepHead head;
  std::vector<std::uint16_t> ids;  // the layers' (rows, k), one layer after the other
  std::vector<float> weights;      // the same

  std::size_t rows(const TraceHeader& header, std::size_t sparse_index) const {
    return static_cast<int>(sparse_index) < header.encoder_layers ? head.encoder_rows : head.decoder_rows;
  }
  /// Where a layer's pairs begin.
  std::size_t begin(const TraceHeader& header, std::size_t sparse_index) const;
};

/// Fills the span from the front; gives how much there was, less than asked for only at the end.
using TraceSource = std::function<std::size_t(std::span<std::byte>)>;

class TraceReader {
 public:
  /// INVALID_ARGUMENT when what comes does not begin with a header that is whole and right.
  static Result<TraceReader> Open(TraceSource source);

  const TraceHeader& header() const { return header_; }
  /// The next step. False at the end: after the record that says so, or where the bytes end inside a record.
  /// INVALID_ARGUMENT, naming the place, for a record that is whole and wrong; the steps before it were right.
  Result<bool> Next(TraceStep& step);

  // Once Next has given false:

  /// Nothing when the recording broke off.
  std::optional<TraceEnd> end() const { return end_; }
  std::uint64_t dropped() const { return dropped_; }  // steps that were left out

  std::uint64_t steps() const { return steps_; }  // read so far

 private:
  TraceReader(TraceSource source, TraceHeader header, std::uint64_t offset)
      : source_(std::move(source)), header_(std::move(header)), offset_(offset) {}

  Result<bool> ReadRecord(TraceStep& step);
  Status ReadStep(std::span<const std::byte> payload, TraceStep& step) const;
  Status ReadEnd(std::span<const std::byte> payload);

  TraceSource source_;
  TraceHeader header_;
  std::uint64_t offset_ = 0;  // of the next record
  std::vector<std::byte> payload_;
  bool done_ = false;
  std::optional<TraceEnd> end_;
  std::uint64_t steps_ = 0;
  std::uint64_t dropped_ = 0;
};

}  // namespace moe
