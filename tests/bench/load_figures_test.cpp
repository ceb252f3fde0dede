#include "bench/load_figures.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

namespace moe {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

const TimePoint kStart{std::chrono::hours(1)};

// A completed sequence of a 10-token prompt whose tokens came `at` these milliseconds after the start.
SequenceRecord Sequence(const std::vector<int>& at) {
  SequenceRecord sequence{.prompt_tokens = 10, .max_new_tokens = static_cast<std::uint32_t>(at.size())};
  for (const int ms : at) sequence.token_times.push_back(kStart + milliseconds(ms));
  sequence.token_hash = kHashStart;
  sequence.finishes = 1;
  sequence.finish = ReplyFinish::kLength;
  sequence.finish_time = at.empty() ? kStart : sequence.token_times.back();
  sequence.usage_prompt_tokens = 10;
  sequence.usage_generated_tokens = static_cast<std::uint32_t>(at.size());
  return sequence;
}

// Due `due_ms` after the start, ended with its last token.
CallRecord Call(std::uint64_t index, int due_ms, std::vector<SequenceRecord> sequences) {
  CallRecord call{.index = index, .scheduled = kStart + milliseconds(due_ms), .sent = kStart + milliseconds(due_ms)};
  for (const SequenceRecord& sequence : sequences) call.ended = std::max(call.ended, sequence.finish_time);
  call.sequences = std::move(sequences);
  return call;
}

TEST(Judge, NamesEveryWayToGoWrong) {
  struct Case {
    const char* reason;
    Verdict verdict;
    std::function<void(CallRecord&, SequenceRecord&)> spoil;
  };
  const Case cases[] = {
      {"", Verdict::kCompleted, [](CallRecord&, SequenceRecord&) {}},
      {"LOST_FINISH", Verdict::kLost,
       [](CallRecord&, SequenceRecord& s) { s.finishes = 0, s.finish = ReplyFinish::kNone; }},
      {"LOST_TOKENS", Verdict::kLost, [](CallRecord&, SequenceRecord& s) { s.token_times.pop_back(); }},
      {"DOUBLED_FINISH", Verdict::kDoubled, [](CallRecord&, SequenceRecord& s) { s.finishes = 2; }},
      {"TOKENS_AFTER_FINISH", Verdict::kDoubled, [](CallRecord&, SequenceRecord& s) { s.tokens_after_finish = 1; }},
      {"DOUBLED_TOKENS", Verdict::kDoubled,
       [](CallRecord&, SequenceRecord& s) { s.token_times.push_back(s.token_times.back()); }},
      {"FINISH_FAILED", Verdict::kFailed, [](CallRecord&, SequenceRecord& s) { s.finish = ReplyFinish::kFailed; }},
      {"FINISH_CANCELLED", Verdict::kFailed,
       [](CallRecord&, SequenceRecord& s) { s.finish = ReplyFinish::kCancelled; }},
      {"UNKNOWN_FINISH", Verdict::kWrong, [](CallRecord&, SequenceRecord& s) { s.finish = ReplyFinish::kUnknown; }},
      {"WRONG_PROMPT_COUNT", Verdict::kWrong, [](CallRecord&, SequenceRecord& s) { s.usage_prompt_tokens = 9; }},
      {"WRONG_LENGTH", Verdict::kWrong, [](CallRecord&, SequenceRecord& s) { s.max_new_tokens = 4; }},
      {"WRONG_LENGTH", Verdict::kWrong,
       [](CallRecord&, SequenceRecord& s) { s.max_new_tokens = 2, s.finish = ReplyFinish::kStop; }},
      {"", Verdict::kCompleted,
       [](CallRecord&, SequenceRecord& s) { s.max_new_tokens = 9, s.finish = ReplyFinish::kStop; }},
      {"INVALID_TOKEN", Verdict::kWrong, [](CallRecord&, SequenceRecord& s) { s.invalid_tokens = 1; }},
      {"STRAY_EVENT", Verdict::kWrong, [](CallRecord& c, SequenceRecord&) { c.stray_events = 1; }},
      {"UNAVAILABLE", Verdict::kFailed,
       [](CallRecord& c, SequenceRecord& s) {
         c.status = "UNAVAILABLE", s.finishes = 0, s.finish = ReplyFinish::kNone;
       }},
      // All sequences failed for one reason: the call carries the status, and the reason is that.
      {"UNAVAILABLE", Verdict::kFailed,
       [](CallRecord& c, SequenceRecord& s) { c.status = "UNAVAILABLE", s.finish = ReplyFinish::kFailed; }},
      // Finished before its call broke off.
      {"", Verdict::kCompleted, [](CallRecord& c, SequenceRecord&) { c.status = "UNAVAILABLE"; }},
      {"INTERRUPTED", Verdict::kInterrupted,
       [](CallRecord& c, SequenceRecord& s) {
         c.status = "CANCELLED", c.cancelled_by_client = true, s.finishes = 0, s.finish = ReplyFinish::kNone;
       }},
  };
  for (const Case& c : cases) {
    CallRecord call = Call(0, 0, {Sequence({1, 2, 3})});
    c.spoil(call, call.sequences[0]);
    const Judgement judgement = Judge(call, call.sequences[0]);
    EXPECT_EQ(judgement.reason, c.reason);
    EXPECT_EQ(judgement.verdict, c.verdict) << c.reason;
  }
}

TEST(Measure, CountsFromTheMomentTheCallWasDue) {
  CallRecord call = Call(0, 100, {Sequence({150, 160, 190})});
  call.sent = kStart + milliseconds(140);  // a late client: its wait counts
  const Latencies latencies = Measure(call, call.sequences[0]);
  EXPECT_DOUBLE_EQ(latencies.ttft.value(), 50);
  EXPECT_DOUBLE_EQ(latencies.e2el, 90);
  EXPECT_DOUBLE_EQ(latencies.tpot.value(), 20);  // (90 - 50) / 2
  EXPECT_EQ(latencies.itl, (std::vector<double>{10, 30}));
}

TEST(Measure, OneTokenHasNoTimePerOutputToken) {
  const CallRecord call = Call(0, 0, {Sequence({30})});
  const Latencies latencies = Measure(call, call.sequences[0]);
  EXPECT_DOUBLE_EQ(latencies.ttft.value(), 30);
  EXPECT_DOUBLE_EQ(latencies.e2el, 30);
  EXPECT_FALSE(latencies.tpot);
  EXPECT_TRUE(latencies.itl.empty());
}

TEST(SumUp, MatchesFiguresComputedByHand) {
  CallRecord refused = Call(2, 400, {Sequence({}), Sequence({})});
  refused.status = "RESOURCE_EXHAUSTED";
  refused.message = "queue is full";
  refused.sent = kStart + milliseconds(407);
  for (SequenceRecord& sequence : refused.sequences) sequence.finishes = 0, sequence.finish = ReplyFinish::kNone;
  CallRecord broken = Call(3, 500, {Sequence({600}), Sequence({700, 2000})});
  broken.sequences[0].finishes = 0;
  broken.sequences[0].finish = ReplyFinish::kNone;
  broken.sequences[1].finishes = 2;
  const std::vector<CallRecord> calls{Call(0, 0, {Sequence({100, 200, 300})}), Call(1, 100, {Sequence({400, 500})}),
                                      refused, broken};

  const LoadFigures figures = SumUp(calls, kStart, {.ttft_ms = 200});
  EXPECT_EQ(figures.completed, 2u);
  EXPECT_EQ(figures.failed, 4u);
  EXPECT_EQ(figures.lost, 1u);
  EXPECT_EQ(figures.doubled, 1u);
  ASSERT_EQ(figures.failures.size(), 3u);
  EXPECT_EQ(figures.failures.at("RESOURCE_EXHAUSTED").count, 2u);
  EXPECT_EQ(figures.failures.at("RESOURCE_EXHAUSTED").message, "queue is full");
  EXPECT_EQ(figures.failures.at("LOST_FINISH").count, 1u);
  EXPECT_EQ(figures.failures.at("DOUBLED_FINISH").count, 1u);
  EXPECT_EQ(figures.total_input_tokens, 20u);
  EXPECT_EQ(figures.total_output_tokens, 5u);
  EXPECT_DOUBLE_EQ(figures.duration, 2);
  EXPECT_DOUBLE_EQ(figures.request_throughput, 1);
  EXPECT_DOUBLE_EQ(figures.request_goodput.value(), 0.5);  // the second one's first token took 300 ms
  EXPECT_DOUBLE_EQ(figures.output_throughput, 2.5);
  EXPECT_DOUBLE_EQ(figures.total_token_throughput, 12.5);
  EXPECT_DOUBLE_EQ(figures.max_send_delay_ms, 7);
  EXPECT_DOUBLE_EQ(figures.ttft_ms->mean, 200);  // 100, 300
  EXPECT_DOUBLE_EQ(figures.ttft_ms->p90, 280);   // 100 + 0.9 * 200
  EXPECT_DOUBLE_EQ(figures.tpot_ms->mean, 100);  // 100, 100
  EXPECT_DOUBLE_EQ(figures.itl_ms->std, 0);      // 100, 100, 100
  EXPECT_DOUBLE_EQ(figures.e2el_ms->median, (300 + 400) / 2.0);
}

TEST(SumUp, WithoutLimitsThereIsNoGoodput) {
  EXPECT_FALSE(SumUp(std::vector<CallRecord>{Call(0, 0, {Sequence({1})})}, kStart, {}).request_goodput);
}

TEST(SumUp, OfFailuresOnlyHasNoLatencies) {
  CallRecord call = Call(0, 0, {Sequence({})});
  call.sequences[0].finishes = 0;
  call.sequences[0].finish = ReplyFinish::kNone;
  const LoadFigures figures = SumUp(std::vector<CallRecord>{call}, kStart, {});
  EXPECT_FALSE(figures.ttft_ms);
  EXPECT_FALSE(figures.e2el_ms);
}

TEST(SumUp, TheOutputHashDependsOnTokensAndTheirOrder) {
  const auto hash = [](std::uint64_t first, std::uint64_t second) {
    CallRecord call = Call(0, 0, {Sequence({1}), Sequence({1})});
    call.sequences[0].token_hash = first;
    call.sequences[1].token_hash = second;
    return SumUp(std::vector<CallRecord>{call}, kStart, {}).output_hash;
  };
  EXPECT_EQ(hash(1, 2), hash(1, 2));
  EXPECT_NE(hash(1, 2), hash(2, 1));
  EXPECT_NE(hash(1, 2), hash(1, 2 + (std::uint64_t{1} << 40)));
}

TEST(ParseSlo, TakesEachLimitOnce) {
  const auto slo = ParseSlo(std::vector<std::string>{"ttft:200", "e2el:1500.5"});
  ASSERT_TRUE(slo.ok());
  EXPECT_EQ(slo->ttft_ms, 200);
  EXPECT_EQ(slo->e2el_ms, 1500.5);
  EXPECT_FALSE(slo->tpot_ms);
  EXPECT_TRUE(slo->any());
  EXPECT_FALSE(ParseSlo({})->any());
}

TEST(ParseSlo, NamesWhatItRefuses) {
  for (const char* item :
       {"ttft", "ttft:", "ttft:0", "ttft:-1", "ttft:x", "ttft:1x", "ttft:nan", "ttft:inf", "ttl:1", ""}) {
    const auto slo = ParseSlo(std::vector<std::string>{item});
    ASSERT_FALSE(slo.ok()) << item;
    EXPECT_THAT(slo.status().message(), HasSubstr(std::string("\"") + item + "\""));
  }
  EXPECT_FALSE(ParseSlo(std::vector<std::string>{"ttft:1", "ttft:2"}).ok());
}

}  // namespace
}  // namespace moe
