// What keys and values take, layer by layer: grouped heads, compressed latents, windows, chunks, cross attention.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "core/status.h"
#include "model/config.h"

namespace moe {

enum class KvKind : std::uint8_t {
  kFull,     // every position
  kWindow,   // the positions that a sliding window or a chunk can still see
  kCross,    // of the encoder's output, once for a sequence
  kEncoder,  // of the encoder's own attention, in the one step that it takes; its layers use the same memory
};
/// "full", "window", "cross", "encoder".
std::string_view Name(KvKind kind);

/// Attention of one layer over one kind of positions; a layer with cross attention has two.
struct KvLayer {
  int layer = 0;
  KvKind kind = KvKind::kFull;
  std::uint64_t elements = 0;  // a position: keys and values of all KV heads, or one latent
  std::uint64_t limit = 0;     // kWindow: positions that one token sees
};
std::vector<KvLayer> KvLayers(const ModelConfig& config);

/// Elements of a position over all decoder layers, cross attention left out; and of the layers without a window, which
/// are what still grows in a long sequence.
std::uint64_t KvElementsPerToken(const ModelConfig& config);
std::uint64_t KvElementsPerLateToken(const ModelConfig& config);

struct KvShape {
  std::uint64_t context = 0;         // positions of a sequence
  std::uint64_t batch = 1;           // sequences
  std::uint64_t encoder_tokens = 0;  // of a sequence; encoder–decoder models
  std::uint64_t prefill_chunk = 1;   // new positions of a sequence in a step
  std::uint64_t step_tokens = 1;     // of all sequences in a step
  std::uint64_t page_tokens = 1;     // positions are held in whole pages
  std::uint64_t element_bytes = 4;
};

/// Positions that all sequences hold, in whole pages. Of a window W a sequence holds at most W − 1 + prefill_chunk,
/// wherever in its pages that begins (as KvCache reserves); the encoder's own attention, what fits in a step.
std::uint64_t HeldPositions(const KvLayer& layer, const KvShape& shape);

struct KvUse {
  KvKind kind = KvKind::kFull;
  std::uint64_t layers = 0;
  std::uint64_t elements = 0;   // a position, over these layers; kEncoder: of the largest
  std::uint64_t positions = 0;  // held by all sequences, the most of these layers
  std::uint64_t bytes = 0;      // of all sequences
};

struct KvBytes {
  std::uint64_t total = 0;
  std::vector<KvUse> uses;  // by kind, those that there are
};

/// INVALID_ARGUMENT when it does not fit in 63 bits.
Result<KvBytes> CountKvBytes(const ModelConfig& config, const KvShape& shape);

}  // namespace moe
