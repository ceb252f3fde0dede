// The models that moe_plan knows by name, built into the program, and how a name or a path becomes a configuration.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"
#include "model/config.h"

namespace moe {

/// A file of models/published/.
struct PublishedModel {
  std::string_view name;    // "mixtral-8x7b"
  std::string_view config;  // the text of its config.json
};

/// By name.
std::span<const PublishedModel> PublishedModels();
/// models/published/counts.json: {name: {total, active, active_without_embedding, quoted: […]}}.
std::string_view PublishedCountsJson();

/// What somebody says that a model has.
struct QuotedFigure {
  std::string figure;       // which of ours it is nearest to: "total", "active", "checkpoint_elements", …
  std::string label;        // as quoted: "12.9B"
  std::uint64_t value = 0;  // what the label stands for
  std::string source;
};

/// In the order of the file; empty for a model that is not built in.
std::vector<QuotedFigure> QuotedFigures(std::string_view name);

struct NamedModel {
  std::string name;  // of the built-in model, else of the folder or file
  ModelConfig config;
  std::vector<QuotedFigure> quoted;
};

/// `what` is the name of a built-in model (case, dots, dashes and underscores do not count), a config.json, or a folder
/// with one; a path that exists goes first if it has a '/' or no model has that name. NOT_FOUND lists near names.
Result<NamedModel> OpenModel(const std::string& what);

}  // namespace moe
