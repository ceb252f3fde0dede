// What the client saw of each call and each of its sequences: times and counts, no judgement.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/clock.h"

namespace moe {

enum class ReplyFinish { kNone, kStop, kLength, kCancelled, kFailed, kUnknown };

struct SequenceRecord {
  std::uint32_t prompt_tokens = 0;          // sent
  std::uint32_t max_new_tokens = 0;         // asked for
  std::vector<TimePoint> token_times;       // one for each token received, ascending
  std::uint64_t token_hash = 0;             // of the ids received, in order (HashToken)
  std::uint32_t invalid_tokens = 0;         // ids not below the vocabulary size
  std::uint32_t tokens_after_finish = 0;    // also in token_times
  std::uint32_t finishes = 0;               // exactly one was expected
  ReplyFinish finish = ReplyFinish::kNone;  // the first one and what came with it
  TimePoint finish_time{};
  std::string finish_message;
  std::uint32_t usage_prompt_tokens = 0;
  std::uint32_t usage_generated_tokens = 0;
};

struct CallRecord {
  std::uint64_t index = 0;  // in its phase
  TimePoint scheduled{};    // when it was due; latencies count from here
  TimePoint sent{};
  TimePoint ended{};
  std::string status = "OK";  // gRPC's name of the code
  std::string message;
  bool cancelled_by_client = false;  // the run was interrupted
  std::uint32_t stray_events = 0;    // for a sequence that the call does not have
  std::vector<SequenceRecord> sequences;
};

/// FNV-1a over the four bytes of `token_id`, lowest first.
inline std::uint64_t HashToken(std::uint64_t hash, std::uint32_t token_id) {
  for (int shift = 0; shift < 32; shift += 8) hash = (hash ^ ((token_id >> shift) & 0xff)) * 0x100000001b3;
  return hash;
}
inline constexpr std::uint64_t kHashStart = 0xcbf29ce484222325;

}  // namespace moe
