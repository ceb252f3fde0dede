#include "tests/model/small_model.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "core/thread_pool.h"
#include "model/tensor_check.h"

namespace moe {
namespace {

using nlohmann::json;

json Sizes(const std::string& model_type) {
  return {{"model_type", model_type}, {"vocab_size", 6},
          {"hidden_size", 4},         {"intermediate_size", 3},
          {"num_hidden_layers", 1},   {"num_attention_heads", 2},
          {"num_key_value_heads", 1}, {"max_position_embeddings", 64},
          {"rms_norm_eps", 1e-5}};
}

}  // namespace

Opened OpenModel(const std::filesystem::path& folder) { return {*ReadModelConfig(folder), *Checkpoint::Open(folder)}; }

DenseWeights LoadDense(const Opened& model, WeightType type, int threads) {
  ThreadPool pool(threads);
  return *LoadDenseWeights(model.config, model.checkpoint, type, pool);
}

std::string F32Bytes(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

SmallModel::SmallModel(json config) : config_(std::move(config)) {
  folder_.Write("config.json", config_.dump());
  const ModelConfig read = *ReadModelConfig(folder_.path());
  Add(OuterTensors(read));
  for (int layer = 0; layer < read.num_layers(); ++layer) {
    Add(LayerTensors(read, layer));
    if (!read.layers[static_cast<std::size_t>(layer)].moe) continue;
    for (int expert = 0; expert < read.num_experts(); ++expert) Add(ExpertTensors(read, layer, expert));
  }
}

SmallModel SmallModel::Llama(const json& changes) {
  json config = Sizes("llama");
  config.update(changes);
  return SmallModel(config);
}

SmallModel SmallModel::Mixtral() {
  json config = Sizes("mixtral");
  config.update({{"num_local_experts", 3}, {"num_experts_per_tok", 2}});
  return SmallModel(config);
}

SmallModel SmallModel::Like(const std::string& golden, const json& changes) {
  json config = json::parse(ReadBytes(InRepository("tests/goldens") / golden / "config.json"));
  config.update(changes);
  return SmallModel(config);
}

TestTensor& SmallModel::At(const std::string& name) {
  for (TestTensor& tensor : tensors) {
    if (tensor.name == name) return tensor;
  }
  throw std::runtime_error("no tensor " + name);
}

bool SmallModel::Has(const std::string& name) const {
  return std::ranges::find(tensors, name, &TestTensor::name) != tensors.end();
}

void SmallModel::Remove(const std::string& name) {
  std::erase_if(tensors, [&](const TestTensor& tensor) { return tensor.name == name; });
}

Opened SmallModel::Open() const {
  folder_.Write("model.safetensors", Safetensors(tensors));
  return OpenModel(folder_.path());
}

std::string SmallModel::CheckError() const {
  const Opened model = Open();
  const Status status = CheckTensors(model.config, model.checkpoint).status();
  return status.ok() ? "no error" : status.message();
}

void SmallModel::Add(const std::vector<TensorSpec>& specs) {
  for (const TensorSpec& spec : specs) {
    if (Has(spec.name)) continue;  // all experts in one tensor
    std::uint64_t elements = 1;
    for (const std::int64_t dim : spec.stored_shape) elements *= static_cast<std::uint64_t>(dim);
    std::vector<float> values;
    for (std::uint64_t i = 0; i < elements; ++i) values.push_back(next_++);
    tensors.push_back({spec.name, "F32", spec.stored_shape, F32Bytes(values)});
  }
}

}  // namespace moe
