#include "tests/model/published_config.h"

#include <gtest/gtest.h>

#include "tests/model/model_files.h"

namespace moe {

using nlohmann::json;

json Published(const std::string& name) {
  return json::parse(ReadBytes(InRepository("models/published/" + name + ".json")));
}

Result<ModelConfig> ReadText(std::string_view config) {
  const TemporaryFolder folder;
  folder.Write("config.json", config);
  return ReadModelConfig(folder.path());
}

Result<ModelConfig> Read(const json& config) { return ReadText(config.dump()); }

ModelConfig MustRead(const json& config) {
  const Result<ModelConfig> read = Read(config);
  EXPECT_TRUE(read.ok()) << read.status().message();
  return read.ok() ? *read : ModelConfig{};
}

json GoldenWith(const std::string& name, const json& changes, const std::vector<std::string>& without) {
  json config = json::parse(ReadBytes(InRepository("tests/goldens/" + name + "/config.json")));
  if (changes.is_object()) config.update(changes);
  for (const std::string& key : without) config.erase(key);
  return config;
}

std::string Error(const json& config) {
  const Result<ModelConfig> result = Read(config);
  return result.ok() ? "no error" : result.status().message();
}

std::string ErrorWith(const std::string& name, const json& changes) {
  json config = Published(name);
  config.update(changes);
  return Error(config);
}

ModelConfig ReadWith(const std::string& name, const json& changes) {
  json config = Published(name);
  config.update(changes);
  return MustRead(config);
}

std::string ErrorWithout(const std::string& name, const std::string& key) {
  json config = Published(name);
  EXPECT_EQ(config.erase(key), 1u) << key;
  return Error(config);
}

ModelConfig ReadWithout(const std::string& name, const std::vector<std::string>& keys) {
  json config = Published(name);
  for (const std::string& key : keys) config.erase(key);
  return MustRead(config);
}

}  // namespace moe
