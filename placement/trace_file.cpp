#include "placement/trace_file.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>

#include "core/check.h"
#include "placement/trace_bytes.h"
#include "placement/trace_header.h"

namespace moe {
namespace {

constexpr std::array<char, 8> kMagic = {'M', 'O', 'E', 'T', 'R', 'A', 'C', 'E'};
constexpr std::uint32_t kVersion = 1;
constexpr std::size_t kPrefixBytes = 16;  // magic, version, bytes of the JSON
constexpr std::size_t kMaxHeaderBytes = std::size_t{64} << 20;
constexpr std::uint32_t kStepKind = 1;
constexpr std::uint32_t kEndKind = 2;
constexpr std::size_t kFrameChecksumAt = 8;
// A length that lies is found out after this much, not after an allocation of its size.
constexpr std::size_t kReadBytes = std::size_t{1} << 20;

constexpr std::array<std::array<std::uint32_t, 256>, 8> MakeCrcTables() {
  std::array<std::array<std::uint32_t, 256>, 8> tables{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0xEDB88320u : 0);
    tables[0][i] = crc;
  }
  for (std::size_t t = 1; t < tables.size(); ++t)
    for (std::size_t i = 0; i < 256; ++i) tables[t][i] = (tables[t - 1][i] >> 8) ^ tables[0][tables[t - 1][i] & 0xff];
  return tables;
}

// tables[t][b]: what byte b has done to the checksum t bytes later, so that eight bytes go at a time.
constexpr auto kCrcTables = MakeCrcTables();

void PutFrame(std::uint32_t kind, std::span<const std::byte> payload, std::span<std::byte> out) {
  PutNumber(kind, out, 0);
  PutNumber(static_cast<std::uint32_t>(payload.size()), out, 4);
  PutNumber(Crc32(payload, Crc32(out.first(kFrameChecksumAt))), out, kFrameChecksumAt);
}

std::uint64_t RowPairs(const TraceHeader& header, std::uint64_t encoder_rows, std::uint64_t decoder_rows) {
  const auto encoder = static_cast<std::uint64_t>(header.encoder_layers);
  const std::uint64_t rows = encoder * encoder_rows + (header.layers.size() - encoder) * decoder_rows;
  return rows * static_cast<std::uint64_t>(header.experts_per_token);
}

/// Reads `bytes` in pieces; false when there are fewer.
bool ReadFully(const TraceSource& source, std::size_t bytes, std::vector<std::byte>& out) {
  out.clear();
  while (out.size() < bytes) {
    const std::size_t begin = out.size();
    out.resize(std::min(bytes, begin + kReadBytes));
    const std::span<std::byte> piece = std::span(out).subspan(begin);
    if (source(piece) < piece.size()) return false;
  }
  return true;
}

std::span<std::byte> Bytes(std::string& text) { return std::as_writable_bytes(std::span(text)); }

}  // namespace

TraceHeader MakeTraceHeader(const ModelConfig& config, const Placement& placement) {
  TraceHeader header{.num_experts = config.num_experts(),
                     .experts_per_token = config.experts_per_token(),
                     .layers = config.sparse_layers(),
                     .placement = placement};
  header.encoder_layers =
      static_cast<int>(std::ranges::count_if(header.layers, [&](int l) { return l < config.encoder_layers; }));
  return header;
}

std::uint32_t Crc32(std::span<const std::byte> bytes, std::uint32_t before) {
  std::uint32_t crc = ~before;
  for (; bytes.size() >= 8; bytes = bytes.subspan(8)) {
    const std::uint32_t low = GetNumber<std::uint32_t>(bytes, 0) ^ crc;
    const auto high = GetNumber<std::uint32_t>(bytes, 4);
    crc = kCrcTables[7][low & 0xff] ^ kCrcTables[6][(low >> 8) & 0xff] ^ kCrcTables[5][(low >> 16) & 0xff] ^
          kCrcTables[4][low >> 24] ^ kCrcTables[3][high & 0xff] ^ kCrcTables[2][(high >> 8) & 0xff] ^
          kCrcTables[1][(high >> 16) & 0xff] ^ kCrcTables[0][high >> 24];
  }
  for (const std::byte byte : bytes)
    crc = (crc >> 8) ^ kCrcTables[0][(crc ^ std::to_integer<std::uint32_t>(byte)) & 0xff];
  return ~crc;
}

