// Built-in models for the planner's tests.
#pragma once

#include <gtest/gtest.h>

#include "bench/plan/models.h"
#include "bench/plan/weight_storage.h"

namespace moe {

inline ModelConfig BuiltIn(const std::string& name) {
  const Result<NamedModel> model = OpenModel(name);
  EXPECT_TRUE(model.ok()) << model.status().message();
  return model.ok() ? model->config : ModelConfig{};
}

inline WeightScheme Scheme(std::string_view name, const ModelConfig& config,
                           std::optional<WeightType> attention = std::nullopt) {
  const Result<WeightScheme> scheme = MakeWeightScheme(name, config, attention);
  EXPECT_TRUE(scheme.ok()) << scheme.status().message();
  return scheme.ok() ? *scheme : WeightScheme{};
}

inline WeightBytes BytesAs(std::string_view type, const std::string& model) {
  const ModelConfig config = BuiltIn(model);
  return CountWeightBytes(config, Scheme(type, config));
}

}  // namespace moe
