#include "model/dispatch_format.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "kernels/weight_type.h"

namespace moe {
namespace {

constexpr std::uint32_t kVersion = 1;
constexpr std::size_t kAlign = 64;  // rows start on a cache line

struct RequestHeader {
  std::uint32_t version;
  std::uint32_t kind;
  std::uint32_t layer;
  std::uint32_t rows;
  std::uint32_t pairs;
  std::uint32_t hidden;
  std::uint32_t type;
  std::uint32_t reserved;
  std::uint64_t generation;
};
static_assert(sizeof(RequestHeader) == 40);
static_assert(sizeof(DispatchPair) == 12);

struct ReplyHeader {
  std::uint32_t version;
  std::uint32_t code;  // StatusCode; anything but OK is followed by text
  std::uint32_t pairs;
  std::uint32_t bytes;  // of the text
  std::uint64_t busy_ns;
};
static_assert(sizeof(ReplyHeader) == 24);

constexpr std::size_t AlignUp(std::size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

std::size_t RowsOffset(const DispatchShape& shape) {
  return AlignUp(sizeof(RequestHeader) + shape.pairs * sizeof(DispatchPair));
}
constexpr std::size_t kReplyRowsOffset = AlignUp(sizeof(ReplyHeader));

std::size_t RowBytes(const DispatchShape& shape) { return shape.hidden * BytesPerElement(shape.type); }

void WriteRow(ExchangeType type, std::span<const float> values, std::byte* out) {
  if (type == ExchangeType::kF32) {
    std::memcpy(out, values.data(), values.size_bytes());
    return;
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::uint16_t bits = F32ToBf16(values[i]);
    std::memcpy(out + 2 * i, &bits, 2);
  }
}

void ReadRow(ExchangeType type, const std::byte* in, std::span<float> values) {
  if (type == ExchangeType::kF32) {
    std::memcpy(values.data(), in, values.size_bytes());
    return;
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, in + 2 * i, 2);
    values[i] = Bf16ToF32(bits);
  }
}

template <typename T>
Result<T> ReadHeader(std::span<const std::byte> payload) {
  T header;
  if (payload.size() < sizeof(T)) return Internal("a message of ", payload.size(), " bytes has no header");
  std::memcpy(&header, payload.data(), sizeof(T));
  if (header.version != kVersion)
    return Internal("message format version ", header.version, " where ", kVersion, " was expected");
  return header;
}

std::size_t WriteReply(std::span<std::byte> buffer, StatusCode code, std::string_view text) {
  const std::size_t bytes = std::min(text.size(), buffer.size() - sizeof(ReplyHeader));
  const ReplyHeader header{kVersion, static_cast<std::uint32_t>(code), 0, static_cast<std::uint32_t>(bytes), 0};
  std::memcpy(buffer.data(), &header, sizeof(header));
  std::memcpy(buffer.data() + sizeof(header), text.data(), bytes);
  return sizeof(header) + bytes;
}

// The text of a reply, or the failure it carries.
Result<std::string_view> ReadReply(std::span<const std::byte> payload) {
  MOE_ASSIGN_OR_RETURN(const ReplyHeader header, ReadHeader<ReplyHeader>(payload));
  if (header.bytes > payload.size() - sizeof(header))
    return Internal("a reply of ", payload.size(), " bytes announces ", header.bytes, " bytes of text");
  const std::string_view text(reinterpret_cast<const char*>(payload.data() + sizeof(header)), header.bytes);
  if (header.code > static_cast<std::uint32_t>(kLastStatusCode))
    return Internal("a reply carries the unknown status ", header.code);
  if (header.code != 0) return Status(static_cast<StatusCode>(header.code), std::string(text));
  return text;
}

template <typename T>
Result<T> ReadJson(std::string_view what, std::string_view text) {
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return Internal(what, " is not a JSON object: ", text.substr(0, 200));
  try {
    return json.get<T>();
  } catch (const nlohmann::json::exception& error) {
    return Internal(what, " is unusable: ", error.what());
  }
}

}  // namespace

std::string_view Name(ExchangeType type) { return type == ExchangeType::kF32 ? "f32" : "bf16"; }

std::size_t DispatchBytes(const DispatchShape& shape) { return RowsOffset(shape) + shape.rows * RowBytes(shape); }

std::size_t DispatchReplyBytes(const DispatchShape& shape) { return kReplyRowsOffset + shape.pairs * RowBytes(shape); }

DispatchWriter::DispatchWriter(std::span<std::byte> buffer, const DispatchShape& shape) : shape_(shape) {
  MOE_CHECK(buffer.size() >= DispatchBytes(shape));
  const RequestHeader header{kVersion,
                             static_cast<std::uint32_t>(MessageKind::kDispatch),
                             shape.layer,
                             shape.rows,
                             shape.pairs,
                             shape.hidden,
                             static_cast<std::uint32_t>(shape.type),
                             0,
                             shape.generation};
  std::memcpy(buffer.data(), &header, sizeof(header));
  pairs_ = {reinterpret_cast<DispatchPair*>(buffer.data() + sizeof(header)), shape.pairs};
  rows_ = buffer.subspan(RowsOffset(shape), shape.rows * RowBytes(shape));
}

void DispatchWriter::SetRow(std::size_t row, std::span<const float> values) const {
  WriteRow(shape_.type, values, rows_.data() + row * RowBytes(shape_));
}

std::size_t DispatchWriter::bytes() const { return DispatchBytes(shape_); }

Result<DispatchReader> DispatchReader::Parse(std::span<const std::byte> payload) {
  MOE_ASSIGN_OR_RETURN(const RequestHeader header, ReadHeader<RequestHeader>(payload));
  DispatchReader reader;
  if (header.type > static_cast<std::uint32_t>(ExchangeType::kBf16))
    return Internal("a dispatch carries rows of the unknown type ", header.type);
  reader.shape_ = {.layer = header.layer,
                   .generation = header.generation,
                   .rows = header.rows,
                   .pairs = header.pairs,
                   .hidden = header.hidden,
                   .type = static_cast<ExchangeType>(header.type)};
  // Rows that cannot fit are refused first: their bytes might not fit 64 bits.
  const std::size_t row_bytes = RowBytes(reader.shape_);
  const bool fit = row_bytes == 0 || header.rows <= payload.size() / row_bytes;
  if (!fit || DispatchBytes(reader.shape_) != payload.size())
    return Internal("a dispatch of ", header.rows, " rows of ", header.hidden, " values and ", header.pairs,
                    " pairs does not take the ", payload.size(), " bytes that arrived");
  reader.pairs_ = {reinterpret_cast<const DispatchPair*>(payload.data() + sizeof(header)), header.pairs};
  reader.rows_ = payload.subspan(RowsOffset(reader.shape_));
  for (const DispatchPair& pair : reader.pairs_)
    if (pair.row >= header.rows) return Internal("a dispatch of ", header.rows, " rows asks for row ", pair.row);
  return reader;
}

void DispatchReader::GetRow(std::size_t row, std::span<float> values) const {
  ReadRow(shape_.type, rows_.data() + row * RowBytes(shape_), values);
}

DispatchReplyWriter::DispatchReplyWriter(std::span<std::byte> buffer, const DispatchShape& shape)
    : shape_(shape), buffer_(buffer), rows_(buffer.subspan(kReplyRowsOffset, shape.pairs * RowBytes(shape))) {}

void DispatchReplyWriter::SetRow(std::size_t pair, std::span<const float> values) const {
  WriteRow(shape_.type, values, rows_.data() + pair * RowBytes(shape_));
}

std::size_t DispatchReplyWriter::Finish(std::uint64_t busy_ns) const {
  const ReplyHeader header{kVersion, 0, shape_.pairs, 0, busy_ns};
  std::memcpy(buffer_.data(), &header, sizeof(header));
  return DispatchReplyBytes(shape_);
}

Result<DispatchReplyReader> DispatchReplyReader::Parse(std::span<const std::byte> payload, const DispatchShape& shape) {
  MOE_RETURN_IF_ERROR(ReadReply(payload).status());
  MOE_ASSIGN_OR_RETURN(const ReplyHeader header, ReadHeader<ReplyHeader>(payload));
  if (header.pairs != shape.pairs || payload.size() != DispatchReplyBytes(shape))
    return Internal("a reply has ", header.pairs, " rows in ", payload.size(), " bytes where ", shape.pairs, " in ",
                    DispatchReplyBytes(shape), " were asked for");
  DispatchReplyReader reader;
  reader.shape_ = shape;
  reader.rows_ = payload.subspan(kReplyRowsOffset);
  reader.busy_ns_ = header.busy_ns;
  return reader;
}

void DispatchReplyReader::GetRow(std::size_t pair, std::span<float> values) const {
  ReadRow(shape_.type, rows_.data() + pair * RowBytes(shape_), values);
}

std::size_t WriteControl(std::span<std::byte> buffer, MessageKind kind, std::uint64_t generation) {
  RequestHeader header{};
  header.version = kVersion;
  header.kind = static_cast<std::uint32_t>(kind);
  header.generation = generation;
  std::memcpy(buffer.data(), &header, sizeof(header));
  return sizeof(header);
}

Result<MessageKind> ParseKind(std::span<const std::byte> payload) {
  MOE_ASSIGN_OR_RETURN(const RequestHeader header, ReadHeader<RequestHeader>(payload));
  switch (const auto kind = static_cast<MessageKind>(header.kind)) {
    case MessageKind::kDispatch:
    case MessageKind::kDescribe:
    case MessageKind::kShutdown:
    case MessageKind::kAssign:
    case MessageKind::kPrepare:
    case MessageKind::kPrepared:
    case MessageKind::kDrop: return kind;
  }
  return Internal("a message of the unknown kind ", header.kind);
}

Result<std::uint64_t> ParseGeneration(std::span<const std::byte> payload) {
  MOE_ASSIGN_OR_RETURN(const RequestHeader header, ReadHeader<RequestHeader>(payload));
  return header.generation;
}

Result<std::size_t> WriteTextRequest(std::span<std::byte> buffer, MessageKind kind, std::string_view what,
                                     std::string_view text) {
  const std::size_t bytes = sizeof(RequestHeader) + text.size();
  if (bytes > buffer.size())
    return ResourceExhausted(what, " of ", bytes, " bytes is over the limit of ", buffer.size());
  WriteControl(buffer, kind);
  std::memcpy(buffer.data() + sizeof(RequestHeader), text.data(), text.size());
  return bytes;
}

Result<std::string_view> ParseTextRequest(std::span<const std::byte> payload) {
  MOE_RETURN_IF_ERROR(ReadHeader<RequestHeader>(payload).status());
  return std::string_view(reinterpret_cast<const char*>(payload.data() + sizeof(RequestHeader)),
                          payload.size() - sizeof(RequestHeader));
}

std::size_t WriteTextReply(std::span<std::byte> buffer, std::string_view text) {
  return WriteReply(buffer, StatusCode::kOk, text);
}

Result<std::string_view> ParseTextReply(std::span<const std::byte> payload) { return ReadReply(payload); }

std::size_t WriteFailure(std::span<std::byte> buffer, const Status& status) {
  MOE_CHECK(!status.ok());
  return WriteReply(buffer, status.code(), status.message());
}

std::size_t WriteControlReply(std::span<std::byte> buffer) { return WriteReply(buffer, StatusCode::kOk, ""); }

Status ParseControlReply(std::span<const std::byte> payload) { return ReadReply(payload).status(); }

// Members go by their own names.
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(WorkerDescription, protocol, host, pid, device, kernel_target, fingerprint,
                                   weight_type, threads, free_memory_bytes, generation, slots, parameters, weight_bytes,
                                   metrics_address, control_address)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(WorkerAssignment::Layer, layer, slots)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(WorkerAssignment, worker, workers, generation, fingerprint, weight_type, max_pairs,
                                   load, layers)

std::size_t WriteDescription(std::span<std::byte> buffer, const WorkerDescription& description) {
  // A host's name or a path need not be UTF-8.
  const auto replace = nlohmann::json::error_handler_t::replace;
  return WriteTextReply(buffer, nlohmann::json(description).dump(-1, ' ', false, replace));
}

Result<WorkerDescription> ParseDescription(std::span<const std::byte> payload) {
  MOE_ASSIGN_OR_RETURN(const std::string_view text, ParseTextReply(payload));
  return ReadJson<WorkerDescription>("a worker's description", text);
}

std::size_t MaxAssignmentBytes(std::size_t layers, std::size_t slots) {
  // A layer's braces, names and number; a slot's digits and comma; what stands before, with room for the fingerprint.
  return sizeof(RequestHeader) + 1024 + layers * 48 + slots * 11;
}

Result<std::size_t> WriteAssignment(std::span<std::byte> buffer, const WorkerAssignment& assignment) {
  return WriteTextRequest(buffer, MessageKind::kAssign, "an assignment", nlohmann::json(assignment).dump());
}

Result<WorkerAssignment> ParseAssignment(std::span<const std::byte> payload) {
  MOE_ASSIGN_OR_RETURN(const std::string_view text, ParseTextRequest(payload));
  return ReadJson<WorkerAssignment>("an assignment", text);
}

}  // namespace moe
