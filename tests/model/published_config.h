// Configurations in published style, changed key by key and read back.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"
#include "model/config.h"

namespace moe {

/// models/published/NAME.json.
nlohmann::json Published(const std::string& name);

/// What reading a folder with this config.json gives.
Result<ModelConfig> ReadText(std::string_view config);
Result<ModelConfig> Read(const nlohmann::json& config);
/// A configuration that a test relies on; the test fails when it is refused.
ModelConfig MustRead(const nlohmann::json& config);
/// The config.json of a case of tests/goldens, changed, without some of its keys.
nlohmann::json GoldenWith(const std::string& name, const nlohmann::json& changes = nlohmann::json::object(),
                          const std::vector<std::string>& without = {});
/// Its message, or "no error".
std::string Error(const nlohmann::json& config);

// The published configuration after some of its keys have changed or gone.
std::string ErrorWith(const std::string& name, const nlohmann::json& changes);
std::string ErrorWithout(const std::string& name, const std::string& key);
ModelConfig ReadWith(const std::string& name, const nlohmann::json& changes = nlohmann::json::object());
ModelConfig ReadWithout(const std::string& name, const std::vector<std::string>& keys);

}  // namespace moe
