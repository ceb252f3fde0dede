// What a router and a worker say to each other: both halves of every payload, so that they cannot drift apart. A
// transport carries it as opaque bytes. Little-endian, as all machines of a cluster are. docs/wire-format.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/matrix.h"
#include "core/status.h"

namespace moe {

/// How activation rows travel.
enum class ExchangeType : std::uint8_t { kF32, kBf16 };

std::string_view Name(ExchangeType type);
constexpr std::size_t BytesPerElement(ExchangeType type) { return type == ExchangeType::kF32 ? 4 : 2; }

enum class MessageKind : std::uint32_t {
  kDispatch = 1,  // rows of one layer for the experts of a worker; answered with one row per pair
  kDescribe = 2,  // who are you, have you loaded; answered with a WorkerDescription
  kShutdown = 3,  // answered, then the worker ends
  kAssign = 4,    // host this shard; answered with a WorkerDescription once it is loaded, which may take minutes
  kPrepare = 5,   // have another generation beside it (model/migration_format.h); answered at once
  kPrepared = 6,  // how far is that; answered with a PreparationStatus
  kDrop = 7,      // forget a generation; answered with a WorkerDescription
};

/// A request to compute `row` with the expert in `slot` of the receiving worker.
struct DispatchPair {
  std::uint32_t row = 0;   // of this message's rows
  std::uint32_t slot = 0;  // of the worker, in this layer
  float weight = 0;        // of the gate; read only by families whose gate scales the expert's input
};

struct DispatchShape {
  std::uint32_t layer = 0;       // absolute index
  std::uint64_t generation = 0;  // of the placement
  std::uint32_t rows = 0;
  std::uint32_t pairs = 0;
  std::uint32_t hidden = 0;
  ExchangeType type = ExchangeType::kF32;
};

/// Bytes of a dispatch and of its answer.
std::size_t DispatchBytes(const DispatchShape& shape);
std::size_t DispatchReplyBytes(const DispatchShape& shape);

/// Writes a dispatch into a request buffer of at least DispatchBytes(shape): pairs() and SetRow() fill it in place.
class DispatchWriter {
 public:
  DispatchWriter(std::span<std::byte> buffer, const DispatchShape& shape);
  std::span<DispatchPair> pairs() const { return pairs_; }
  void SetRow(std::size_t row, std::span<const float> values) const;
  std::size_t bytes() const;

 private:
  DispatchShape shape_;
  std::span<DispatchPair> pairs_;
  std::span<std::byte> rows_;
};

/// A dispatch as received: every count is checked against the payload and every pair against its rows.
class DispatchReader {
 public:
  static Result<DispatchReader> Parse(std::span<const std::byte> payload);
  const DispatchShape& shape() const { return shape_; }
  std::span<const DispatchPair> pairs() const { return pairs_; }
  void GetRow(std::size_t row, std::span<float> values) const;

 private:
  DispatchShape shape_;
  std::span<const DispatchPair> pairs_;
  std::span<const std::byte> rows_;
};

/// The answer to a dispatch: one row per pair, in the order of the pairs, and how long the worker computed.
class DispatchReplyWriter {
 public:
  DispatchReplyWriter(std::span<std::byte> buffer, const DispatchShape& shape);
  void SetRow(std::size_t pair, std::span<const float> values) const;
  /// Completes the reply; returns its bytes.
  std::size_t Finish(std::uint64_t busy_ns) const;

 private:
  DispatchShape shape_;
  std::span<std::byte> buffer_;
  std::span<std::byte> rows_;
};

class DispatchReplyReader {
 public:
  /// The worker's own failure when it answered with one, INTERNAL when the reply is not what was asked for.
  static Result<DispatchReplyReader> Parse(std::span<const std::byte> payload, const DispatchShape& shape);
  /// values = row of `pair`.
  void GetRow(std::size_t pair, std::span<float> values) const;
  std::uint64_t busy_ns() const { return busy_ns_; }

