// A step's rows, cut into micro-batches: parts that pass through the layers one behind the other, so that the router
// computes for one of them while workers compute for another. Rows do not see each other, so the cut changes no bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "model/dense_backend.h"
#include "router/scheduler.h"

namespace moe {

/// The most micro-batches of a step.
inline constexpr int kMaxMicroBatches = 4;

/// Filled anew in every step, without allocating.
class MicroBatches {
 public:
  MicroBatches(std::size_t max_step_tokens, int max_count);

  /// The chunks' rows, in their order, in `count` parts that differ by at most one row; every part has a row. A chunk
  /// that lies across a cut is in both parts: its later rows see the earlier ones, whose keys a layer stores first.
  void Cut(std::span<const Chunk> chunks, int count);

  /// One StepBatch a part.
  std::span<const StepBatch> batches() const { return batches_; }
  /// Rows of the parts before this one.
  std::size_t first_row(std::size_t batch) const { return first_rows_[batch]; }
  std::size_t rows() const { return token_ids_.size(); }

 private:
  void AddRows(std::span<const Chunk> chunks);
  void AddBatch(std::span<const Chunk> chunks, std::size_t first_row, std::size_t end_row);

  const std::size_t max_step_tokens_;
  const std::size_t max_count_;
  std::vector<std::uint32_t> token_ids_;   // (rows)
  std::vector<std::uint32_t> positions_;   // (rows)
  std::vector<StepBatch::Entry> entries_;  // of all parts
  std::vector<StepBatch> batches_;         // by part
  std::vector<std::size_t> first_rows_;    // by part
};

}  // namespace moe
