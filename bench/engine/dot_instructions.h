// How fast the instructions are that multiply and add, each on its own: what a kernel of that number format could do at
// best on this machine.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

namespace moe {

/// An instruction that this program has a loop for. Not every machine has it.
struct DotInstruction {
  std::string_view format;           // of the factors: "fp32", "bf16", "int8"
  std::string_view instruction_set;  // "avx512_vnni"
  bool (*available)();
  /// `rounds` rounds of independent chains in registers. Returns the operations done (a multiplication and an addition
  /// are two); `sink` gets a value that depends on all of them.
  double (*run)(std::size_t rounds, float& sink);
};

/// All of them, the widest of each format first.
std::span<const DotInstruction> DotInstructions();

/// The one that the kernels of this name (Kernels::name) multiply `format` with; null where there is no loop for it.
const DotInstruction* InstructionOf(std::string_view kernels, std::string_view format);

}  // namespace moe