 private:
  DispatchShape shape_;
  std::span<const std::byte> rows_;
  std::uint64_t busy_ns_ = 0;
};

/// A request without a body.
std::size_t WriteControl(std::span<std::byte> buffer, MessageKind kind, std::uint64_t generation = 0);
/// The kind of any request.
Result<MessageKind> ParseKind(std::span<const std::byte> payload);
/// The generation that a request names in its header.
Result<std::uint64_t> ParseGeneration(std::span<const std::byte> payload);
/// A request with a text after its header. RESOURCE_EXHAUSTED naming `what` ("an assignment") when the buffer is too
/// small.
Result<std::size_t> WriteTextRequest(std::span<std::byte> buffer, MessageKind kind, std::string_view what,
                                     std::string_view text);
Result<std::string_view> ParseTextRequest(std::span<const std::byte> payload);
/// A reply that is a text, cut to the buffer, and back: the failure when it was answered with one.
std::size_t WriteTextReply(std::span<std::byte> buffer, std::string_view text);
Result<std::string_view> ParseTextReply(std::span<const std::byte> payload);
/// Any request may be answered with a failure instead.
std::size_t WriteFailure(std::span<std::byte> buffer, const Status& status);

/// What the two sides mean by these messages, beyond their form. Compared before a shard is assigned.
inline constexpr std::uint32_t kDispatchProtocol = 1;

/// What a worker says of itself. Travels as JSON: it is read once, by people too.
struct WorkerDescription {
  std::uint32_t protocol = kDispatchProtocol;
  std::string host;
  std::uint64_t pid = 0;
  std::string device;         // "cpu"
  std::string kernel_target;  // "avx3"; a router refuses a fleet of several
  std::string fingerprint;    // of the checkpoint
  std::string weight_type;
  std::uint32_t threads = 0;
  std::uint64_t free_memory_bytes = 0;
  std::uint64_t generation = 0;  // of the placement that its shard is of; 0: it has none
  std::uint64_t slots = 0;       // of all layers
  std::uint64_t parameters = 0;
  std::uint64_t weight_bytes = 0;
  std::string metrics_address;  // empty when off
  std::string control_address;
};

std::size_t WriteDescription(std::span<std::byte> buffer, const WorkerDescription& description);
/// The description, or the worker's own failure to load.
Result<WorkerDescription> ParseDescription(std::span<const std::byte> payload);
/// OK, or the failure that a control request was answered with.
Status ParseControlReply(std::span<const std::byte> payload);
std::size_t WriteControlReply(std::span<std::byte> buffer);

/// What a worker is to host, as its router says. Travels as JSON too.
struct WorkerAssignment {
  struct Layer {
    int layer = 0;           // absolute index
    std::vector<int> slots;  // the expert in each

    bool operator==(const Layer&) const = default;
  };

  std::uint32_t worker = 0;  // its number
  std::uint32_t workers = 0;
  std::uint64_t generation = 0;  // of the placement
  std::string fingerprint;       // of the checkpoint
  std::string weight_type;
  std::uint64_t max_pairs = 0;  // of one dispatch
  bool load = true;             // else a worker that does not host just this says so, at once
  std::vector<Layer> layers;    // every sparse one, ascending

  bool operator==(const WorkerAssignment&) const = default;
};

/// The most that an assignment of so many sparse layers and slots in all takes.
std::size_t MaxAssignmentBytes(std::size_t layers, std::size_t slots);
/// RESOURCE_EXHAUSTED when the buffer is too small.
Result<std::size_t> WriteAssignment(std::span<std::byte> buffer, const WorkerAssignment& assignment);
Result<WorkerAssignment> ParseAssignment(std::span<const std::byte> payload);

/// Every reply fits in this many bytes more than its rows.
inline constexpr std::size_t kMaxControlBytes = 64 * 1024;

}  // namespace moe
