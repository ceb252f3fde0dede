// Machines that plans can be made for by name, with the figures of their data sheets.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "core/status.h"

namespace moe {

/// Peaks as the vendor states them: dense (not sparse) 16-bit matrix products, one device.
struct DevicePreset {
  std::string_view name;
  std::uint64_t memory_bytes = 0;
  double bandwidth_bytes_per_s = 0;
  double flops = 0;
  double watts = 0;
  std::string_view source;
};

std::span<const DevicePreset> DevicePresets();
/// NOT_FOUND that lists the names.
Result<DevicePreset> FindDevice(std::string_view name);

}  // namespace moe
