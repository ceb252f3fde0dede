// Judges every sequence of a run and sums the run up. Definitions: bench/README.md. A request is one sequence, as in
// the server's metrics.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bench/load_records.h"
#include "bench/statistics.h"
#include "core/status.h"

namespace moe {

/// Limits that a good request keeps, in milliseconds.
struct Slo {
  std::optional<double> ttft_ms;
  std::optional<double> tpot_ms;
  std::optional<double> e2el_ms;

  bool any() const { return ttft_ms || tpot_ms || e2el_ms; }
};

/// Each item "ttft:MS", "tpot:MS" or "e2el:MS", each name at most once.
Result<Slo> ParseSlo(std::span<const std::string> items);

enum class Verdict {
  kCompleted,    // exactly one Finish (STOP or LENGTH), and as many tokens as it says
  kLost,         // the Finish, or tokens, never came although the call ended OK
  kDoubled,      // a second Finish, or more tokens than counted
  kFailed,       // the server said so: a status, or Finish FAILED
  kWrong,        // an answer that the protocol does not allow
  kInterrupted,  // cancelled by this client
};

struct Judgement {
  Verdict verdict = Verdict::kCompleted;
  std::string reason;   // "RESOURCE_EXHAUSTED", "LOST_FINISH", …; empty when completed
  std::string message;  // the server's, or what was expected
};

Judgement Judge(const CallRecord& call, const SequenceRecord& sequence);

/// Latencies of a completed sequence, in milliseconds from the moment at which its call was due.
struct Latencies {
  std::optional<double> ttft;  // to the first token; nothing without a token
  std::optional<double> tpot;  // (e2el - ttft) / (tokens - 1); nothing below two tokens
  double e2el = 0;             // to the last token (to the Finish without a token)
  std::vector<double> itl;     // each gap between two tokens
};

Latencies Measure(const CallRecord& call, const SequenceRecord& sequence);

struct FailureReason {
  std::uint64_t count = 0;
  std::string message;  // of the first one
};

struct LoadFigures {
  std::uint64_t completed = 0;
  std::uint64_t failed = 0;       // all that neither completed nor were interrupted
  std::uint64_t lost = 0;         // of those failed
  std::uint64_t doubled = 0;      // of those failed
  std::uint64_t interrupted = 0;  // in flight when the client was told to stop
  std::uint64_t not_sent = 0;
  std::map<std::string, FailureReason> failures;

  std::uint64_t total_input_tokens = 0;   // of completed requests
  std::uint64_t total_output_tokens = 0;  // of completed requests
  double duration = 0;                    // seconds, from the start to the end of the last call
  double request_throughput = 0;
  std::optional<double> request_goodput;  // only when there is an SLO
  double output_throughput = 0;
  double total_token_throughput = 0;

  std::optional<Summary> ttft_ms;
  std::optional<Summary> tpot_ms;
  std::optional<Summary> itl_ms;
  std::optional<Summary> e2el_ms;
  double max_send_delay_ms = 0;  // how late this client was at worst; part of every latency above

  std::string output_hash;  // of all tokens of completed requests, in order of call and sequence
};

/// `start` is the moment at which the first call was due.
LoadFigures SumUp(std::span<const CallRecord> calls, TimePoint start, const Slo& slo);

/// "RESOURCE_EXHAUSTED 3 (queue is full), LOST_FINISH 1 (…)": for a one-sentence error.
std::string DescribeFailures(const std::map<std::string, FailureReason>& failures);

}  // namespace moe
