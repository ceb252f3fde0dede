#include "bench/plan/devices.h"

#include <array>

#include "model/json.h"

namespace moe {
namespace {

constexpr std::uint64_t kGB = 1'000'000'000;

constexpr std::array kPresets = {
    DevicePreset{"a100-80gb", 80 * kGB, 2.039e12, 312e12, 400, "NVIDIA A100 80GB SXM data sheet"},
    DevicePreset{"h100-sxm", 80 * kGB, 3.35e12, 989.4e12, 700, "NVIDIA H100 SXM data sheet"},
    DevicePreset{"h200-sxm", 141 * kGB, 4.8e12, 989.4e12, 700, "NVIDIA H200 SXM data sheet"},
    DevicePreset{"l40s", 48 * kGB, 864e9, 362e12, 350, "NVIDIA L40S data sheet"},
    DevicePreset{"mi300x", 192 * kGB, 5.3e12, 1307.4e12, 750, "AMD Instinct MI300X data sheet"},
};

}  // namespace

std::span<const DevicePreset> DevicePresets() { return kPresets; }

Result<DevicePreset> FindDevice(std::string_view name) {
  std::string known;
  for (const DevicePreset& preset : kPresets) {
    if (preset.name == name) return preset;
    known += Cat(known.empty() ? "" : ", ", preset.name);
  }
  return NotFound("device \"", Printable(name), "\" is unknown (", known, ")");
}

}  // namespace moe
