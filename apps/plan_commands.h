// The commands of moe_plan, a file each, and what they share: how they become text, and flags of the same name.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "apps/flags.h"
#include "bench/plan/models.h"
#include "core/status.h"

namespace moe {

/// A command of moe_plan: its name on the command line, and what it prints once the flags are read.
struct PlanCommand {
  CLI::App* app = nullptr;
  std::function<Result<std::string>()> run;
};

PlanCommand AddParamsCommand(CLI::App& app);
PlanCommand AddMemoryCommand(CLI::App& app);
PlanCommand AddCostCommand(CLI::App& app);
PlanCommand AddCompareCommand(CLI::App& app);
PlanCommand AddPlacementCommand(CLI::App& app);

/// A subcommand of `app`, before it has flags of its own.
CLI::App* NewPlanCommand(CLI::App& app, const char* name, const char* help, const char* examples);

/// A command with the flags that `add_flags` gives it, which `run` gets once they are read.
template <typename Flags>
PlanCommand MakePlanCommand(CLI::App* command, void (*add_flags)(FlagAdder&, Flags&),
                            Result<std::string> (*run)(const Flags&)) {
  const auto flags = std::make_shared<Flags>();
  FlagAdder add(*command);
  add_flags(add, *flags);
  return {.app = command, .run = [flags, run] { return run(*flags); }};
}

/// Opens a model and shows its warnings on stderr.
Result<NamedModel> OpenPlanModel(const std::string& what);

/// The names of data sheets, for a sentence.
std::string DeviceNames();

// --- flags that several commands have

void AddModelFlag(FlagAdder& add, std::string& model);
void AddJsonFlag(FlagAdder& add, bool& json);
void AddDeviceFlag(FlagAdder& add, std::string& device);
void AddAttentionTypeFlag(FlagAdder& add, std::optional<WeightType>& type);
void AddWeightTypesFlag(FlagAdder& add, std::vector<std::string>& types);
void AddKvTypeFlag(FlagAdder& add, std::uint64_t& element_bytes);
void AddBatchesFlag(FlagAdder& add, std::vector<std::size_t>& batches);

/// --context and --encoder-tokens, as given; 0: the default for the model.
struct ContextFlags {
  std::size_t context = 0;
  std::size_t encoder_tokens = 0;
};
void AddContextFlags(FlagAdder& add, ContextFlags& flags);
/// 4096 positions, as far as the model's context goes, where none are given; as many encoder tokens.
ContextFlags ContextOf(const ContextFlags& flags, const ModelConfig& config);

}  // namespace moe
