#include "bench/engine/engine_bench.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <map>
#include <utility>

#include "bench/engine/engine_run.h"
#include "bench/engine/local_engine.h"
#include "bench/random_stream.h"
#include "core/clock.h"

namespace moe {
namespace {

// Steps that run before anything is counted, where there is nothing to choose: the first ones fault memory in and wake
// the threads.
constexpr std::uint64_t kWarmupSteps = 4;
// A scheduler makes no smaller steps.
constexpr std::size_t kLeastStepTokens = 2;

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

// How the rows of a test get into steps.
struct Cut {
  int micro_batches = EngineBenchOptions::kEnginesChoice;
  std::size_t max_step_tokens = 0;
  bool traced = false;
};

// One test on one engine.
class Measurement {
 public:
  Measurement(const EngineTest& test, const Cut& cut, std::uint64_t seed, const BenchedEngine& engine,
              const WorkMeter& meter)
      : test_(test),
        cut_(cut),
        seed_(seed),
        setup_(engine.setup),
        router_(engine.router),
        recorder_(cut.traced ? engine.recorder : nullptr),
        meter_(meter) {}

  /// What comes before anything is counted: some steps, or, where the engine tries how many micro-batches are best,
  /// whole runs until one has no trial. Every test chooses for itself, whatever came before it.
  Status WarmUp() {
    const bool chooses = cut_.micro_batches == EngineBenchOptions::kEnginesChoice && setup_.micro_batches.measure;
    if (!chooses) return Run(kWarmupSteps).status();
    router_.engine().micro_batch_choice().DecideOnce();
    for (bool tried = true; tried;) {
      MOE_ASSIGN_OR_RETURN(const Repetition run, Run());
      tried = run.micro_batch_trials > 0;
    }
    return Status::Ok();
  }

  /// One run, stopped after `max_steps`.
  Result<Repetition> Run(std::uint64_t max_steps = std::numeric_limits<std::uint64_t>::max()) {
    if (cut_.micro_batches != EngineBenchOptions::kEnginesChoice)
      router_.engine().micro_batch_choice().Fix(cut_.micro_batches);
    sources_.clear();
    std::vector<std::unique_ptr<Sequence>> sequences;
    for (std::size_t i = 0; i < test_.batch; ++i) sequences.push_back(NextSequence(i));
    Repetition run;
    double observing = 0;
    router_.engine().Record(recorder_);
    const TimePoint begin = Clock::now();
    MOE_RETURN_IF_ERROR(RunSequences(router_, {.max_sequences = test_.batch, .max_step_tokens = cut_.max_step_tokens},
                                     std::move(sequences),
                                     [&](std::span<const Chunk> chunks, const StepReport& report) {
                                       const TimePoint computed = Clock::now();
                                       run.work += meter_.Of(ShapeOf(chunks, report.expert_tokens));
                                       ++run.micro_batch_steps[static_cast<std::size_t>(report.micro_batches) - 1];
                                       if (report.micro_batch_trial) ++run.micro_batch_trials;
                                       if (report.micro_batches == 1) run.phases.Add(report);
                                       Replace(chunks);
                                       observing += Seconds(Clock::now() - computed);
                                       return run.work.steps < max_steps;
                                     }));
    run.seconds = Seconds(Clock::now() - begin) - observing;
    router_.engine().Record(nullptr);
    run.tokens_per_s = static_cast<double>(test_.tokens * test_.batch) / run.seconds;
    return run;
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
  const Cut cut_;
  const std::uint64_t seed_;
  const RankSetup& setup_;
  RouterEngine& router_;
  TraceRecorder* const recorder_;
  const WorkMeter& meter_;
  std::vector<TokenSource> sources_;  // by sequence
};

// One test in every number of micro-batches asked for, in turns.
class TestRun {
 public:
  TestRun(const EngineTest& test, const EngineBenchOptions& options, const BenchedEngine& engine,
          const WorkMeter& meter)
      : test_(test), options_(options), engine_(engine), meter_(meter), sparse_layers_(SparseLayers(engine.setup)) {
    for (const int asked : options.micro_batches) {
      for (const bool traced : {false, true}) {
        if (traced && engine.recorder == nullptr) continue;
        measured_.push_back(Measure(
            test, {.micro_batches = asked, .max_step_tokens = engine.setup.exchange.max_tokens, .traced = traced}));
        results_.push_back({.test = test, .micro_batches_asked = asked, .traced = traced});
      }
    }
    if (!Predicts()) return;
    AddPart(1);
    for (const int asked : options.micro_batches) AddPart(MicroBatchesOf(StepRows(), asked));
  }

  Status WarmUp() {
    for (Measurement& measurement : measured_) MOE_RETURN_IF_ERROR(measurement.WarmUp());
    for (auto& [count, part] : parts_) MOE_RETURN_IF_ERROR(part.measurement.WarmUp());
    return Status::Ok();
  }

  /// What the machine did right before the first repetition, where somebody measures it.
  void Begin(const MachineRates& machine) { machine_ = machine; }

  /// The `i`-th time everything: another number of micro-batches is the first one each time.
  Status Repeat(std::size_t i) {
    for (std::size_t j = 0; j < measured_.size(); ++j) {
      const std::size_t turn = (i + j) % measured_.size();
      MOE_RETURN_IF_ERROR(RunOne(measured_[turn], results_[turn]));
    }
    for (auto& [count, part] : parts_) {
      MOE_ASSIGN_OR_RETURN(const Repetition run, part.measurement.Run());
      part.phases += run.phases;
      part.seconds += run.seconds;
    }
    if (!parts_.empty() && engine_.probe != nullptr) machine_ = engine_.probe->Measure();
    return Status::Ok();
  }

