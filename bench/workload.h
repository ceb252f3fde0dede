// What a load run sends: prompts and lengths, drawn deterministically from a seed.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"

namespace moe {

/// What the client needs to know of the server's model.
struct ServedModel {
  std::string name;
  std::string weight_type;
  std::string routing;  // "gate", or what is forced on the model; empty: not said
  std::uint32_t vocab_size = 0;
  std::uint32_t context_length = 0;
  std::uint32_t max_sequences_per_request = 0;  // 0: not said
};

/// A length drawn uniformly from [low, high].
struct LengthRange {
  std::uint32_t low = 0;
  std::uint32_t high = 0;
};

/// "N" or "A:B" with 1 <= A <= B.
Result<LengthRange> ParseLengthRange(std::string_view text);

struct WorkloadOptions {
  LengthRange input_len{128, 128};  // of each sequence
  LengthRange output_len{64, 64};   // of each call: all its sequences have one max_new_tokens
  std::uint32_t sequences_per_request = 1;
  std::string text_file;  // prompts are windows of it, a byte a token; empty: random token ids
  std::uint64_t seed = 0;
};

struct PlannedCall {
  std::string request_id;                           // "moe-bench-7", "moe-bench-warmup-7"
  std::vector<std::vector<std::uint32_t>> prompts;  // one for each sequence
  std::uint32_t max_new_tokens = 0;
  std::uint64_t sampling_seed = 0;
};

/// The calls of a run. A call depends on the seed, its phase and its index only, and is made when it is sent, so that a
/// long run needs no memory for it.
class Workload {
 public:
  enum class Phase : std::uint64_t { kWarmup = 1, kMeasured = 2 };

  /// INVALID_ARGUMENT when the lengths do not fit the model's context, or the text its vocabulary.
  static Result<Workload> Create(const WorkloadOptions& options, const ServedModel& model);

  PlannedCall Make(Phase phase, std::uint64_t index) const;

 private:
  Workload(const WorkloadOptions& options, std::uint32_t vocab_size, std::string text)
      : options_(options), vocab_size_(vocab_size), text_(std::move(text)) {}

  WorkloadOptions options_;
  std::uint32_t vocab_size_;
  std::string text_;
};

}  // namespace moe
