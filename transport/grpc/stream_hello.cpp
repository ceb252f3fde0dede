#include "transport/grpc/stream_hello.h"

#include <algorithm>
#include <charconv>
#include <limits>

#include "transport/exchange_checks.h"
#include "transport/grpc/envelope.h"

namespace moe {
namespace {

constexpr std::string_view kRouterKey = "moe-router";
constexpr std::string_view kEpochKey = "moe-epoch";
constexpr std::string_view kRequestBytesKey = "moe-max-request-bytes";
constexpr std::string_view kReplyBytesKey = "moe-max-reply-bytes";
constexpr std::string_view kExchangesKey = "moe-max-exchanges";
constexpr std::string_view kChecksumsKey = "moe-payload-checksums";

constexpr std::uint64_t kMost = std::numeric_limits<std::uint64_t>::max();

// A whole number in decimal digits.
Result<std::uint64_t> ParseNumber(std::string_view key, std::optional<std::string_view> text, std::uint64_t most) {
  if (!text) return InvalidArgument("the stream was opened without \"", key, "\"");
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), value);
  if (error != std::errc() || end != text->data() + text->size() || text->empty() || value > most)
    return InvalidArgument("the stream was opened with ", key, " \"", text->substr(0, 40), "\" (0 to ", most, ")");
  return value;
}

Status CheckMost(std::string_view what, std::size_t asked, std::size_t most) {
  if (asked <= most) return Status::Ok();
  return InvalidArgument("the router asks for ", what, " ", asked, ", this worker allows ", most);
}

}  // namespace

Metadata ToMetadata(const StreamHello& hello) {
  const auto pair = [](std::string_view key, std::uint64_t value) {
    return std::pair(std::string(key), std::to_string(value));
  };
  Metadata metadata = {pair(kProtocolKey, hello.protocol),
                       pair(kRouterKey, hello.router),
                       pair(kEpochKey, hello.epoch),
                       pair(kRequestBytesKey, hello.limits.max_request_bytes),
                       pair(kReplyBytesKey, hello.limits.max_reply_bytes),
                       pair(kExchangesKey, static_cast<std::uint64_t>(hello.limits.max_exchanges)),
                       pair(kChecksumsKey, hello.limits.payload_checksums ? 1 : 0)};
  if (!hello.memory.empty()) metadata.emplace_back(kMemoryKey, hello.memory);
  return metadata;
}

Result<StreamHello> ParseHello(FunctionRef<std::optional<std::string_view>(std::string_view key)> find) {
  const auto number = [&](std::string_view key, std::uint64_t most) { return ParseNumber(key, find(key), most); };
  StreamHello hello;
  MOE_ASSIGN_OR_RETURN(hello.protocol, number(kProtocolKey, kMost));
  if (hello.protocol != kFrameVersion)
    return InvalidArgument("the router speaks protocol ", hello.protocol, ", this worker ", kFrameVersion);
  constexpr std::uint64_t kMostExchanges = std::numeric_limits<int>::max();
  MOE_ASSIGN_OR_RETURN(hello.router, number(kRouterKey, kMost));
  MOE_ASSIGN_OR_RETURN(hello.epoch, number(kEpochKey, kMost));
  MOE_ASSIGN_OR_RETURN(hello.limits.max_request_bytes, number(kRequestBytesKey, kMost));
  MOE_ASSIGN_OR_RETURN(hello.limits.max_reply_bytes, number(kReplyBytesKey, kMost));
  MOE_ASSIGN_OR_RETURN(const std::uint64_t exchanges, number(kExchangesKey, kMostExchanges));
  hello.limits.max_exchanges = static_cast<int>(exchanges);
  MOE_ASSIGN_OR_RETURN(const std::uint64_t checksums, number(kChecksumsKey, 1));
  hello.limits.payload_checksums = checksums != 0;
  hello.memory = find(kMemoryKey).value_or("");
  return hello;
}

Status CheckHello(const StreamHello& hello, const TransportLimits& most) {
  const TransportLimits& asked = hello.limits;
  MOE_RETURN_IF_ERROR(CheckLimits(asked));
  MOE_RETURN_IF_ERROR(CheckMost("max_request_bytes", asked.max_request_bytes, most.max_request_bytes));
  MOE_RETURN_IF_ERROR(CheckMost("max_reply_bytes", asked.max_reply_bytes, most.max_reply_bytes));
  MOE_RETURN_IF_ERROR(CheckMost("max_exchanges", static_cast<std::size_t>(asked.max_exchanges),
                                static_cast<std::size_t>(most.max_exchanges)));
  if (asked.payload_checksums == most.payload_checksums) return Status::Ok();
  const auto word = [](bool on) { return on ? "on" : "off"; };
  return InvalidArgument("the router has checksums of payloads ", word(asked.payload_checksums), ", this worker ",
                         word(most.payload_checksums));
}

Result<int> MessageBytes(const TransportLimits& limits) {
  constexpr std::size_t kAround = kMaxEnvelopeBytes + kFrameHeaderBytes;
  constexpr std::size_t kMostPayload = std::numeric_limits<int>::max() - kAround;
  const std::size_t largest = std::max(limits.max_request_bytes, limits.max_reply_bytes);
  if (largest > kMostPayload)
    return InvalidArgument("a payload of ", largest, " bytes does not fit a gRPC message (at most ", kMostPayload, ")");
  return static_cast<int>(largest + kAround);
}

}  // namespace moe
