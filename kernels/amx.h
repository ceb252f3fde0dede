// The processor's matrix tiles (AMX): whether this process may use them, and how a thread shapes them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moe {

/// Asks the kernel for it, for all threads, the first time. True where the processor has tiles of int8 and Linux (5.16
/// or later) lets the process use them.
bool AmxIsUsable();

/// The operand of ldtilecfg (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, "LDTILECFG").
struct alignas(64) AmxConfiguration {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};

  /// Tile register `tile`: 1 … 16 rows of at most 64 bytes.
  void Shape(int tile, std::size_t tile_rows, std::size_t tile_row_bytes) {
    rows[tile] = static_cast<std::uint8_t>(tile_rows);
    row_bytes[tile] = static_cast<std::uint16_t>(tile_row_bytes);
  }
};

/// This thread's tile registers have these shapes, and hold zeros, for as long as this lives. After it they are not
/// saved with the thread any more.
class AmxRegisters {
 public:
  explicit AmxRegisters(const AmxConfiguration& configuration);
  AmxRegisters(const AmxRegisters&) = delete;
  AmxRegisters& operator=(const AmxRegisters&) = delete;
  ~AmxRegisters();
};

}  // namespace moe
