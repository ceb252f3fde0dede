#include "placement/trace_header.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "model/json.h"

namespace moe {
namespace {

constexpr std::int64_t kMaxLayers = 10'000;
constexpr std::int64_t kMaxGeneration = std::int64_t{1} << 53;
constexpr std::array<std::string_view, 9> kKeys = {"encoder_layers", "experts_per_token", "layers",
                                                   "model",          "num_experts",       "placement",
                                                   "routing",        "started",           "weight_type"};

Result<std::int64_t> ReadWhole(const JsonValue& object, const char* key, std::int64_t least, std::int64_t most) {
  const JsonValue* value = object.Find(key);
  if (value == nullptr) return InvalidArgument("key ", key, " is missing");
  const std::optional<std::int64_t> number = value->AsInt();
  if (!number || *number < least || *number > most)
    return InvalidArgument(key, " ", value->Excerpt(), " is not a whole number in ", least, " … ", most);
  return *number;
}

Result<int> ReadInt(const JsonValue& object, const char* key, int least, int most) {
  MOE_ASSIGN_OR_RETURN(const std::int64_t number, ReadWhole(object, key, least, most));
  return static_cast<int>(number);
}

Result<std::string> ReadText(const JsonValue& object, const char* key) {
  const JsonValue* value = object.Find(key);
  if (value == nullptr || value->AsString() == nullptr) return InvalidArgument(key, " is missing or not a text");
  return *value->AsString();
}

/// The list named `key`.
Result<const JsonValue::Array*> ReadList(const JsonValue& object, const char* key) {
  const JsonValue* value = object.Find(key);
  if (value == nullptr || value->AsArray() == nullptr) return InvalidArgument(key, " is missing or not a list");
  return value->AsArray();
}

Result<std::vector<int>> ReadInts(const JsonValue& list, const char* what, int most) {
  if (list.AsArray() == nullptr) return InvalidArgument(what, " ", list.Excerpt(), " is not a list");
  std::vector<int> numbers;
  for (const JsonValue& value : *list.AsArray()) {
    const std::optional<std::int64_t> number = value.AsInt();
    if (!number || *number < 0 || *number > most)
      return InvalidArgument(what, " ", value.Excerpt(), " is not a whole number in 0 … ", most);
    numbers.push_back(static_cast<int>(*number));
  }
  return numbers;
}

Result<Placement> ReadPlacement(const JsonValue& object, const TraceHeader& header) {
  Placement placement{.num_experts = header.num_experts};
  MOE_ASSIGN_OR_RETURN(const std::int64_t generation, ReadWhole(object, "generation", 0, kMaxGeneration));
  placement.generation = static_cast<std::uint64_t>(generation);
  MOE_ASSIGN_OR_RETURN(placement.workers, ReadInt(object, "workers", 1, 1'000'000));
  MOE_ASSIGN_OR_RETURN(const JsonValue::Array* layers, ReadList(object, "slots"));
  if (layers->size() != header.layers.size())
    return InvalidArgument("slots is for ", layers->size(), " layers, there are ", header.layers.size());
  for (std::size_t i = 0; i < layers->size(); ++i) {
    LayerPlacement layer{.layer = header.layers[i]};
    if ((*layers)[i].AsArray() == nullptr) return InvalidArgument("slots ", (*layers)[i].Excerpt(), " is not a list");
    for (const JsonValue& worker : *(*layers)[i].AsArray()) {
      MOE_ASSIGN_OR_RETURN(std::vector<int> experts, ReadInts(worker, "expert", header.num_experts - 1));
      layer.slots.push_back(std::move(experts));
    }
    placement.layers.push_back(std::move(layer));
  }
  MOE_RETURN_IF_ERROR(CheckPlacement(
      placement, {.num_experts = header.num_experts, .workers = placement.workers, .layers = header.layers}));
  return placement;
}

Result<TraceHeader> ReadHeader(const JsonValue& root) {
  if (root.AsObject() == nullptr) return InvalidArgument("not a JSON object");
  for (const JsonValue::Member& member : *root.AsObject())
    if (std::ranges::find(kKeys, member.key) == kKeys.end())
      return InvalidArgument("key ", Printable(member.key), " is unknown");
  TraceHeader header;
  MOE_ASSIGN_OR_RETURN(header.model, ReadText(root, "model"));
  MOE_ASSIGN_OR_RETURN(header.weight_type, ReadText(root, "weight_type"));
  MOE_ASSIGN_OR_RETURN(header.routing, ReadText(root, "routing"));
  MOE_ASSIGN_OR_RETURN(header.started, ReadText(root, "started"));
  MOE_ASSIGN_OR_RETURN(header.num_experts, ReadInt(root, "num_experts", 1, kMaxExperts));
  MOE_ASSIGN_OR_RETURN(header.experts_per_token, ReadInt(root, "experts_per_token", 1, header.num_experts));
  const JsonValue* layers = root.Find("layers");
  if (layers == nullptr) return InvalidArgument("key layers is missing");
  MOE_ASSIGN_OR_RETURN(header.layers, ReadInts(*layers, "layer", static_cast<int>(kMaxLayers)));
  if (header.layers.empty() || !std::ranges::is_sorted(header.layers, std::less_equal<>()))
    return InvalidArgument("layers is empty or not ascending");
  MOE_ASSIGN_OR_RETURN(header.encoder_layers,
                       ReadInt(root, "encoder_layers", 0, static_cast<int>(header.layers.size())));
  const JsonValue* placement = root.Find("placement");
  if (placement == nullptr || placement->AsObject() == nullptr)
    return InvalidArgument("placement is missing or not an object");
  Result<Placement> read = ReadPlacement(*placement, header);
  if (!read.ok()) return read.status().WithContext("placement");
  header.placement = *std::move(read);
  return header;
}

}  // namespace

std::string TraceHeaderJson(const TraceHeader& header) {
  nlohmann::json slots = nlohmann::json::array();
  for (const LayerPlacement& layer : header.placement.layers) slots.push_back(layer.slots);
  // A name may have any bytes; those that are no UTF-8 are replaced.
  return nlohmann::json{
      {"model", header.model},
      {"weight_type", header.weight_type},
      {"routing", header.routing},
      {"started", header.started},
      {"num_experts", header.num_experts},
      {"experts_per_token", header.experts_per_token},
      {"encoder_layers", header.encoder_layers},
      {"layers", header.layers},
      {"placement",
       {{"generation", header.placement.generation}, {"workers", header.placement.workers}, {"slots", slots}}}}
      .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

Result<TraceHeader> ParseTraceHeader(std::string_view text) {
  MOE_ASSIGN_OR_RETURN(const JsonValue root, ParseJson(text));
  return ReadHeader(root);
}

}  // namespace moe
