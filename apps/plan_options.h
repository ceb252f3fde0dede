// moe_plan's flags.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "bench/plan/cost_plan.h"
#include "bench/plan/memory_plan.h"
#include "placement/placement_problem.h"

namespace moe {

enum class PlanCommand { kParams, kMemory, kCost, kCompare, kPlacement };

struct PlanOptions {
  PlanCommand command = PlanCommand::kParams;
  std::string model;
  std::vector<std::string> models;  // compare
  bool list = false;                // params
  bool json = false;

  std::vector<std::string> weight_types;  // memory, compare
  std::string weight_type = "stored";     // cost, compare: what a token reads
  std::optional<WeightType> attention_weight_type;
  std::size_t context = 0;         // 0: the default for the model
  std::size_t encoder_tokens = 0;  // 0: as many as context
  std::vector<std::size_t> batches;

  MemoryOptions memory;
  CostOptions cost;
  /// placement: what the flags say; loads and the current placement come from the files.
  PlacementAlgorithm algorithm = PlacementAlgorithm::kAuto;
  PlacementProblem placement;
  std::filesystem::path loads;
  std::filesystem::path current;
  std::filesystem::path output;

  std::string device_name;  // as reports name it
  std::string device_source;
};

/// What the command line asks for: to run, or to print `text` and exit with `exit_code` (help, version, bad usage).
struct ParsedPlanOptions {
  PlanOptions options;
  bool run = false;
  int exit_code = 0;
  std::string text;
};

ParsedPlanOptions ParsePlanOptions(int argc, char** argv);

}  // namespace moe
