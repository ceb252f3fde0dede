// What `moe_plan params` prints.
#pragma once

#include <string>

#include "bench/plan/models.h"
#include "model/parameter_count.h"

namespace moe {

/// A quoted figure beside the exact one.
struct ComparedFigure {
  QuotedFigure quoted;
  std::uint64_t exact = 0;
  /// Whether `exact` rounds to the label, in as many digits as the label has: 46,702,792,704 is "46.7B".
  bool is_rounding = false;
};
std::vector<ComparedFigure> CompareQuoted(const NamedModel& model, const ParameterCount& count);

/// JSON with a newline at its end; docs/planner.md has the keys.
std::string ParamsJson(const NamedModel& model, const ParameterCount& count);
std::string ParamsText(const NamedModel& model, const ParameterCount& count);

/// All built-in models.
Result<std::string> ModelListJson();
Result<std::string> ModelListText();

}  // namespace moe
