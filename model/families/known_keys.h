// The two lists of keys that all families share, beside those that a family reads: what changes nothing, and what would
// change the mathematics of a family that does not read it.
#pragma once

#include <span>
#include <string_view>

#include "model/families/key_reader.h"

namespace moe {

/// Keys that change nothing in inference, of any family.
std::span<const std::string_view> HarmlessKeys();

/// Keys that some family computes with, or that other software does: refused by families that do not read them, unless
/// neutral. A family may list another neutral value, which goes first.
std::span<const MathematicalKey> MathematicalKeys();

/// What changes how a model computes but not how many parameters it has: harmless in families that are only counted.
std::span<const std::string_view> HarmlessForCounting();

}  // namespace moe
