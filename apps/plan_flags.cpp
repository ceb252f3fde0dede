#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>

#include "apps/plan_commands.h"
#include "bench/plan/devices.h"
#include "bench/plan/memory_plan.h"
#include "core/text.h"

namespace moe {

CLI::App* NewPlanCommand(CLI::App& app, const char* name, const char* help, const char* examples) {
  CLI::App* command = app.add_subcommand(name, help);
  command->fallthrough();
  command->footer(examples);
  return command;
}

Result<NamedModel> OpenPlanModel(const std::string& what) {
  Result<NamedModel> model = OpenModel(what);
  if (!model.ok()) return model;
  for (const std::string& warning : model->config.warnings) std::fprintf(stderr, "moe_plan: %s\n", warning.c_str());
  return model;
}

std::string DeviceNames() {
  std::string names;
  for (const DevicePreset& preset : DevicePresets()) names += Cat(names.empty() ? "" : ", ", preset.name);
  return names;
}

void AddModelFlag(FlagAdder& add, std::string& model) {
  add.Add("model,--model", model, "Built-in name, folder with a config.json, or such a file");
}

void AddJsonFlag(FlagAdder& add, bool& json) { add.AddSwitch("--json", json, "JSON instead of a table"); }

void AddDeviceFlag(FlagAdder& add, std::string& device) {
  add.Add("--device", device, Cat("Take the figures of a data sheet: ", DeviceNames()));
}

void AddAttentionTypeFlag(FlagAdder& add, std::optional<WeightType>& type) {
  add.AddChoice<std::optional<WeightType>>("--attention-weight-type", type, WeightTypeChoices(), "auto",
                                           "Type of attention and head, where the weights are f32, bf16, f16, int8 or "
                                           "int4; auto: int8 with int4, else theirs");
}

void AddWeightTypesFlag(FlagAdder& add, std::vector<std::string>& types) {
  add.Add("--weight-type", types, "Some of stored, f32, bf16, f16, int8, int4, mxfp4, fp8")->delimiter(',');
}

void AddKvTypeFlag(FlagAdder& add, std::uint64_t& element_bytes) {
  add.AddChoice<std::uint64_t>("--kv-type", element_bytes, {{"f32", 4}, {"bf16", 2}}, "f32",
                               "Type of keys and values in the cache");
}

void AddBatchesFlag(FlagAdder& add, std::vector<std::size_t>& batches) {
  add.Add("--batch", batches, "Sequences that a step decodes together, a list")
      ->delimiter(',')
      ->check(CLI::Range(std::size_t{1}, std::size_t{kMostBatch}));
}

void AddContextFlags(FlagAdder& add, ContextFlags& flags) {
  add.Add("--context", flags.context, "Positions of each sequence; 0: 4096 or the model's limit, if that is less")
      ->check(CLI::Range(std::size_t{0}, std::size_t{kMostContext}));
  add.Add("--encoder-tokens", flags.encoder_tokens, "Of each sequence, where there is an encoder; 0: as --context")
      ->check(CLI::Range(std::size_t{0}, std::size_t{kMostContext}));
}

ContextFlags ContextOf(const ContextFlags& flags, const ModelConfig& config) {
  constexpr std::size_t kDefault = 4096;
  ContextFlags context = flags;
  if (context.context == 0) {
    context.context =
        config.context_length > 0 ? std::min(kDefault, static_cast<std::size_t>(config.context_length)) : kDefault;
  }
  if (context.encoder_tokens == 0) context.encoder_tokens = context.context;
  return context;
}

}  // namespace moe
