#include "bench/load_figures.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>

#include "bench/table.h"
#include "core/text.h"

namespace moe {
namespace {

double Milliseconds(Clock::duration duration) { return Seconds(duration) * 1000; }

Judgement JudgeFinished(const SequenceRecord& sequence) {
  const std::size_t tokens = sequence.token_times.size();
  const std::uint32_t counted = sequence.usage_generated_tokens;
  if (sequence.finishes > 1) {
    return {Verdict::kDoubled, "DOUBLED_FINISH", Cat(sequence.finishes, " Finish events where one was expected")};
  }
  if (sequence.tokens_after_finish > 0) {
    return {Verdict::kDoubled, "TOKENS_AFTER_FINISH", Cat(sequence.tokens_after_finish, " tokens after the Finish")};
  }
  if (sequence.finish == ReplyFinish::kFailed) return {Verdict::kFailed, "FINISH_FAILED", sequence.finish_message};
  if (sequence.finish == ReplyFinish::kCancelled)
    return {Verdict::kFailed, "FINISH_CANCELLED", sequence.finish_message};
  if (sequence.finish == ReplyFinish::kUnknown) return {Verdict::kWrong, "UNKNOWN_FINISH", "a Finish without a reason"};
  if (tokens < counted) return {Verdict::kLost, "LOST_TOKENS", Cat(tokens, " tokens came of ", counted, " counted")};
  if (tokens > counted)
    return {Verdict::kDoubled, "DOUBLED_TOKENS", Cat(tokens, " tokens came, ", counted, " counted")};
  if (sequence.usage_prompt_tokens != sequence.prompt_tokens) {
    return {Verdict::kWrong, "WRONG_PROMPT_COUNT",
            Cat(sequence.usage_prompt_tokens, " prompt tokens counted of ", sequence.prompt_tokens, " sent")};
  }
  const bool right_length =
      sequence.finish == ReplyFinish::kLength ? tokens == sequence.max_new_tokens : tokens <= sequence.max_new_tokens;
  if (!right_length) {
    return {Verdict::kWrong, "WRONG_LENGTH", Cat(tokens, " tokens, ", sequence.max_new_tokens, " were asked for")};
  }
  if (sequence.invalid_tokens > 0) {
    return {Verdict::kWrong, "INVALID_TOKEN", Cat(sequence.invalid_tokens, " token ids beyond the vocabulary")};
  }
  return {};
}

bool KeepsSlo(const Latencies& latencies, const Slo& slo) {
  // A request without a second token has no time per output token that could be too long.
  return (!slo.ttft_ms || latencies.ttft.value_or(0) <= *slo.ttft_ms) &&
         (!slo.tpot_ms || latencies.tpot.value_or(0) <= *slo.tpot_ms) &&
         (!slo.e2el_ms || latencies.e2el <= *slo.e2el_ms);
}

// Values of all completed requests.
struct Samples {
  std::vector<double> ttft, tpot, itl, e2el;
  std::uint64_t good = 0;
  std::uint64_t hash = kHashStart;
};

void AddCompleted(const CallRecord& call, const SequenceRecord& sequence, const Slo& slo, LoadFigures& figures,
                  Samples& samples) {
  ++figures.completed;
  figures.total_input_tokens += sequence.prompt_tokens;
  figures.total_output_tokens += sequence.token_times.size();
  const Latencies latencies = Measure(call, sequence);
  if (latencies.ttft) samples.ttft.push_back(*latencies.ttft);
  if (latencies.tpot) samples.tpot.push_back(*latencies.tpot);
  samples.itl.insert(samples.itl.end(), latencies.itl.begin(), latencies.itl.end());
  samples.e2el.push_back(latencies.e2el);
  if (KeepsSlo(latencies, slo)) ++samples.good;
  samples.hash = HashToken(samples.hash, static_cast<std::uint32_t>(sequence.token_hash));
  samples.hash = HashToken(samples.hash, static_cast<std::uint32_t>(sequence.token_hash >> 32));
}

void AddFailure(const Judgement& judgement, LoadFigures& figures) {
  ++figures.failed;
  if (judgement.verdict == Verdict::kLost) ++figures.lost;
  if (judgement.verdict == Verdict::kDoubled) ++figures.doubled;
  FailureReason& reason = figures.failures[judgement.reason];
  if (reason.count++ == 0) reason.message = judgement.message;
}

std::optional<double> ParsePositive(std::string_view text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value) || value <= 0)
    return std::nullopt;
  return value;
}

}  // namespace

