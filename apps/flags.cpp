#include "apps/flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "core/text.h"
#include "placement/named_placement.h"

namespace moe {
namespace {

std::string CheckPlacementName(const std::string& value) {
  if (!NamesPlacementFile(value) || std::filesystem::exists(value)) return "";
  return Cat(value, " is not linear, round_robin, eplb, auto or a file that exists");
}

std::string FirstLine(const std::string& text) { return text.substr(0, text.find('\n')); }

}  // namespace

std::string ExplainParseError(const CLI::App& app, const CLI::ParseError& error) {
  if (dynamic_cast<const CLI::ConfigError*>(&error) != nullptr)
    return Cat("--config: a key is unknown or wrong: ", FirstLine(error.what()));
  // CLI11 would only say that a command is missing.
  if (const std::vector<std::string> rest = app.remaining(); app.get_subcommands().empty() && !rest.empty()) {
    std::string commands;
    for (const CLI::App* command : app.get_subcommands(nullptr))
      commands += Cat(commands.empty() ? "" : ", ", command->get_name());
    return Cat("\"", rest.front(), "\" is neither a command nor a flag (commands: ", commands, ")");
  }
  return Cat(FirstLine(error.what()), " (", app.get_name(), " --help shows what is known)");
}

std::string EnvironmentName(std::string flag) {
  // Of "model,--model" the one with dashes.
  flag = flag.substr(flag.find("--") + 2);
  flag = flag.substr(0, flag.find(','));
  std::transform(flag.begin(), flag.end(), flag.begin(),
                 [](unsigned char c) { return c == '-' ? '_' : static_cast<char>(std::toupper(c)); });
  return "MOE_" + flag;
}

std::string RefuseNan(const std::string& text) {
  double value = 0;
  const bool nan = CLI::detail::lexical_cast(text, value) && std::isnan(value);
  return nan ? Cat(text, " is not a number") : "";
}

template <typename Value>
CLI::Option* FlagAdder::Add(const std::string& name, Value& value, const std::string& help) {
  CLI::Option* option = app_.add_option(name, value, help)->envname(EnvironmentName(name))->capture_default_str();
  if constexpr (std::is_same_v<Value, double>) option->check(RefuseNan);
  return option;
}

template CLI::Option* FlagAdder::Add(const std::string&, int&, const std::string&);
template CLI::Option* FlagAdder::Add(const std::string&, std::size_t&, const std::string&);
template CLI::Option* FlagAdder::Add(const std::string&, double&, const std::string&);
template CLI::Option* FlagAdder::Add(const std::string&, std::string&, const std::string&);
template CLI::Option* FlagAdder::Add(const std::string&, std::filesystem::path&, const std::string&);
template CLI::Option* FlagAdder::Add(const std::string&, std::vector<std::string>&, const std::string&);
template CLI::Option* FlagAdder::Add(const std::string&, std::vector<std::size_t>&, const std::string&);
template CLI::Option* FlagAdder::Add(const std::string&, std::vector<double>&, const std::string&);

CLI::Option* FlagAdder::AddSwitch(const std::string& name, bool& value, const std::string& help) {
  return app_.add_flag(name, value, help)->envname(EnvironmentName(name));
}

CLI::Option* FlagAdder::AddSeconds(const std::string& name, std::chrono::milliseconds& value, const std::string& help) {
  const std::string shown = Cat(value.count() / 1000);
  return app_
      .add_option_function<double>(
          name, [&value](double seconds) { value = std::chrono::milliseconds(static_cast<long>(seconds * 1000)); },
          help)
      ->envname(EnvironmentName(name))
      ->default_str(shown)
      ->check(RefuseNan)
      ->check(CLI::Range(0.0, 1e6));
}

CLI::Option* FlagAdder::AddWords(const std::string& name, const std::vector<std::string>& words,
                                 const std::function<void(const std::string&)>& choose, const std::string& shown,
                                 const std::string& help) {
  return app_.add_option_function<std::string>(name, choose, help)
      ->envname(EnvironmentName(name))
      ->default_str(shown)
      ->check(CLI::IsMember(words));
}

Choices<std::optional<WeightType>> WeightTypeChoices() {
  Choices<std::optional<WeightType>> choices = {{"auto", std::nullopt}};
  for (const WeightType type :
       {WeightType::kF32, WeightType::kBf16, WeightType::kF16, WeightType::kInt8, WeightType::kInt4})
    choices.emplace(Name(type), type);
  return choices;
}

void AddNamedPlacementFlags(FlagAdder& add, std::string& placement, std::filesystem::path& loads) {
  add.Add("--placement", placement, "linear, round_robin, eplb, auto (ours) or a placement file")
      ->check(CheckPlacementName);
  add.Add("--loads", loads, "JSON file with the tokens of each expert, for eplb and auto; absent: all alike");
}

}  // namespace moe
