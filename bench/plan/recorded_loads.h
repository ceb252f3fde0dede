// Where the tokens of the bundled models go, as bench/record_loads.sh recorded it.
#pragma once

#include <span>
#include <string_view>

namespace moe {

/// A file of bench/plan/loads/.
struct RecordedLoads {
  std::string_view model;
  std::string_view json;  // a loads file (docs/placement-format.md) with a sample for each language
};

/// All of them, in the order of their names.
std::span<const RecordedLoads> AllRecordedLoads();

}  // namespace moe
