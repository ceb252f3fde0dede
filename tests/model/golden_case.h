// A golden case run by a model in one process: what the tests of the decoder share.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/kernels.h"
#include "model/config.h"
#include "tests/model/model_files.h"
#include "tests/reference/golden.h"
#include "tests/reference/local_model.h"

namespace moe {

/// Names of the folders of tests/goldens.
inline std::vector<std::string> GoldenNames() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(InRepository("tests/goldens")))
    if (entry.is_directory()) names.push_back(entry.path().filename().string());
  std::ranges::sort(names);
  return names;
}

/// Those of encoder–decoder models, or of the others.
inline std::vector<std::string> GoldensOf(bool with_encoder) {
  std::vector<std::string> names = GoldenNames();
  std::erase_if(names, [&](const std::string& name) {
    const Result<ModelConfig> config = ReadModelConfig(InRepository("tests/goldens") / name);
    return (config.ok() && config->has_encoder()) != with_encoder;
  });
  return names;
}

/// One golden case computed with one implementation of the kernels.
class GoldenCase : public ::testing::TestWithParam<std::tuple<std::string, const Kernels*>> {
 protected:
  GoldenCase() : golden_(ReadGolden(folder())) {}

  std::filesystem::path folder() const { return InRepository("tests/goldens") / std::get<0>(GetParam()); }
  LocalModel Make(int threads = 1) const {
    return {folder(), {.kernels = std::get<1>(GetParam()), .threads = threads, .max_step_tokens = 128}};
  }

  const Golden golden_;
};

inline std::string CaseName(const ::testing::TestParamInfo<std::tuple<std::string, const Kernels*>>& info) {
  return std::get<0>(info.param) + "_" + std::string(std::get<1>(info.param)->name());
}

}  // namespace moe
