#include "router/micro_batches.h"

#include <algorithm>

#include "core/check.h"

namespace moe {
namespace {

std::span<const std::uint32_t> KnownTokens(const Chunk& chunk) {
  return chunk.encode ? chunk.sequence->request.source : chunk.sequence->tokens;
}

std::size_t FirstPosition(const Chunk& chunk) { return chunk.encode ? 0 : chunk.sequence->computed; }

}  // namespace

MicroBatches::MicroBatches(std::size_t max_step_tokens, int max_count)
    : max_step_tokens_(max_step_tokens), max_count_(static_cast<std::size_t>(max_count)) {
  token_ids_.reserve(max_step_tokens);
  positions_.reserve(max_step_tokens);
  entries_.reserve(max_step_tokens);  // each has a row of its own
  batches_.reserve(max_count_);
  first_rows_.reserve(max_count_);
}

void MicroBatches::Cut(std::span<const Chunk> chunks, int count) {
  AddRows(chunks);
  const std::size_t rows = token_ids_.size();
  const auto parts = static_cast<std::size_t>(count);
  MOE_CHECK(parts >= 1 && parts <= max_count_ && parts <= rows);
  entries_.clear();
  batches_.clear();
  first_rows_.clear();
  for (std::size_t part = 0; part < parts; ++part) AddBatch(chunks, part * rows / parts, (part + 1) * rows / parts);
}

void MicroBatches::AddRows(std::span<const Chunk> chunks) {
  token_ids_.clear();
  positions_.clear();
  for (const Chunk& chunk : chunks) {
    const std::span<const std::uint32_t> tokens = KnownTokens(chunk);
    const std::size_t first = FirstPosition(chunk);
    MOE_CHECK(chunk.tokens > 0 && first + chunk.tokens <= tokens.size());
    MOE_CHECK(token_ids_.size() + chunk.tokens <= max_step_tokens_);
    for (std::size_t position = first; position < first + chunk.tokens; ++position) {
      token_ids_.push_back(tokens[position]);
      positions_.push_back(static_cast<std::uint32_t>(position));
    }
  }
}

// Of every chunk the rows that are in [first_row, end_row) of the step.
void MicroBatches::AddBatch(std::span<const Chunk> chunks, std::size_t first_row, std::size_t end_row) {
  const std::size_t first_entry = entries_.size();
  std::size_t chunk_row = 0;
  for (const Chunk& chunk : chunks) {
    const std::size_t begin = std::max(chunk_row, first_row);
    const std::size_t end = std::min(chunk_row + chunk.tokens, end_row);
    if (begin < end) {
      entries_.push_back({.kv = &chunk.sequence->kv,
                          .first_row = begin - first_row,
                          .rows = end - begin,
                          .first_position = FirstPosition(chunk) + begin - chunk_row,
                          .source_positions = chunk.sequence->request.source.size()});
    }
    chunk_row += chunk.tokens;
  }
  const std::size_t rows = end_row - first_row;
  first_rows_.push_back(first_row);
  batches_.push_back({.token_ids = std::span(token_ids_).subspan(first_row, rows),
                      .positions = std::span(positions_).subspan(first_row, rows),
                      .entries = std::span(entries_).subspan(first_entry)});
}

}  // namespace moe
