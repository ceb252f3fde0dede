#include "model/migration_format.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "core/check.h"

namespace moe {
namespace {

constexpr std::array<std::string_view, 3> kStates = {"loading", "ready", "failed"};

}  // namespace

std::size_t MaxPreparationBytes(std::size_t layers, std::size_t slots) {
  // As MaxAssignmentBytes, with each layer and each expert once more, to be checked: those of either generation.
  return MaxAssignmentBytes(2 * layers, 3 * slots);
}

Result<std::size_t> WritePreparation(std::span<std::byte> buffer, const WorkerPreparation& p) {
  nlohmann::json layers = nlohmann::json::array();
  for (const WorkerAssignment::Layer& layer : p.layers)
    layers.push_back({{"layer", layer.layer}, {"slots", layer.slots}});
  nlohmann::json checks = nlohmann::json::array();
  for (const WorkerPreparation::Checks& of : p.checks) checks.push_back({{"layer", of.layer}, {"experts", of.experts}});
  const nlohmann::json json = {{"generation", p.generation},
                               {"from", p.from},
                               {"bytes_per_s", p.bytes_per_s},
                               {"layers", std::move(layers)},
                               {"checks", std::move(checks)}};
  return WriteTextRequest(buffer, MessageKind::kPrepare, "a preparation", json.dump());
}

Result<WorkerPreparation> ParsePreparation(std::span<const std::byte> payload) {
  MOE_ASSIGN_OR_RETURN(const std::string_view text, ParseTextRequest(payload));
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return Internal("a preparation is not a JSON object");
  try {
    WorkerPreparation p{.generation = json.at("generation"),
                        .from = json.at("from"),
                        .bytes_per_s = json.at("bytes_per_s"),
                        .layers = {},
                        .checks = {}};
    for (const nlohmann::json& layer : json.at("layers"))
      p.layers.push_back({.layer = layer.at("layer"), .slots = layer.at("slots")});
    for (const nlohmann::json& of : json.at("checks"))
      p.checks.push_back({.layer = of.at("layer"), .experts = of.at("experts")});
    return p;
  } catch (const nlohmann::json::exception& error) {
    return Internal("a preparation is unusable: ", error.what());
  }
}

std::size_t WritePreparationQuery(std::span<std::byte> buffer, const PreparationQuery& query) {
  const std::size_t header = WriteControl(buffer, MessageKind::kPrepared, query.generation);
  std::memcpy(buffer.data() + header, &query.first_checksum, sizeof(query.first_checksum));
  return header + sizeof(query.first_checksum);
}

Result<PreparationQuery> ParsePreparationQuery(std::span<const std::byte> payload) {
  PreparationQuery query;
  MOE_ASSIGN_OR_RETURN(query.generation, ParseGeneration(payload));
  MOE_ASSIGN_OR_RETURN(const std::string_view body, ParseTextRequest(payload));
  if (body.size() != sizeof(query.first_checksum))
    return Internal("a question after a preparation has ", body.size(), " bytes after its header, not ",
                    sizeof(query.first_checksum));
  std::memcpy(&query.first_checksum, body.data(), sizeof(query.first_checksum));
  return query;
}

std::size_t WritePreparationStatus(std::span<std::byte> buffer, const PreparationStatus& status) {
  MOE_CHECK(status.checksums.size() <= kMostChecksums);
  const nlohmann::json json = {{"state", kStates[static_cast<std::size_t>(status.state)]},
                               {"code", static_cast<int>(status.failure.code())},
                               {"failure", status.failure.message()},
                               {"loaded_experts", status.loaded_experts},
                               {"loaded_bytes", status.loaded_bytes},
                               {"checksums", status.checksums}};
  // The name of a file need not be UTF-8.
  const auto replace = nlohmann::json::error_handler_t::replace;
  return WriteTextReply(buffer, json.dump(-1, ' ', false, replace));
}

Result<PreparationStatus> ParsePreparationStatus(std::span<const std::byte> payload) {
  MOE_ASSIGN_OR_RETURN(const std::string_view text, ParseTextReply(payload));
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return Internal("the state of a preparation is not a JSON object");
  try {
    PreparationStatus status{.loaded_experts = json.at("loaded_experts"), .loaded_bytes = json.at("loaded_bytes")};
    const std::string state = json.at("state");
    const auto known = std::ranges::find(kStates, state);
    if (known == kStates.end()) return Internal("a preparation is in the unknown state \"", state, "\"");
    status.state = static_cast<PreparationState>(known - kStates.begin());
    const int code = json.at("code");
    if (code < 0 || code > static_cast<int>(kLastStatusCode))
      return Internal("a preparation failed with the unknown status ", code);
    if ((status.state == PreparationState::kFailed) != (code != 0))
      return Internal("a preparation is ", state, " with the status ", code);
    if (code != 0) status.failure = Status(static_cast<StatusCode>(code), json.at("failure"));
    status.checksums = json.at("checksums").get<std::vector<std::uint64_t>>();
    if (status.checksums.size() > kMostChecksums)
      return Internal("a preparation tells ", status.checksums.size(), " checksums at a time, more than ",
                      kMostChecksums);
    return status;
  } catch (const nlohmann::json::exception& error) {
    return Internal("the state of a preparation is unusable: ", error.what());
  }
}

}  // namespace moe