Result<Slo> ParseSlo(std::span<const std::string> items) {
  Slo slo;
  for (const std::string& item : items) {
    const std::size_t colon = item.find(':');
    const std::string name = item.substr(0, colon);
    std::optional<double>* limit = name == "ttft"   ? &slo.ttft_ms
                                   : name == "tpot" ? &slo.tpot_ms
                                   : name == "e2el" ? &slo.e2el_ms
                                                    : nullptr;
    const auto value =
        colon == std::string::npos ? std::nullopt : ParsePositive(std::string_view(item).substr(colon + 1));
    if (limit == nullptr || !value || limit->has_value()) {
      return InvalidArgument("goodput limit \"", item,
                             "\" is not one of ttft:MS, tpot:MS and e2el:MS with MS > 0, each once.");
    }
    *limit = value;
  }
  return slo;
}

Judgement Judge(const CallRecord& call, const SequenceRecord& sequence) {
  if (call.stray_events > 0) {
    return {Verdict::kWrong, "STRAY_EVENT",
            Cat(call.stray_events, " events for a sequence that the call does not have")};
  }
  const bool call_ok = call.status == "OK";
  // A sequence that finished well before its call broke off has lost nothing.
  const bool finished = sequence.finish == ReplyFinish::kStop || sequence.finish == ReplyFinish::kLength;
  if (finished || (call_ok && sequence.finishes > 0)) return JudgeFinished(sequence);
  if (call.cancelled_by_client) return {Verdict::kInterrupted, "INTERRUPTED", "cancelled by the client"};
  if (!call_ok) return {Verdict::kFailed, call.status, call.message};
  return {Verdict::kLost, "LOST_FINISH", "the call ended OK without a Finish"};
}

Latencies Measure(const CallRecord& call, const SequenceRecord& sequence) {
  Latencies latencies;
  const std::vector<TimePoint>& times = sequence.token_times;
  if (times.empty()) {
    latencies.e2el = Milliseconds(sequence.finish_time - call.scheduled);
    return latencies;
  }
  latencies.ttft = Milliseconds(times.front() - call.scheduled);
  latencies.e2el = Milliseconds(times.back() - call.scheduled);
  for (std::size_t i = 1; i < times.size(); ++i) latencies.itl.push_back(Milliseconds(times[i] - times[i - 1]));
  if (times.size() > 1) {
    latencies.tpot = Milliseconds(times.back() - times.front()) / static_cast<double>(times.size() - 1);
  }
  return latencies;
}

LoadFigures SumUp(std::span<const CallRecord> calls, TimePoint start, const Slo& slo) {
  LoadFigures figures;
  Samples samples;
  TimePoint end = start;
  for (const CallRecord& call : calls) {
    end = std::max(end, call.ended);
    figures.max_send_delay_ms = std::max(figures.max_send_delay_ms, Milliseconds(call.sent - call.scheduled));
    for (const SequenceRecord& sequence : call.sequences) {
      const Judgement judgement = Judge(call, sequence);
      switch (judgement.verdict) {
        case Verdict::kCompleted: AddCompleted(call, sequence, slo, figures, samples); break;
        case Verdict::kInterrupted: ++figures.interrupted; break;
        default: AddFailure(judgement, figures); break;
      }
    }
  }
  figures.duration = Seconds(end - start);
  const auto per_second = [&](std::uint64_t count) {
    return figures.duration > 0 ? static_cast<double>(count) / figures.duration : 0;
  };
  figures.request_throughput = per_second(figures.completed);
  if (slo.any()) figures.request_goodput = per_second(samples.good);
  figures.output_throughput = per_second(figures.total_output_tokens);
  figures.total_token_throughput = per_second(figures.total_input_tokens + figures.total_output_tokens);
  figures.ttft_ms = Summarize(std::move(samples.ttft));
  figures.tpot_ms = Summarize(std::move(samples.tpot));
  figures.itl_ms = Summarize(std::move(samples.itl));
  figures.e2el_ms = Summarize(std::move(samples.e2el));
  figures.output_hash = Format("%016llx", static_cast<unsigned long long>(samples.hash));
  return figures;
}

std::string DescribeFailures(const std::map<std::string, FailureReason>& failures) {
  std::string text;
  for (const auto& [reason, failure] : failures) {
    text += Cat(text.empty() ? "" : ", ", reason, " ", failure.count);
    if (!failure.message.empty()) text += Cat(" (", failure.message, ")");
  }
  return text;
}

}  // namespace moe
