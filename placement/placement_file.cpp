// {"schema": 1, "num_experts": E, "workers": W, "layers": [{"layer": index, "slots": [[experts of worker 0], …]}]}
#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <utility>

#include "model/json.h"
#include "placement/placement.h"

namespace moe {
namespace {

// A hundred layers of a thousand experts take under 1 MB.
constexpr std::uint64_t kMaxFileBytes = std::uint64_t{64} << 20;
constexpr std::int64_t kMostCount = 1'000'000;

bool IsCount(const std::optional<std::int64_t>& value) { return value && *value >= 0 && *value <= kMostCount; }

// A whole number of `object`, in [0, 1e6].
Result<int> ReadCount(const JsonValue& object, std::string_view key) {
  const JsonValue* found = object.Find(key);
  if (found == nullptr) return InvalidArgument("key ", key, " is missing");
  const std::optional<std::int64_t> count = found->AsInt();
  if (!IsCount(count)) return InvalidArgument(key, " ", found->Excerpt(), " is not a whole number in 0 … ", kMostCount);
  return static_cast<int>(*count);
}

Result<std::vector<int>> ReadSlots(const JsonValue& worker, int layer) {
  const auto refuse = [&] {
    return InvalidArgument("layer ", layer, ": ", worker.Excerpt(), " is not a list of expert ids");
  };
  if (worker.AsArray() == nullptr) return refuse();
  std::vector<int> slots;
  for (const JsonValue& expert : *worker.AsArray()) {
    const std::optional<std::int64_t> id = expert.AsInt();
    if (!IsCount(id)) return refuse();
    slots.push_back(static_cast<int>(*id));
  }
  return slots;
}

Result<LayerPlacement> ReadLayer(const JsonValue& object) {
  if (object.AsObject() == nullptr) return InvalidArgument("layers: ", object.Excerpt(), " is not an object");
  LayerPlacement layer;
  MOE_ASSIGN_OR_RETURN(layer.layer, ReadCount(object, "layer"));
  const JsonValue* slots = object.Find("slots");
  if (slots == nullptr || slots->AsArray() == nullptr)
    return InvalidArgument("layer ", layer.layer, ": slots is not a list of lists of expert ids");
  for (const JsonValue& worker : *slots->AsArray()) {
    MOE_ASSIGN_OR_RETURN(std::vector<int> experts, ReadSlots(worker, layer.layer));
    layer.slots.push_back(std::move(experts));
  }
  return layer;
}

Result<Placement> ParsePlacement(const JsonValue& root) {
  if (root.AsObject() == nullptr) return InvalidArgument("not a JSON object");
  MOE_ASSIGN_OR_RETURN(const int schema, ReadCount(root, "schema"));
  if (schema != 1) return InvalidArgument("schema ", schema, " is unknown (1)");
  Placement placement;
  MOE_ASSIGN_OR_RETURN(placement.num_experts, ReadCount(root, "num_experts"));
  MOE_ASSIGN_OR_RETURN(placement.workers, ReadCount(root, "workers"));
  const JsonValue* layers = root.Find("layers");
  if (layers == nullptr || layers->AsArray() == nullptr) return InvalidArgument("layers is not a list");
  for (const JsonValue& object : *layers->AsArray()) {
    MOE_ASSIGN_OR_RETURN(LayerPlacement layer, ReadLayer(object));
    placement.layers.push_back(std::move(layer));
  }
  std::ranges::sort(placement.layers, {}, &LayerPlacement::layer);
  return placement;
}

}  // namespace

Result<Placement> ReadPlacementFile(const std::filesystem::path& path) {
  const Result<std::string> text = ReadSmallFile(path, kMaxFileBytes);
  if (!text.ok()) return text.status().WithContext("placement file");
  const Result<JsonValue> root = ParseJson(*text);
  Result<Placement> placement = root.ok() ? ParsePlacement(*root) : Result<Placement>(root.status());
  if (!placement.ok()) return placement.status().WithContext(Cat("placement file ", path.string()));
  return placement;
}

std::string PlacementJson(const Placement& placement) {
  nlohmann::json layers = nlohmann::json::array();
  for (const LayerPlacement& layer : placement.layers)
    layers.push_back({{"layer", layer.layer}, {"slots", layer.slots}});
  return nlohmann::json{
      {"schema", 1}, {"num_experts", placement.num_experts}, {"workers", placement.workers}, {"layers", layers}}
      .dump();
}

}  // namespace moe
