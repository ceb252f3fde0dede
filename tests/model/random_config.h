// Small valid configurations of every family that is served, with random sizes and options, in the published style.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <random>
#include <string_view>
#include <vector>

namespace moe {

/// The model types that MakeRandomConfig knows.
std::vector<std::string_view> RandomModelTypes();

/// What config.json may say for this model type. Two calls with generators in the same state give the same.
nlohmann::json MakeRandomConfig(std::string_view model_type, std::mt19937_64& random);

/// The configuration of the text model, which some model types keep inside.
const nlohmann::json& TextConfig(const nlohmann::json& config);

/// A whole number from `low` to `high`, the same with every standard library.
std::int64_t Uniform(std::mt19937_64& random, std::int64_t low, std::int64_t high);
inline bool OneIn(std::mt19937_64& random, std::int64_t n) { return Uniform(random, 1, n) == 1; }

}  // namespace moe
