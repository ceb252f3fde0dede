// {"schema": 1, "num_experts": E, "workers": W, "layers": [{"layer": index, "slots": [[experts of worker 0], …]}]}
#include <algorithm>
#include <nlohmann/json.hpp>

#include "model/json.h"
#include "placement/placement.h"

namespace moe {
namespace {

using nlohmann::json;

// A hundred layers of a thousand experts take under 1 MB.
constexpr std::uint64_t kMaxFileBytes = std::uint64_t{64} << 20;

// A whole number of `object`, in [0, 1e6].
Result<int> ReadCount(const json& object, const char* key) {
  constexpr int kMost = 1'000'000;
  const auto found = object.find(key);
  if (found == object.end()) return InvalidArgument("key ", key, " is missing");
  if (!found->is_number_integer() || *found < 0 || *found > kMost)
    return InvalidArgument(key, " ", found->dump(), " is not a whole number in 0 … ", kMost);
  return found->get<int>();
}

Result<LayerPlacement> ReadLayer(const json& object) {
  if (!object.is_object()) return InvalidArgument("layers: ", object.dump(), " is not an object");
  LayerPlacement layer;
  MOE_ASSIGN_OR_RETURN(layer.layer, ReadCount(object, "layer"));
  const auto slots = object.find("slots");
  if (slots == object.end() || !slots->is_array())
    return InvalidArgument("layer ", layer.layer, ": slots is not a list of lists of expert ids");
  for (const json& worker : *slots) {
    const bool fits = worker.is_array() && std::all_of(worker.begin(), worker.end(), [](const json& expert) {
                        return expert.is_number_integer() && expert >= 0 && expert <= 1'000'000;
                      });
    if (!fits) return InvalidArgument("layer ", layer.layer, ": ", worker.dump(), " is not a list of expert ids");
    layer.slots.push_back(worker.get<std::vector<int>>());
  }
  return layer;
}

Result<Placement> ParsePlacement(const json& root) {
  if (!root.is_object()) return InvalidArgument("not a JSON object");
  MOE_ASSIGN_OR_RETURN(const int schema, ReadCount(root, "schema"));
  if (schema != 1) return InvalidArgument("schema ", schema, " is unknown (1)");
  Placement placement;
  MOE_ASSIGN_OR_RETURN(placement.num_experts, ReadCount(root, "num_experts"));
  MOE_ASSIGN_OR_RETURN(placement.workers, ReadCount(root, "workers"));
  const auto layers = root.find("layers");
  if (layers == root.end() || !layers->is_array()) return InvalidArgument("layers is not a list");
  for (const json& object : *layers) {
    MOE_ASSIGN_OR_RETURN(LayerPlacement layer, ReadLayer(object));
    placement.layers.push_back(std::move(layer));
  }
  std::sort(placement.layers.begin(), placement.layers.end(),
            [](const LayerPlacement& a, const LayerPlacement& b) { return a.layer < b.layer; });
  return placement;
}

}  // namespace

Result<Placement> ReadPlacementFile(const std::filesystem::path& path) {
  const Result<std::string> text = ReadSmallFile(path, kMaxFileBytes);
  if (!text.ok()) return text.status().WithContext("placement file");
  const json root = json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (root.is_discarded()) return InvalidArgument("placement file ", path.string(), " is not JSON");
  Result<Placement> placement = ParsePlacement(root);
  if (!placement.ok()) return placement.status().WithContext(Cat("placement file ", path.string()));
  return placement;
}

std::string PlacementJson(const Placement& placement) {
  json layers = json::array();
  for (const LayerPlacement& layer : placement.layers)
    layers.push_back({{"layer", layer.layer}, {"slots", layer.slots}});
  return json{{"schema", 1}, {"num_experts", placement.num_experts}, {"workers", placement.workers}, {"layers", layers}}
      .dump();
}

}  // namespace moe
