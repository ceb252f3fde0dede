// Changes to JSON texts, such as readers must survive.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

namespace moe {

/// One change somewhere in `root`: a member dropped, added, renamed or copied over another, also from `donors`; a value
/// of another type or an extreme one; a list made longer or shorter; something wrapped into something.
void MutateJson(nlohmann::json& root, const std::vector<nlohmann::json>& donors, std::mt19937_64& random);

/// One change of bytes: some flipped, dropped, doubled, inserted, or the end cut off.
void MutateBytes(std::string& text, std::mt19937_64& random);

/// The text of an object, with one of its members there twice.
std::string WithDuplicateKey(const nlohmann::json& object, std::mt19937_64& random);

/// Whether every byte is printable or part of the one ellipsis that messages use.
bool IsPrintable(const std::string& message);

}  // namespace moe
