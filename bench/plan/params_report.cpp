#include "bench/plan/params_report.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "bench/table.h"
#include "core/units.h"

namespace moe {
namespace {

using Json = nlohmann::ordered_json;

std::uint64_t ExactFigure(const ParameterCount& count, const std::string& figure) {
  if (figure == "total") return count.total;
  if (figure == "active") return count.active;
  if (figure == "active_without_embedding") return count.active_without_embedding;
  return count.checkpoint.total();
}

// The value of the label's last digit: "46.7B" → 0.1e9, "1542M" → 1e6, "70,015,266,816" → 1.
double LastDigit(const std::string& label) {
  double unit = 1;
  switch (label.back()) {
    case 'M': unit = 1e6; break;
    case 'B': unit = 1e9; break;
    case 'T': unit = 1e12; break;
    default: break;
  }
  const std::size_t point = label.find('.');
  if (point == std::string::npos) return unit;
  return unit * std::pow(10.0, -static_cast<double>(label.size() - point - 2));
}

Json QuotedJson(const NamedModel& model, const ParameterCount& count) {
  Json quoted = Json::array();
  for (const ComparedFigure& figure : CompareQuoted(model, count)) {
    quoted.push_back({{"figure", figure.quoted.figure},
                      {"label", figure.quoted.label},
                      {"value", figure.quoted.value},
                      {"exact", figure.exact},
                      {"is_rounding", figure.is_rounding},
                      {"source", figure.quoted.source}});
  }
  return quoted;
}

Json ModelJson(const NamedModel& model, const ParameterCount& count) {
  const ModelConfig& config = model.config;
  Json parts = Json::object();
  for (std::size_t i = 0; i < kNumModelParts; ++i)
    parts[std::string(Name(static_cast<ModelPart>(i)))] = count.by_part[i];
  const CheckpointElements& elements = count.checkpoint;
  return {{"name", model.name},
          {"total", count.total},
          {"active", count.active},
          {"active_without_embedding", count.active_without_embedding},
          {"by_part", parts},
          {"experts",
           {{"count", config.num_experts()},
            {"per_token", config.experts_per_token()},
            {"parameters_each", count.expert_parameters_each()}}},
          {"checkpoint",
           {{"elements", elements.total()},
            {"weights", elements.weights},
            {"scales", elements.scales},
            {"prediction_layers", elements.prediction_layers},
            {"duplicated_tables", elements.duplicates}}},
          {"model_type", config.model_type},
          {"layers", config.num_layers()},
          {"encoder_layers", config.encoder_layers},
          {"sparse_layers", config.sparse_layers().size()},
          {"tied_embeddings", config.tied_embeddings},
          {"served", config.servable},
          {"quoted", QuotedJson(model, count)}};
}

std::string Share(std::uint64_t part, std::uint64_t whole) {
  return Cat(Significant(100.0 * static_cast<double>(part) / static_cast<double>(whole), 3), " %");
}

void AddCountRow(const char* label, std::uint64_t value, std::uint64_t total, TextTable& table) {
  table.Add({label, WithSeparators(value), ShortCount(static_cast<double>(value)), Share(value, total)});
}

std::string ElementLines(const CheckpointElements& elements, std::uint64_t logical) {
  if (elements.total() == logical) return "\nThe checkpoint holds as many elements as the model has parameters.\n";
  TextTable table({"checkpoint elements", "exact", ""});
  const auto add = [&](const char* label, std::uint64_t value) {
    if (value > 0) table.Add({label, WithSeparators(value), ShortCount(static_cast<double>(value))});
  };
  add("weights of the model, as stored", elements.weights);
  add("scales", elements.scales);
  add("prediction layers", elements.prediction_layers);
  add("tables that they repeat", elements.duplicates);
  add("in all", elements.total());
  return Cat("\n", table.Text());
}

std::string QuotedLines(const NamedModel& model, const ParameterCount& count) {
  const std::vector<ComparedFigure> figures = CompareQuoted(model, count);
  if (figures.empty()) return {};
  TextTable table({"quoted as", "exact", "of", "by"});
  for (const ComparedFigure& figure : figures)
    table.Add({Cat(figure.quoted.label, figure.is_rounding ? ", its rounding" : ", which differs"),
               WithSeparators(figure.exact), figure.quoted.figure, figure.quoted.source});
  return Cat("\n", table.Text());
}

template <typename Visit>
Status ForEachPublished(Visit&& visit) {
  for (const PublishedModel& published : PublishedModels()) {
    MOE_ASSIGN_OR_RETURN(const NamedModel model, OpenModel(std::string(published.name)));
    visit(model, CountParameters(model.config));
  }
  return Status::Ok();
}

}  // namespace

std::vector<ComparedFigure> CompareQuoted(const NamedModel& model, const ParameterCount& count) {
  std::vector<ComparedFigure> figures;
  for (const QuotedFigure& quoted : model.quoted) {
    ComparedFigure figure{.quoted = quoted, .exact = ExactFigure(count, quoted.figure)};
    const double off = std::abs(static_cast<double>(figure.exact) - static_cast<double>(quoted.value));
    const double digit = LastDigit(quoted.label);
    figure.is_rounding = digit > 1 ? off <= digit / 2 : figure.exact == quoted.value;
    figures.push_back(figure);
  }
  return figures;
}

std::string ParamsJson(const NamedModel& model, const ParameterCount& count) {
  return ModelJson(model, count).dump(2) + "\n";
}

std::string ParamsText(const NamedModel& model, const ParameterCount& count) {
  const ModelConfig& config = model.config;
  TextTable table({model.name, "exact", "", "of total"});
  AddCountRow("total", count.total, count.total, table);
  AddCountRow("active", count.active, count.total, table);
  AddCountRow("active without embedding", count.active_without_embedding, count.total, table);
  for (std::size_t i = 0; i < kNumModelParts; ++i) {
    if (count.by_part[i] == 0) continue;
    const std::string label = Cat("  ", Name(static_cast<ModelPart>(i)));
    AddCountRow(label.c_str(), count.by_part[i], count.total, table);
  }
  std::string text = table.Text();
  if (config.num_experts() > 0) {
    text += Cat("\n", config.num_experts(), " experts of ", WithSeparators(count.expert_parameters_each()),
                " parameters, ", config.experts_per_token(), " a token, in ", config.sparse_layers().size(), " of ",
                config.num_layers(), " layers.\n");
  }
  if (config.tied_embeddings)
    text += "\nThe embedding is the output matrix too: counted once, and touched by every token.\n";
  return text + ElementLines(count.checkpoint, count.total) + QuotedLines(model, count);
}

Result<std::string> ModelListJson() {
  Json models = Json::array();
  MOE_RETURN_IF_ERROR(ForEachPublished(
      [&](const NamedModel& model, const ParameterCount& count) { models.push_back(ModelJson(model, count)); }));
  return models.dump(2) + "\n";
}

Result<std::string> ModelListText() {
  TextTable table({"model", "total", "active", "without embedding", "experts", "a token", "quoted as"});
  MOE_RETURN_IF_ERROR(ForEachPublished([&](const NamedModel& model, const ParameterCount& count) {
    std::string quoted;
    for (const QuotedFigure& figure : model.quoted) quoted += Cat(quoted.empty() ? "" : " / ", figure.label);
    const bool sparse = model.config.num_experts() > 0;
    table.Add({model.name, WithSeparators(count.total), WithSeparators(count.active),
               WithSeparators(count.active_without_embedding), sparse ? Cat(model.config.num_experts()) : std::string(),
               sparse ? Cat(model.config.experts_per_token()) : std::string(), quoted});
  }));
  return table.Text();
}

}  // namespace moe