std::string EncodeTraceHeader(const TraceHeader& header) {
  const std::string json = TraceHeaderJson(header);
  MOE_CHECK(json.size() <= kMaxHeaderBytes);
  std::string out(kPrefixBytes, '\0');
  std::ranges::copy(kMagic, out.begin());
  PutNumber(kVersion, Bytes(out), 8);
  PutNumber(static_cast<std::uint32_t>(json.size()), Bytes(out), 12);
  out += json;
  const std::uint32_t checksum = Crc32(Bytes(out));
  out.resize(out.size() + sizeof checksum);
  PutNumber(checksum, Bytes(out), out.size() - sizeof checksum);
  return out;
}

std::size_t TraceStepBytes(const TraceHeader& header, std::size_t encoder_rows, std::size_t decoder_rows) {
  return kTraceStepHeadBytes + kTracePairBytes * RowPairs(header, encoder_rows, decoder_rows);
}

void EncodeTraceStepHead(const TraceStepHead& head, std::span<std::byte> out) {
  PutNumber(head.step, out, 0);
  PutNumber(head.nanoseconds, out, 8);
  PutNumber(head.generation, out, 16);
  PutNumber(head.encoder_rows, out, 24);
  PutNumber(head.decoder_rows, out, 28);
}

void EncodeTraceLayer(MatrixView<const std::int32_t> ids, MatrixView<const float> weights, std::span<std::byte> out) {
  const std::size_t pairs = ids.rows() * ids.cols();
  MOE_CHECK(out.size() == kTracePairBytes * pairs && weights.rows() == ids.rows() && weights.cols() == ids.cols());
  std::byte* id = out.data();
  for (std::size_t row = 0; row < ids.rows(); ++row) {
    for (const std::int32_t expert : ids.row(row)) {
      const auto narrow = static_cast<std::uint16_t>(expert);
      std::memcpy(id, &narrow, sizeof narrow);
      id += sizeof narrow;
    }
  }
  std::byte* weight = out.data() + 2 * pairs;
  for (std::size_t row = 0; row < weights.rows(); ++row) {
    std::memcpy(weight, weights.row(row).data(), 4 * weights.cols());
    weight += 4 * weights.cols();
  }
}

void EncodeTraceStepFrame(std::span<const std::byte> payload, std::span<std::byte> out) {
  PutFrame(kStepKind, payload, out);
}

std::string EncodeTraceEnd(std::uint64_t steps, std::uint64_t dropped, TraceEnd end) {
  std::string record(kTraceEndBytes, '\0');
  const std::span<std::byte> payload = Bytes(record).subspan(kTraceFrameBytes);
  PutNumber(steps, payload, 0);
  PutNumber(dropped, payload, 8);
  PutNumber(static_cast<std::uint32_t>(end), payload, 16);
  PutFrame(kEndKind, payload, Bytes(record));
  return record;
}

std::size_t TraceStep::begin(const TraceHeader& header, std::size_t sparse_index) const {
  const std::size_t encoder = std::min(sparse_index, static_cast<std::size_t>(header.encoder_layers));
  return (encoder * head.encoder_rows + (sparse_index - encoder) * head.decoder_rows) *
         static_cast<std::size_t>(header.experts_per_token);
}

Result<TraceReader> TraceReader::Open(TraceSource source) {
  std::vector<std::byte> prefix;
  if (!ReadFully(source, kPrefixBytes, prefix) || std::memcmp(prefix.data(), kMagic.data(), kMagic.size()) != 0)
    return InvalidArgument("it does not begin as a routing trace does (MOETRACE)");
  if (const auto version = GetNumber<std::uint32_t>(prefix, 8); version != kVersion)
    return InvalidArgument("version ", version, " of the format is unknown (", kVersion, ")");
  const auto length = GetNumber<std::uint32_t>(prefix, 12);
  if (length > kMaxHeaderBytes)
    return InvalidArgument("its header of ", length, " bytes is more than ", kMaxHeaderBytes);
  std::vector<std::byte> rest;
  if (!ReadFully(source, length + sizeof(std::uint32_t), rest)) return InvalidArgument("it ends inside its header");
  const std::span<const std::byte> json = std::span(rest).first(length);
  if (Crc32(json, Crc32(prefix)) != GetNumber<std::uint32_t>(rest, length))
    return InvalidArgument("the checksum of its header is wrong");
  Result<TraceHeader> header = ParseTraceHeader({reinterpret_cast<const char*>(json.data()), json.size()});
  if (!header.ok()) return header.status().WithContext("header");
  return TraceReader(std::move(source), *std::move(header), kPrefixBytes + rest.size());
}

