#include "bench/plan/models.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <system_error>

#include "core/check.h"
#include "model/json.h"

namespace moe {
namespace {

/// Lower-case letters and digits alone: "GPT3-175B" → "gpt3175b".
std::string Key(std::string_view name) {
  std::string key;
  for (const char c : name) {
    const auto byte = static_cast<unsigned char>(c);
    if (std::isalnum(byte) != 0) key += static_cast<char>(std::tolower(byte));
  }
  return key;
}

const PublishedModel* FindPublished(std::string_view name) {
  const std::string key = Key(name);
  for (const PublishedModel& model : PublishedModels())
    if (Key(model.name) == key) return &model;
  return nullptr;
}

/// Insertions, deletions and replacements between two words (Levenshtein).
std::size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0u : 1u)});
      diagonal = above;
    }
  }
  return row.back();
}

/// The built-in names that `name` may have meant: those that contain it or that it contains, else the nearest.
std::vector<std::string_view> NearNames(std::string_view name) {
  constexpr std::size_t kMost = 5;
  constexpr std::size_t kLongestKey = 64;
  const std::string key = Key(name).substr(0, kLongestKey);
  std::vector<std::pair<std::size_t, std::string_view>> ranked;
  for (const PublishedModel& model : PublishedModels()) {
    const std::string other = Key(model.name);
    const bool part = !key.empty() && (other.find(key) != std::string::npos || key.find(other) != std::string::npos);
    ranked.emplace_back(part ? 0 : EditDistance(key, other), model.name);
  }
  std::stable_sort(ranked.begin(), ranked.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<std::string_view> near;
  // Half of a name may be wrong; more is another name.
  for (const auto& [distance, candidate] : ranked)
    if (near.size() < kMost && (distance == 0 || 2 * distance <= key.size())) near.push_back(candidate);
  return near;
}

Status UnknownModel(const std::string& what) {
  std::string near;
  for (const std::string_view name : NearNames(what)) near += Cat(near.empty() ? "" : ", ", name);
  const std::string shown = Printable(what);
  if (near.empty())
    return NotFound("model \"", shown, "\" is neither a file, a folder nor a built-in name (--list shows ",
                    PublishedModels().size(), ")");
  return NotFound("model \"", shown, "\" is neither a file, a folder nor a built-in name (near: ", near, ")");
}

/// "a/mixtral/config.json" and "a/mixtral/" → "mixtral"; "a/mixtral.json" → "mixtral".
std::string NameOfPath(const std::filesystem::path& path) {
  std::error_code error;
  std::filesystem::path full = std::filesystem::weakly_canonical(path, error);
  if (error) full = path;
  if (full.filename() == "config.json") full = full.parent_path();
  return full.extension() == ".json" ? full.stem().string() : full.filename().string();
}

Result<NamedModel> OpenPath(const std::filesystem::path& path) {
  std::error_code error;
  const bool folder = std::filesystem::is_directory(path, error);
  if (folder && !std::filesystem::exists(path / "config.json", error))
    return NotFound("model folder ", path.string(), " has no config.json");
  MOE_ASSIGN_OR_RETURN(ModelConfig config, ReadModelConfigFile(folder ? path / "config.json" : path));
  NamedModel model{.name = NameOfPath(path), .config = std::move(config)};
  return model;
}

}  // namespace

std::vector<QuotedFigure> QuotedFigures(std::string_view name) {
  const Result<JsonValue> counts = ParseJson(PublishedCountsJson());
  MOE_CHECK(counts.ok(), "counts.json is built in");
  std::vector<QuotedFigure> figures;
  const JsonValue* model = counts->Find(name);
  const JsonValue* quoted = model == nullptr ? nullptr : model->Find("quoted");
  if (quoted == nullptr || quoted->AsArray() == nullptr) return figures;
  for (const JsonValue& figure : *quoted->AsArray()) {
    const auto text = [&](const char* key) {
      const JsonValue* value = figure.Find(key);
      return value == nullptr || value->AsString() == nullptr ? std::string() : *value->AsString();
    };
    const JsonValue* value = figure.Find("value");
    figures.push_back({.figure = text("figure"),
                       .label = text("label"),
                       .value = value == nullptr ? 0 : value->AsUnsigned().value_or(0),
                       .source = text("source")});
  }
  return figures;
}

Result<NamedModel> OpenModel(const std::string& what) {
  std::error_code error;
  const PublishedModel* published = FindPublished(what);
  const bool path_first = what.find('/') != std::string::npos || published == nullptr;
  if (path_first && !what.empty() && std::filesystem::exists(what, error)) return OpenPath(what);
  if (published == nullptr || what.find('/') != std::string::npos) return UnknownModel(what);
  MOE_ASSIGN_OR_RETURN(ModelConfig config, ParseModelConfig(published->config, Cat(published->name, ".json")));
  NamedModel model{
      .name = std::string(published->name), .config = std::move(config), .quoted = QuotedFigures(published->name)};
  return model;
}

}  // namespace moe
