#include "placement/loads_file.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string_view>

#include "model/json.h"

namespace moe {
namespace {

// A hundred layers of five hundred experts in thirty samples take about 10 MB.
constexpr std::uint64_t kMaxLoadsBytes = std::uint64_t{64} << 20;
constexpr std::int64_t kMostLayerIndex = 1'000'000;

struct Loads {
  std::vector<LayerLoad> layers;
  bool indexed = false;
};

/// The list of `key` in the file; absent: there is none.
Result<const JsonValue::Array*> FindList(const JsonValue& root, std::string_view key) {
  const JsonValue* found = root.Find(key);
  if (found == nullptr) return nullptr;
  if (found->AsArray() == nullptr) return InvalidArgument(key, " ", found->Excerpt(), " is not a list");
  return found->AsArray();
}

Result<std::vector<double>> ReadExperts(const JsonValue& value, std::string_view key, std::size_t index,
                                        std::size_t experts) {
  const JsonValue::Array* list = value.AsArray();
  if (list == nullptr || list->empty())
    return InvalidArgument(key, "[", index, "] ", value.Excerpt(), " is not a list of tokens of each expert");
  if (experts > 0 && list->size() != experts)
    return InvalidArgument(key, "[", index, "] has ", list->size(), " experts, layers[0] has ", experts);
  std::vector<double> tokens;
  for (const JsonValue& item : *list) {
    const std::optional<double> number = item.AsReal();
    if (!number || !(*number >= 0) || *number > 1e15)
      return InvalidArgument(key, "[", index, "][", tokens.size(), "] ", item.Excerpt(),
                             " is not a number of tokens in 0 … 1e15");
    tokens.push_back(*number);
  }
  return tokens;
}

Status ReadIndices(const JsonValue::Array& indices, Loads& loads) {
  if (indices.size() != loads.layers.size())
    return InvalidArgument("layer_indices has ", indices.size(), " entries, layers has ", loads.layers.size());
  for (std::size_t i = 0; i < indices.size(); ++i) {
    const std::optional<std::int64_t> index = indices[i].AsInt();
    const std::int64_t least = i == 0 ? 0 : loads.layers[i - 1].layer + 1;
    if (!index || *index < least || *index > kMostLayerIndex)
      return InvalidArgument("layer_indices[", i, "] ", indices[i].Excerpt(), " is not a whole number in ", least,
                             " … ", kMostLayerIndex);
    loads.layers[i].layer = static_cast<int>(*index);
  }
  loads.indexed = true;
  return Status::Ok();
}

Status ReadSamples(const JsonValue::Array& samples, Loads& loads) {
  for (std::size_t s = 0; s < samples.size(); ++s) {
    const JsonValue::Array* layers = samples[s].AsArray();
    if (layers == nullptr || layers->size() != loads.layers.size())
      return InvalidArgument("samples[", s, "] is not a list of ", loads.layers.size(), " layers");
    for (std::size_t i = 0; i < layers->size(); ++i) {
      LayerLoad& load = loads.layers[i];
      MOE_ASSIGN_OR_RETURN(std::vector<double> sample,
                           ReadExperts((*layers)[i], Cat("samples[", s, "]"), i, load.mean.size()));
      load.samples.push_back(std::move(sample));
    }
  }
  return Status::Ok();
}

Result<Loads> TakeLoads(const JsonValue& root) {
  if (root.AsObject() == nullptr) return InvalidArgument("not a JSON object");
  for (const JsonValue::Member& member : *root.AsObject())
    if (member.key != "layers" && member.key != "layer_indices" && member.key != "samples")
      return InvalidArgument("key ", Printable(member.key), " is unknown (layers, layer_indices, samples)");
  MOE_ASSIGN_OR_RETURN(const JsonValue::Array* layers, FindList(root, "layers"));
  if (layers == nullptr || layers->empty()) return InvalidArgument("layers is missing or empty");
  Loads loads;
  for (std::size_t i = 0; i < layers->size(); ++i) {
    const std::size_t experts = i == 0 ? 0 : loads.layers[0].mean.size();
    LayerLoad load{.layer = static_cast<int>(i), .mean = {}, .samples = {}};
    MOE_ASSIGN_OR_RETURN(load.mean, ReadExperts((*layers)[i], "layers", i, experts));
    loads.layers.push_back(std::move(load));
  }
  MOE_ASSIGN_OR_RETURN(const JsonValue::Array* indices, FindList(root, "layer_indices"));
  if (indices != nullptr) MOE_RETURN_IF_ERROR(ReadIndices(*indices, loads));
  MOE_ASSIGN_OR_RETURN(const JsonValue::Array* samples, FindList(root, "samples"));
  if (samples != nullptr) MOE_RETURN_IF_ERROR(ReadSamples(*samples, loads));
  return loads;
}

Result<Loads> OpenLoads(const std::filesystem::path& path) {
  const Result<JsonValue> root = ReadJsonFile(path, kMaxLoadsBytes);
  if (!root.ok()) return root.status().WithContext("loads file");
  Result<Loads> loads = TakeLoads(*root);
  if (!loads.ok()) return loads.status().WithContext(Cat("loads file ", path.string()));
  return loads;
}

}  // namespace

Result<std::vector<LayerLoad>> ReadLoadsFile(const std::filesystem::path& path) {
  MOE_ASSIGN_OR_RETURN(Loads loads, OpenLoads(path));
  return std::move(loads.layers);
}

Result<std::vector<LayerLoad>> ParseLoads(std::string_view json) {
  MOE_ASSIGN_OR_RETURN(const JsonValue root, ParseJson(json));
  MOE_ASSIGN_OR_RETURN(Loads loads, TakeLoads(root));
  return std::move(loads.layers);
}

Result<std::vector<LayerLoad>> ReadLoadsFile(const std::filesystem::path& path, const std::vector<int>& layers,
                                             int num_experts) {
  MOE_ASSIGN_OR_RETURN(Loads loads, OpenLoads(path));
  if (loads.layers.size() != layers.size())
    return InvalidArgument("loads file ", path.string(), " has ", loads.layers.size(), " layers, the model has ",
                           layers.size(), " sparse ones");
  if (loads.layers[0].mean.size() != static_cast<std::size_t>(num_experts))
    return InvalidArgument("loads file ", path.string(), " has ", loads.layers[0].mean.size(),
                           " experts, the model has ", num_experts);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    if (loads.indexed && loads.layers[i].layer != layers[i])
      return InvalidArgument("loads file ", path.string(), ": layer_indices[", i, "] ", loads.layers[i].layer,
                             " is not the model's sparse layer ", layers[i]);
    loads.layers[i].layer = layers[i];
  }
  return std::move(loads.layers);
}

}  // namespace moe
