// What a step really had to do: bytes of weights and cache that it touched, operations that it computed. The
// definitions behind S-MBU and S-MFU (docs/benchmarks.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/kv_type.h"
#include "model/config.h"
#include "router/engine.h"
#include "router/scheduler.h"

namespace moe {

/// What one sequence had computed: consecutive positions, or its whole source by an encoder.
struct RowRange {
  std::size_t first = 0;
  std::size_t rows = 0;
  bool encode = false;
  std::size_t source = 0;  // positions that cross attention sees
};

struct StepShape {
  std::vector<RowRange> ranges;                  // one a sequence that took part
  std::size_t logit_rows = 0;                    // rows that went through the head
  std::span<const std::uint64_t> expert_tokens;  // (sparse layers, experts)

  std::size_t rows() const;
};

/// The shape of the step that has just computed `chunks` for sequences that generate.
StepShape ShapeOf(std::span<const Chunk> chunks, std::span<const std::uint64_t> expert_tokens);

/// A multiplication and an addition are two. By what does them: integer instructions where weights are int8 or int4,
/// else fp32's, into which 16-bit weights, keys and values are widened.
struct Operations {
  double fp32 = 0;
  double int8 = 0;

  double total() const { return fp32 + int8; }
  Operations& operator+=(const Operations& other);
  Operations operator*(double times) const { return {.fp32 = fp32 * times, .int8 = int8 * times}; }
};

/// Sums over steps.
struct Work {
  std::uint64_t steps = 0;
  std::uint64_t rows = 0;
  double weight_bytes = 0;
  double kv_bytes = 0;
  Operations operations;
  std::uint64_t distinct_experts = 0;  // (layer, expert) pairs with a token, each step's added up

  double bytes() const { return weight_bytes + kv_bytes; }
  Work& operator+=(const Work& other);
};

/// What steps of a model touch and compute.
class WorkMeter {
 public:
  /// `config` outlives it.
  WorkMeter(const ModelConfig& config, const WeightTypes& types, KvType kv_type);

  Work Of(const StepShape& step) const;

 private:
  /// The dense weights of a stack.
  struct Dense {
    double bytes = 0;
    Operations operations;  // of a row
  };
  /// A routed expert of a sparse layer.
  struct Expert {
    double bytes = 0;
    Operations operations;  // of a row
  };

  Dense& dense(bool encoder) { return encoder ? encoder_ : decoder_; }

  const ModelConfig& config_;
  const KvType kv_type_;
  double embedding_row_bytes_ = 0;
  double head_bytes_ = 0;
  Operations head_operations_;  // of a row
  Dense encoder_;
  Dense decoder_;
  std::vector<Expert> experts_;  // by sparse layer
};

/// Bytes of keys and values that the rows of `range` read in a layer, each position once a step.
double KvBytesRead(const AttentionSpec& attention, KvType type, const RowRange& range);

/// Operations of the scores and of the sum over values of those rows.
double AttentionOperations(const AttentionSpec& attention, const RowRange& range);

}  // namespace moe
