// Checkpoints made by tests: every tensor that a configuration describes, to be changed before it is opened.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/checkpoint.h"
#include "model/config.h"
#include "model/tensor_specs.h"
#include "model/weights.h"
#include "tests/model/model_files.h"

namespace moe {

struct Opened {
  ModelConfig config;
  Checkpoint checkpoint;
};

/// Throws when the folder is not a model.
Opened OpenModel(const std::filesystem::path& folder);
/// Throws when its weights cannot be loaded.
DenseWeights LoadDense(const Opened& model, WeightType type, int threads = 2);

std::string F32Bytes(const std::vector<float>& values);

/// All tensors F32 in the plain encoding; values count up over all of them from 1.
class SmallModel {
 public:
  explicit SmallModel(nlohmann::json config);

  /// 1 layer, hidden 4, vocab 6, 2 heads of 2, 1 KV head, intermediate 3.
  static SmallModel Llama(const nlohmann::json& changes = nlohmann::json::object());
  /// The same with 3 experts, of which a token visits 2.
  static SmallModel Mixtral();
  /// The configuration of a golden with some keys changed.
  static SmallModel Like(const std::string& golden, const nlohmann::json& changes = nlohmann::json::object());

  TestTensor& At(const std::string& name);
  bool Has(const std::string& name) const;
  void Remove(const std::string& name);
  /// A tensor of four bytes.
  void AddStray(const std::string& name) { tensors.push_back({name, "F32", {1}, "1234"}); }

  const std::filesystem::path& folder() const { return folder_.path(); }
  Opened Open() const;
  /// What CheckTensors says, or "no error".
  std::string CheckError() const;

  std::vector<TestTensor> tensors;

 private:
  void Add(const std::vector<TensorSpec>& specs);

  nlohmann::json config_;
  TemporaryFolder folder_;
  float next_ = 1;
};

}  // namespace moe
