#include "bench/engine/engine_bench.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "bench/engine/engine_run.h"
#include "bench/engine/local_engine.h"
#include "bench/random_stream.h"
#include "bench/statistics.h"
#include "core/clock.h"

namespace moe {
namespace {

// Steps that run before anything is counted: the first ones fault memory in and wake the threads.
constexpr std::uint64_t kWarmupSteps = 4;

std::size_t Largest(const std::vector<std::size_t>& values) {
  return values.empty() ? 0 : *std::max_element(values.begin(), values.end());
}

// Positions of the KV cache that a sequence of the longest test takes. A decode begins with a prompt of one token.
std::size_t Positions(const EngineBenchOptions& options) {
  return std::max(Largest(options.prompt_lengths), Largest(options.generated));
}

// Tokens of one sequence, different in every one: equal ones would all be routed to the same experts.
class TokenSource {
 public:
  TokenSource(std::uint64_t seed, std::size_t sequence, int vocab)
      : stream_({seed, sequence}), vocab_(static_cast<std::uint32_t>(vocab)) {}
  std::uint32_t Next() { return stream_.Below(vocab_); }

 private:
  RandomStream stream_;
  std::uint32_t vocab_;
};

// One test on one engine.
class Measurement {
 public:
  Measurement(const EngineTest& test, std::uint64_t seed, const RankSetup& setup, RouterEngine& router,
              const WorkMeter& meter)
      : test_(test), seed_(seed), setup_(setup), router_(router), meter_(meter) {}

  /// Seconds of one run, stopped after `max_steps`; what its steps did is added to `work`.
  Result<double> Run(std::uint64_t max_steps, Work& work) {
    sources_.clear();
    std::vector<std::unique_ptr<Sequence>> sequences;
    for (std::size_t i = 0; i < test_.batch; ++i) sequences.push_back(NextSequence(i));
    double observing = 0;
    std::uint64_t steps = 0;
    const TimePoint begin = Clock::now();
    const Status status =
        RunSequences(router_, {.max_sequences = test_.batch, .max_step_tokens = setup_.exchange.max_tokens},
                     std::move(sequences), [&](std::span<const Chunk> chunks, const StepReport& report) {
                       const TimePoint computed = Clock::now();
                       work += meter_.Of(ShapeOf(chunks, report.expert_tokens));
                       Replace(chunks);
                       observing += Seconds(Clock::now() - computed);
                       return ++steps < max_steps;
                     });
    if (!status.ok()) return status;
    return Seconds(Clock::now() - begin) - observing;
  }

 private:
  std::unique_ptr<Sequence> NextSequence(std::size_t index) {
    TokenSource& source = sources_.emplace_back(seed_, index, setup_.config.vocab_size);
    const bool prefill = test_.kind == EngineTest::Kind::kPrefill;
    SequenceRequest request{.index = static_cast<std::uint32_t>(index),
                            .max_new_tokens = static_cast<std::uint32_t>(prefill ? 1 : test_.tokens)};
    const bool encoder = setup_.config.has_encoder();
    std::vector<std::uint32_t>& tokens = encoder ? request.source : request.prompt;
    for (std::size_t i = 0; i < (prefill ? test_.tokens : 1); ++i) tokens.push_back(source.Next());
    if (encoder) request.prompt = {*setup_.config.decoder_start_token};
    return MakeSequence(std::move(request), setup_.config);
  }

  // The model's own choice would soon be the same for all sequences, or go round in circles.
  void Replace(std::span<const Chunk> chunks) {
    for (const Chunk& chunk : chunks)
      if (chunk.sequence->generated() > 0)
        chunk.sequence->tokens.back() = sources_[chunk.sequence->request.index].Next();
  }

  const EngineTest test_;
  const std::uint64_t seed_;
  const RankSetup& setup_;
  RouterEngine& router_;
  const WorkMeter& meter_;
  std::vector<TokenSource> sources_;  // by sequence
};

}  // namespace

std::string EngineTest::name() const { return Cat(kind == Kind::kPrefill ? "pp" : "tg", tokens); }

std::vector<EngineTest> TestsOf(const EngineBenchOptions& options) {
  std::vector<EngineTest> tests;
  const auto add = [&](EngineTest::Kind kind, const std::vector<std::size_t>& lengths) {
    for (const std::size_t tokens : lengths)
      for (const std::size_t batch : options.batches)
        if (tokens > 0) tests.push_back({.kind = kind, .tokens = tokens, .batch = batch});
  };
  add(EngineTest::Kind::kPrefill, options.prompt_lengths);
  add(EngineTest::Kind::kDecode, options.generated);
  return tests;
}

Status CheckEngineBench(const EngineBenchOptions& options, const RankSetup& setup) {
  if (TestsOf(options).empty())
    return InvalidArgument("-p, -n and -b leave nothing to measure: a length and a batch size above 0 are needed");
  if (options.repetitions == 0) return InvalidArgument("-r is 0, at least 1 repetition is needed");
  const std::size_t step = setup.exchange.max_tokens;
  for (const std::size_t batch : options.batches)
    if (batch == 0 || batch > step)
      return InvalidArgument("-b ", batch, ": a batch has 1 to ", step, " sequences (--max-step-tokens)");
  const auto context = static_cast<std::size_t>(setup.config.context_length);
  for (const auto& [flag, lengths] : {std::pair{"-p ", &options.prompt_lengths}, std::pair{"-n ", &options.generated}})
    for (const std::size_t length : *lengths)
      if (context > 0 && length > context)
        return InvalidArgument(flag, length, " is more than the model's context of ", context, " tokens");
  for (const std::size_t length : options.prompt_lengths)
    if (setup.config.has_encoder() && length > step)
      return InvalidArgument("-p ", length, ": an encoder takes its tokens in one step, of at most ", step,
                             " (--max-step-tokens)");
  return Status::Ok();
}

Result<KvPlan> PlanCache(const EngineBenchOptions& options, const RankSetup& setup) {
  return PlanCache(setup, Largest(options.batches), Positions(options));
}

double EngineTestResult::mean_tokens_per_s() const { return Summarize(tokens_per_s)->mean; }
double EngineTestResult::stddev_tokens_per_s() const { return Summarize(tokens_per_s)->std; }

Result<std::vector<EngineTestResult>> RunEngineBench(const EngineBenchOptions& options, const RankSetup& setup,
                                                     RouterEngine& router,
                                                     const std::function<void(const EngineTest&)>& starting) {
  const WorkMeter meter(setup.config, setup.weight_types, setup.kv_type);
  std::vector<EngineTestResult> results;
  for (const EngineTest& test : TestsOf(options)) {
    starting(test);
    Measurement measurement(test, options.seed, setup, router, meter);
    Work warm_up;
    const Result<double> warm = measurement.Run(kWarmupSteps, warm_up);
    if (!warm.ok()) return warm.status();
    EngineTestResult& result = results.emplace_back(EngineTestResult{.test = test});
    const ThreadPool::Usage before = router.pool().usage();
    for (std::size_t i = 0; i < options.repetitions; ++i) {
      MOE_ASSIGN_OR_RETURN(const double seconds,
                           measurement.Run(std::numeric_limits<std::uint64_t>::max(), result.work));
      result.tokens_per_s.push_back(static_cast<double>(test.tokens * test.batch) / seconds);
      result.seconds += seconds;
    }
    const ThreadPool::Usage after = router.pool().usage();
    result.usage = {.loops = after.loops - before.loops,
                    .loop_time = after.loop_time - before.loop_time,
                    .busy = after.busy - before.busy};
  }
  return results;
}

}  // namespace moe