Result<bool> TraceReader::Next(TraceStep& step) {
  if (done_) return false;
  Result<bool> read = ReadRecord(step);
  if (!read.ok() || !*read) done_ = true;
  if (!read.ok()) return read.status().WithContext(Cat("record at byte ", offset_, ", after ", steps_, " steps"));
  if (!*read) return false;
  ++steps_;
  offset_ += kTraceFrameBytes + payload_.size();
  return true;
}

Result<bool> TraceReader::ReadRecord(TraceStep& step) {
  std::vector<std::byte> frame;
  if (!ReadFully(source_, kTraceFrameBytes, frame)) return false;
  const auto kind = GetNumber<std::uint32_t>(frame, 0);
  const auto length = GetNumber<std::uint32_t>(frame, 4);
  if (kind != kStepKind && kind != kEndKind)
    return InvalidArgument("its kind ", kind, " is unknown (", kStepKind, ", ", kEndKind, ")");
  if (length > kMaxTracePayload) return InvalidArgument("its ", length, " bytes are more than ", kMaxTracePayload);
  if (!ReadFully(source_, length, payload_)) return false;
  if (Crc32(payload_, Crc32(std::span(frame).first(kFrameChecksumAt))) !=
      GetNumber<std::uint32_t>(frame, kFrameChecksumAt))
    return InvalidArgument("its checksum is wrong");
  if (kind == kStepKind) {
    MOE_RETURN_IF_ERROR(ReadStep(payload_, step));
    return true;
  }
  MOE_RETURN_IF_ERROR(ReadEnd(payload_));
  return false;
}

Status TraceReader::ReadStep(std::span<const std::byte> payload, TraceStep& step) const {
  if (payload.size() < kTraceStepHeadBytes) return InvalidArgument("its ", payload.size(), " bytes are not a step");
  step.head = {.step = GetNumber<std::uint64_t>(payload, 0),
               .nanoseconds = GetNumber<std::uint64_t>(payload, 8),
               .generation = GetNumber<std::uint64_t>(payload, 16),
               .encoder_rows = GetNumber<std::uint32_t>(payload, 24),
               .decoder_rows = GetNumber<std::uint32_t>(payload, 28)};
  const std::uint64_t pairs = RowPairs(header_, step.head.encoder_rows, step.head.decoder_rows);
  if (payload.size() != kTraceStepHeadBytes + kTracePairBytes * pairs)
    return InvalidArgument("its ", payload.size(), " bytes are not those of ", step.head.encoder_rows, " and ",
                           step.head.decoder_rows, " rows");
  step.ids.resize(pairs);
  step.weights.resize(pairs);
  const auto k = static_cast<std::size_t>(header_.experts_per_token);
  std::span<const std::byte> left = payload.subspan(kTraceStepHeadBytes);
  for (std::size_t layer = 0; layer < header_.layers.size(); ++layer) {
    const std::size_t begin = step.begin(header_, layer);
    const std::size_t count = step.rows(header_, layer) * k;
    if (count == 0) continue;
    std::memcpy(step.ids.data() + begin, left.data(), 2 * count);
    std::memcpy(step.weights.data() + begin, left.data() + 2 * count, 4 * count);
    left = left.subspan(kTracePairBytes * count);
  }
  for (const std::uint16_t id : step.ids)
    if (id >= header_.num_experts) return InvalidArgument("expert ", id, " is not one of ", header_.num_experts);
  for (const float weight : step.weights)
    if (!std::isfinite(weight)) return InvalidArgument("a weight is not finite");
  return Status::Ok();
}

Status TraceReader::ReadEnd(std::span<const std::byte> payload) {
  if (payload.size() != kTraceEndBytes - kTraceFrameBytes)
    return InvalidArgument("its ", payload.size(), " bytes are not an end");
  const auto steps = GetNumber<std::uint64_t>(payload, 0);
  const auto end = GetNumber<std::uint32_t>(payload, 16);
  if (steps != steps_) return InvalidArgument("it ends ", steps, " steps, there were ", steps_);
  if (end > static_cast<std::uint32_t>(TraceEnd::kLimit)) return InvalidArgument("its reason ", end, " is unknown");
  dropped_ = GetNumber<std::uint64_t>(payload, 8);
  end_ = static_cast<TraceEnd>(end);
  return Status::Ok();
}

}  // namespace moe
