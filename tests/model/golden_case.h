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

/// Names of the folders of a folder of tests/.
inline std::vector<std::string> NamesIn(const std::string& collection) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(InRepository("tests/" + collection)))
    if (entry.is_directory()) names.push_back(entry.path().filename().string());
  std::ranges::sort(names);
  return names;
}
inline std::vector<std::string> GoldenNames() { return NamesIn("goldens"); }

/// The goldens, and those of further options: paths in tests/.
inline std::vector<std::string> Goldens() {
  std::vector<std::string> paths;
  for (const std::string& name : GoldenNames()) paths.push_back("goldens/" + name);
  return paths;
}
inline std::vector<std::string> OptionGoldens() {
  std::vector<std::string> paths;
  for (const std::string& name : NamesIn("option_goldens")) paths.push_back("option_goldens/" + name);
  return paths;
}
inline std::vector<std::string> AllGoldens() {
  std::vector<std::string> paths = Goldens();
  for (const std::string& path : OptionGoldens()) paths.push_back(path);
  return paths;
}

/// Those of the paths that are encoder–decoder models, or the others.
inline std::vector<std::string> Only(bool with_encoder, std::vector<std::string> paths) {
  std::erase_if(paths, [&](const std::string& path) {
    const Result<ModelConfig> config = ReadModelConfig(InRepository("tests/" + path));
    return (config.ok() && config->has_encoder()) != with_encoder;
  });
  return paths;
}

inline std::string LastPart(const std::string& path) { return std::filesystem::path(path).filename().string(); }

/// One golden case computed with one implementation of the kernels.
class GoldenCase : public ::testing::TestWithParam<std::tuple<std::string, const Kernels*>> {
 protected:
  GoldenCase() : golden_(ReadGolden(folder())) {}

  std::filesystem::path folder() const { return InRepository("tests/" + std::get<0>(GetParam())); }
  LocalModel Make(int threads = 1) const {
    return {folder(), {.kernels = std::get<1>(GetParam()), .threads = threads, .max_step_tokens = 128}};
  }

  const Golden golden_;
};

inline std::string CaseName(const ::testing::TestParamInfo<std::tuple<std::string, const Kernels*>>& info) {
  return LastPart(std::get<0>(info.param)) + "_" + std::string(std::get<1>(info.param)->name());
}

}  // namespace moe
