#include "placement/forced_routing.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <numeric>
#include <optional>
#include <span>
#include <utility>

#include "placement/routing_tables.h"
#include "placement/trace_routing.h"

namespace moe {
namespace {

constexpr double kMaxExponent = 8;
constexpr std::string_view kForms = "gate, uniform, zipf:S, hot:N,SHARE, trace:FILE";

template <typename Number>
std::optional<Number> ParseNumber(std::string_view text) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

Result<RoutingDial> ParseZipf(std::string_view text) {
  const std::optional<double> exponent = ParseNumber<double>(text);
  if (!exponent || !(*exponent >= 0 && *exponent <= kMaxExponent))
    return InvalidArgument("routing zipf:", text, ": S is not a number in 0 … ", kMaxExponent);
  return RoutingDial{.kind = RoutingDial::Kind::kZipf, .exponent = *exponent};
}

Result<RoutingDial> ParseHot(std::string_view text) {
  const std::size_t comma = text.find(',');
  if (comma == std::string_view::npos) return InvalidArgument("routing hot:", text, " is not of the form hot:N,SHARE");
  const std::optional<int> experts = ParseNumber<int>(text.substr(0, comma));
  const std::optional<double> share = ParseNumber<double>(text.substr(comma + 1));
  if (!experts || *experts < 1 || *experts > kMaxExperts)
    return InvalidArgument("routing hot:", text, ": N is not a whole number in 1 … ", kMaxExperts);
  if (!share || !(*share > 0 && *share <= 1)) return InvalidArgument("routing hot:", text, ": SHARE is not in (0, 1]");
  return RoutingDial{.kind = RoutingDial::Kind::kHot, .hot_experts = *experts, .share = *share};
}

// The shortest text that reads back as the same number.
std::string NumberText(double value) {
  std::array<char, 32> text{};
  const auto end = std::to_chars(text.data(), text.data() + text.size(), value).ptr;
  return {text.data(), end};
}

// Relative popularity by rank, the most popular expert first; sums to 1.
std::vector<double> Popularity(const RoutingDial& dial, int num_experts) {
  std::vector<double> weights(static_cast<std::size_t>(num_experts), 1);
  if (dial.kind == RoutingDial::Kind::kZipf) {
    for (std::size_t r = 0; r < weights.size(); ++r) weights[r] = std::pow(static_cast<double>(r + 1), -dial.exponent);
  } else if (dial.kind == RoutingDial::Kind::kHot) {
    const auto hot = static_cast<std::size_t>(dial.hot_experts);
    for (std::size_t r = 0; r < weights.size(); ++r) {
      weights[r] = r < hot ? dial.share / static_cast<double>(hot)
                           : (1 - dial.share) / static_cast<double>(weights.size() - hot);
    }
  }
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  for (double& weight : weights) weight /= sum;
  return weights;
}

Status CheckHot(const RoutingDial& dial, int num_experts, int experts_per_token) {
  const std::string name = RoutingName(dial);
  if (dial.hot_experts >= num_experts)
    return InvalidArgument("routing ", name, ": N is not below the model's ", num_experts, " experts");
  // A token takes an expert once: an expert's share of the rows is at most 1 / k.
  constexpr double kRounding = 1e-9;
  const auto most = [&](int experts) { return std::min(1.0, static_cast<double>(experts) / experts_per_token); };
  if (dial.share > most(dial.hot_experts) + kRounding)
    return InvalidArgument("routing ", name, ": a token takes each of its ", experts_per_token,
                           " experts once, so that ", dial.hot_experts, " get at most ",
                           NumberText(most(dial.hot_experts)), " of the rows");
  if (1 - dial.share > most(num_experts - dial.hot_experts) + kRounding)
    return InvalidArgument("routing ", name, ": a token takes each of its ", experts_per_token,
                           " experts once, so that the other ", num_experts - dial.hot_experts, " get at most ",
                           NumberText(most(num_experts - dial.hot_experts)), " of the rows");
  return Status::Ok();
}

}  // namespace

Result<RoutingDial> ParseRouting(std::string_view text) {
  const auto after = [text](std::string_view prefix) { return text.substr(prefix.size()); };
  if (text == "gate") return RoutingDial{};
  if (text == "uniform") return RoutingDial{.kind = RoutingDial::Kind::kUniform};
  if (text.starts_with("zipf:")) return ParseZipf(after("zipf:"));
  if (text.starts_with("hot:")) return ParseHot(after("hot:"));
  if (text.starts_with("trace:") && text.size() > std::string_view("trace:").size())
    return RoutingDial{.kind = RoutingDial::Kind::kTrace, .trace = std::string(after("trace:"))};
  return InvalidArgument("routing \"", text, "\" is unknown (", kForms, ")");
}

std::string RoutingName(const RoutingDial& dial) {
  switch (dial.kind) {
    case RoutingDial::Kind::kGate: return "gate";
    case RoutingDial::Kind::kUniform: return "uniform";
    case RoutingDial::Kind::kZipf: return "zipf:" + NumberText(dial.exponent);
    case RoutingDial::Kind::kHot: return Cat("hot:", dial.hot_experts, ",", NumberText(dial.share));
    case RoutingDial::Kind::kTrace: return "trace:" + dial.trace;
  }
  return "gate";
}

Result<std::vector<double>> RowShares(const RoutingDial& dial, int num_experts, int experts_per_token) {
  if (dial.kind == RoutingDial::Kind::kHot) MOE_RETURN_IF_ERROR(CheckHot(dial, num_experts, experts_per_token));
  std::vector<double> shares = InclusionProbabilities(Popularity(dial, num_experts), experts_per_token);
  for (double& share : shares) share /= experts_per_token;
  return shares;
}

Result<std::shared_ptr<const RoutingOverride>> MakeForcedRouting(const RoutingDial& dial, std::uint64_t seed,
                                                                 const ModelConfig& config) {
  if (!dial.forced()) return std::shared_ptr<const RoutingOverride>();
  if (config.num_experts() == 0)
    return InvalidArgument("routing ", RoutingName(dial), ": ", config.model_type, " has no experts to route to");
  if (dial.kind == RoutingDial::Kind::kTrace) return ReadTraceRouting(dial.trace, seed, config);
  MOE_RETURN_IF_ERROR(RowShares(dial, config.num_experts(), config.experts_per_token()).status());
  return MakeRoutingTables(Popularity(dial, config.num_experts()), seed, config);
}

}  // namespace moe
