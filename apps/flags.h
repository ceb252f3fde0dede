// Flags as all programs of ours have them: each also in the environment, with its default in the help text; and how the
// programs end. (CLI11's headers stay in source files.)
#pragma once

#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "kernels/weight_type.h"

namespace CLI {
class App;
class Option;
class ParseError;
}  // namespace CLI

namespace moe {

inline constexpr int kExitFailed = 1;
inline constexpr int kExitBadUsage = 2;

/// What was wrong with the command line of a program that has commands, in a sentence.
std::string ExplainParseError(const CLI::App& app, const CLI::ParseError& error);

/// "--max-queued" → "MOE_MAX_QUEUED".
std::string EnvironmentName(std::string flag);

/// For CLI11's check, whose ranges let "nan" through: what is wrong with it, else nothing.
std::string RefuseNan(const std::string& text);

template <typename Value>
using Choices = std::map<std::string, Value>;

/// "auto", which leaves it to the program, and every type.
Choices<std::optional<WeightType>> WeightTypeChoices();

/// Adds options to an app with their environment names and shown defaults.
class FlagAdder {
 public:
  explicit FlagAdder(CLI::App& app) : app_(app) {}

  /// For the types that flags.cpp instantiates: strings, paths, numbers and lists of them. A name without dashes among
  /// those in `name`, which commas separate, makes it positional too.
  template <typename Value>
  CLI::Option* Add(const std::string& name, Value& value, const std::string& help);

  /// Given or not.
  CLI::Option* AddSwitch(const std::string& name, bool& value, const std::string& help);

  /// A number of milliseconds, given in seconds.
  CLI::Option* AddSeconds(const std::string& name, std::chrono::milliseconds& value, const std::string& help);

  /// One of some words; `shown` is the default's.
  template <typename Value>
  CLI::Option* AddChoice(const std::string& name, Value& value, const Choices<Value>& choices, const std::string& shown,
                         const std::string& help) {
    std::vector<std::string> words;
    for (const auto& choice : choices) words.push_back(choice.first);
    const auto choose = [&value, choices](const std::string& word) { value = choices.at(word); };
    return AddWords(name, words, choose, shown, help);
  }

 private:
  CLI::Option* AddWords(const std::string& name, const std::vector<std::string>& words,
                        const std::function<void(const std::string&)>& choose, const std::string& shown,
                        const std::string& help);

  CLI::App& app_;
};

/// --placement and --loads, of which placement/named_placement.h makes a placement.
void AddNamedPlacementFlags(FlagAdder& add, std::string& placement, std::filesystem::path& loads);

}  // namespace moe
