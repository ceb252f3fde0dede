#include "core/units.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <optional>
#include <span>

#include "core/text.h"

namespace moe {
namespace {

// As printf writes it, whatever the locale.
std::string Written(double value, std::chars_format form, int precision) {
  std::array<char, 400> text{};  // the largest double has 309 digits before the point
  const auto [end, error] = std::to_chars(text.data(), text.data() + text.size(), value, form, precision);
  return error == std::errc() ? std::string(text.data(), end) : "?";
}

std::string WithUnit(double value, double step, std::span<const std::string_view> units) {
  std::size_t unit = 0;
  while (unit + 1 < units.size() && value >= step) {
    value /= step;
    ++unit;
  }
  return Cat(Written(value, std::chars_format::fixed, unit == 0 ? 0 : 2), units[unit].empty() ? "" : " ", units[unit]);
}

struct Unit {
  std::string_view name;
  double factor;
};

std::string_view Trimmed(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  return text;
}

// A finite number above 0, with one of `units` behind it.
std::optional<double> ParseAmount(std::string_view text, std::span<const Unit> units) {
  text = Trimmed(text);
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || !std::isfinite(number) || number <= 0) return std::nullopt;
  const std::string_view unit = Trimmed(text.substr(static_cast<std::size_t>(end - text.data())));
  for (const Unit& known : units)
    if (unit == known.name) return number * known.factor;
  return std::nullopt;
}

constexpr double kKilo = 1e3;
constexpr double kKibi = 1024;
constexpr std::array kByteUnits = {
    Unit{"", 1},
    Unit{"B", 1},
    Unit{"kB", kKilo},
    Unit{"KB", kKilo},
    Unit{"MB", 1e6},
    Unit{"GB", 1e9},
    Unit{"TB", 1e12},
    Unit{"PB", 1e15},
    Unit{"KiB", kKibi},
    Unit{"MiB", kKibi* kKibi},
    Unit{"GiB", kKibi* kKibi* kKibi},
    Unit{"TiB", kKibi* kKibi* kKibi* kKibi},
    Unit{"PiB", kKibi* kKibi* kKibi* kKibi* kKibi},
};
constexpr std::array kFlopUnits = {Unit{"", 1},    Unit{"k", 1e3},  Unit{"K", 1e3}, Unit{"M", 1e6},
                                   Unit{"G", 1e9}, Unit{"T", 1e12}, Unit{"P", 1e15}};
constexpr std::string_view kByteForms = "a number of bytes like 80GiB, 24GB or 1000000";

std::optional<double> BytesAmount(std::string_view text) {
  const std::optional<double> bytes = ParseAmount(text, kByteUnits);
  constexpr double kMost = 9.2e18;  // below 2^63
  return bytes && *bytes >= 1 && *bytes < kMost ? bytes : std::nullopt;
}

}  // namespace

std::string WithSeparators(std::uint64_t value) {
  const std::string digits = std::to_string(value);
  std::string text;
  for (std::size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

std::string ShortCount(double value) {
  constexpr std::array<std::string_view, 5> kUnits = {"", "K", "M", "B", "T"};
  return WithUnit(value, kKilo, kUnits);
}

std::string ShortBytes(double bytes) {
  constexpr std::array<std::string_view, 6> kUnits = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  return WithUnit(bytes, kKibi, kUnits);
}

std::string Significant(double value, int digits) {
  if (value == 0 || !std::isfinite(value)) return Written(value, std::chars_format::general, digits);
  const int magnitude = static_cast<int>(std::floor(std::log10(std::abs(value))));
  if (magnitude < -3 || magnitude >= 7) return Written(value, std::chars_format::general, digits);
  return Written(value, std::chars_format::fixed, std::max(0, digits - 1 - magnitude));
}

Result<std::uint64_t> ParseBytes(std::string_view text) {
  const std::optional<double> bytes = BytesAmount(text);
  if (!bytes) return InvalidArgument("\"", text, "\" is not ", kByteForms);
  return static_cast<std::uint64_t>(*bytes);
}

Result<double> ParseBandwidth(std::string_view text) {
  std::string_view amount = Trimmed(text);
  if (amount.ends_with("/s")) amount.remove_suffix(2);
  const std::optional<double> bytes = BytesAmount(amount);
  if (!bytes) return InvalidArgument("\"", text, "\" is not a rate like 3.35TB/s or 400GiB/s");
  return *bytes;
}

Result<double> ParseFlops(std::string_view text) {
  std::string_view amount = Trimmed(text);
  for (const std::string_view unit : {"FLOPS", "FLOP/s"})
    if (amount.ends_with(unit)) amount.remove_suffix(unit.size());
  const std::optional<double> flops = ParseAmount(amount, kFlopUnits);
  if (!flops) return InvalidArgument("\"", text, "\" is not a rate like 989T, 989TFLOPS or 1e12");
  return *flops;
}

}  // namespace moe