  std::vector<EngineTestResult> TakeResults() {
    for (std::size_t i = 1; i < results_.size(); ++i)
      if (results_[i].traced) results_[i].trace_cost = TraceCost(results_[i], results_[i - 1]);
    for (EngineTestResult& result : results_) {
      const auto part = parts_.find(MicroBatchesOf(StepRows(), result.micro_batches_asked));
      if (part == parts_.end()) continue;
      const Part& whole = parts_.at(1);
      result.prediction =
          PredictOverlap(part->second.phases, whole.phases, whole.seconds / static_cast<double>(whole.phases.steps()),
                         part->first, sparse_layers_);
    }
    return std::move(results_);
  }

 private:
  /// Uncut steps as large as one of so many micro-batches of the test's steps.
  struct Part {
    Measurement measurement;
    StepPhases phases;
    double seconds = 0;
  };

  static std::size_t SparseLayers(const RankSetup& setup) { return setup.config.sparse_layers().size(); }
  Measurement Measure(const EngineTest& test, const Cut& cut) const {
    return Measurement(test, cut, options_.seed, engine_, meter_);
  }

  // An encoder is never cut, and has layers of its own.
  bool Predicts() const { return options_.predicts() && sparse_layers_ > 0 && !engine_.setup.config.has_encoder(); }

  bool prefill() const { return test_.kind == EngineTest::Kind::kPrefill; }
  /// Of a full step.
  std::size_t StepRows() const {
    return prefill() ? std::min(engine_.setup.exchange.max_tokens, test_.tokens * test_.batch) : test_.batch;
  }

  void AddPart(int count) {
    const std::size_t rows = RowsOfPart(StepRows(), count);
    EngineTest test = test_;
    Cut cut{.micro_batches = 1, .max_step_tokens = engine_.setup.exchange.max_tokens};
    // A decode's part is fewer sequences, a prefill's fewer rows of them at a time.
    if (!prefill()) test.batch = rows;
    if (prefill() && count > 1) cut.max_step_tokens = rows;
    if (cut.max_step_tokens < kLeastStepTokens) return;
    parts_.try_emplace(count, Part{.measurement = Measure(test, cut)});
  }

  Status RunOne(Measurement& measurement, EngineTestResult& result) {
    const ThreadPool::Usage before = engine_.router.pool().usage();
    MOE_ASSIGN_OR_RETURN(Repetition repetition, measurement.Run());
    const ThreadPool::Usage after = engine_.router.pool().usage();
    result.usage.loops += after.loops - before.loops;
    result.usage.loop_time += after.loop_time - before.loop_time;
    result.usage.busy += after.busy - before.busy;
    if (machine_) {
      const MachineRates now = engine_.probe->Measure();
      repetition.machine = Mean(*machine_, now);
      machine_ = now;
    }
    result.repetitions.push_back(std::move(repetition));
    return Status::Ok();
  }

  const EngineTest test_;
  const EngineBenchOptions& options_;
  const BenchedEngine& engine_;
  const WorkMeter& meter_;
  const std::size_t sparse_layers_;
  std::vector<Measurement> measured_;      // by number asked for
  std::vector<EngineTestResult> results_;  // the same
  std::map<int, Part> parts_;              // by number of micro-batches; empty when nothing is predicted
  std::optional<MachineRates> machine_;    // after the last run
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

Status CheckMicroBatches(const std::vector<int>& list) {
  if (list.empty()) return InvalidArgument("--micro-batches is empty, at least one number is needed");
  for (std::size_t i = 0; i < list.size(); ++i) {
    if (list[i] == EngineBenchOptions::kEnginesChoice && list.size() > 1)
      return InvalidArgument("--micro-batches auto stands alone: it takes the numbers in turn by itself");
    if (list[i] < 0 || list[i] > kMaxMicroBatches)
      return InvalidArgument("--micro-batches ", list[i], ": a step is cut into 1 to ", kMaxMicroBatches);
    if (std::find(list.begin(), list.begin() + static_cast<std::ptrdiff_t>(i), list[i]) !=
        list.begin() + static_cast<std::ptrdiff_t>(i))
      return InvalidArgument("--micro-batches has ", list[i], " twice");
  }
  return Status::Ok();
}

Status CheckEngineBench(const EngineBenchOptions& options, const RankSetup& setup) {
  if (TestsOf(options).empty())
    return InvalidArgument("-p, -n and -b leave nothing to measure: a length and a batch size above 0 are needed");
  if (options.repetitions == 0) return InvalidArgument("-r is 0, at least 1 repetition is needed");
  MOE_RETURN_IF_ERROR(CheckMicroBatches(options.micro_batches));
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

Result<std::vector<EngineTestResult>> RunEngineBench(const EngineBenchOptions& options, const BenchedEngine& engine,
                                                     const std::function<void(const EngineTest&)>& starting) {
  const WorkMeter meter(engine.setup.config, engine.setup.weight_types, engine.setup.kv_type);
  std::vector<EngineTestResult> results;
  for (const EngineTest& test : TestsOf(options)) {
    starting(test);
    TestRun run(test, options, engine, meter);
    MOE_RETURN_IF_ERROR(run.WarmUp());
    if (engine.probe != nullptr) run.Begin(engine.probe->Measure());
    for (std::size_t i = 0; i < options.repetitions; ++i) MOE_RETURN_IF_ERROR(run.Repeat(i));
    std::ranges::move(run.TakeResults(), std::back_inserter(results));
  }
  return results;
}

}  // namespace moe
