#include "router/router.h"

#include <algorithm>
#include <utility>

namespace moe {
namespace {

// How often the gauges over the sliding window are brought up to date: several times a scrape, seldom against a step.
constexpr auto kWindowInterval = std::chrono::milliseconds(250);

Migrator::Options ObservedBy(RouterMetrics& metrics, Migrator::Options options) {
  options.on_change = [&metrics, tell = std::move(options.on_change)](const MigrationProgress& progress) {
    metrics.OnMigration(progress);
    if (tell) tell(progress);
  };
  return options;
}

}  // namespace

Router::Router(Options options, Engine& engine, KvCache& cache, RouterMetrics& metrics, StepRecovery* recovery)
    : options_(std::move(options)),
      engine_(engine),
      cache_(cache),
      metrics_(metrics),
      recovery_(recovery),
      scheduler_(options_.limits, cache),
      health_(engine.config().sparse_layers().size(), static_cast<std::size_t>(engine.config().num_experts()),
              engine.config().experts_per_token()),
      cost_(options_.cost_steps),
      moves_(options_.cost_steps),
      migrator_(ObservedBy(metrics, options_.migration), engine.config(), engine.exchange(), recovery) {}

Status Router::Submit(std::vector<std::unique_ptr<Sequence>> batch) {
  const std::size_t count = batch.size();
  std::size_t sequences = 0;  // scores are no requests
  for (const auto& sequence : batch)
    if (sequence->request.kind == SequenceKind::kGenerate) ++sequences;
  const auto refuse = [&](Status status) {
    metrics_.OnRejected(sequences);
    return status;
  };
  std::size_t prompt_tokens = 0;
  for (const auto& sequence : batch) {
    prompt_tokens += sequence->request.sent_tokens();
    if (!scheduler_.Fits(sequence->request))
      return refuse(ResourceExhausted("sequences[", sequence->request.index, "] needs ",
                                      std::max(sequence->request.kv_tokens(), sequence->request.source.size()),
                                      " positions of the KV cache, which has ", cache_.capacity_tokens(),
                                      " (--kv-tokens)"));
  }
  {
    const std::lock_guard lock(mutex_);
    if (draining_ || ended_) return refuse(Unavailable("the server is draining and takes no new requests"));
    if (waiting_ + count > options_.max_queued)
      return refuse(ResourceExhausted("the queue holds ", waiting_, " of at most ", options_.max_queued,
                                      " sequences (--max-queued) and has no room for ", count, " more"));
    waiting_ += count;
    for (auto& sequence : batch) inbox_.push_back(std::move(sequence));
  }
  metrics_.OnPromptTokens(prompt_tokens);
  changed_.notify_one();
  return Status::Ok();
}

void Router::Drain() {
  {
    const std::lock_guard lock(mutex_);
    if (draining_) return;
    draining_ = true;
    drain_deadline_ = After(options_.drain_timeout);
  }
  changed_.notify_one();
}

void Router::StopNow() {
  {
    const std::lock_guard lock(mutex_);
    draining_ = true;
    stop_now_ = true;
  }
  changed_.notify_one();
}

bool Router::draining() const {
  const std::lock_guard lock(mutex_);
  return draining_;
}

bool Router::OnEngineThread(std::function<void()> inspect) {
  {
    const std::lock_guard lock(mutex_);
    if (ended_) return false;
    inspections_.push_back(std::move(inspect));
  }
  changed_.notify_one();
  return true;
}

Result<std::uint64_t> Router::BeginMigration(Placement placement, std::optional<double> expected_gain) {
  {
    const std::lock_guard lock(mutex_);
    if (draining_ || ended_) return Unavailable("the server is draining and moves no experts");
  }
  Result<std::uint64_t> generation = migrator_.Begin(std::move(placement), expected_gain);
  if (generation.ok()) {
    // So that an engine thread that has just seen none under way waits before this tells it.
    { const std::lock_guard lock(mutex_); }
    changed_.notify_one();
  }
  return generation;
}

Status Router::Run() {
  while (TakeIn()) {
    Admit();
    RetireEnded();
    Status status = Migrate();
    if (status.ok() && scheduler_.running() > 0) status = Step();
    if (!status.ok()) {
      metrics_.OnWorkersDown();
      {
        const std::lock_guard lock(mutex_);
        draining_ = true;
      }
      FailAll(status);
      break;
    }
  }
  FailAll(Unavailable("the server stopped before the sequence was finished"));
  if (failed_ == 0) return Status::Ok();
  return failure_.WithContext(Cat(failed_, " sequence(s) did not finish"));
}

void Router::Admit() {
  bool admitted = false;
  scheduler_.Admit([&](Sequence& sequence) {
    sequence.admitted = Clock::now();
    admitted = true;
  });
  if (!admitted) return;
  // What runs has left the queue, and the next call should find its room.
  const std::lock_guard lock(mutex_);
  waiting_ = scheduler_.waiting() + inbox_.size();
}

Status Router::Migrate() {
  const Status status = migrator_.Advance(Clock::now());
  if (status.ok() || recovery_ == nullptr) return status;
  return recovery_->Recover(status);
}

bool Router::TakeIn() {
  std::vector<std::function<void()>> inspections;
  bool go_on = true;
  {
    std::unique_lock lock(mutex_);
    waiting_ = scheduler_.waiting() + inbox_.size();
    const auto idle = [&] { return scheduler_.running() == 0 && scheduler_.waiting() == 0; };
    const auto called = [&] { return !idle() || !inbox_.empty() || !inspections_.empty() || draining_; };
    const TimePoint due = migrator_.due();
    if (due == kNoDeadline) {
      changed_.wait(lock, [&] { return called() || migrator_.under_way(); });
    } else {
      changed_.wait_until(lock, due, called);
    }
    for (auto& sequence : inbox_) scheduler_.Enqueue(std::move(sequence));
    inbox_.clear();
    inspections.swap(inspections_);
    const bool late = draining_ && Clock::now() >= drain_deadline_;
    go_on = !stop_now_ && !late && !(draining_ && idle());
  }
  for (const auto& inspect : inspections) inspect();
  return go_on;
}

Result<bool> Router::RunStep(std::span<const Chunk> chunks) {
  for (int retries = 0;; ++retries) {
    Status status = engine_.Step(chunks);
    if (status.ok()) return true;
    metrics_.OnStepFailed();
    if (recovery_ == nullptr) return status;
    const Status recovered = recovery_->Recover(status);
    if (recovered.ok() && retries < recovery_->max_retries()) {
      metrics_.OnStepRetried();
      continue;
    }
    // What waits may have better luck.
    const Status why = recovered.ok() ? std::move(status) : recovered;
    for (const Chunk& chunk : chunks) chunk.sequence->failure = Unavailable(why.message());
    return false;
  }
}

Status Router::Step() {
  if (recovery_ != nullptr) recovery_->BeforeStep();
  const std::span<const Chunk> chunks = scheduler_.Schedule();
  MOE_ASSIGN_OR_RETURN(const bool ran, RunStep(chunks));
  if (!ran) {
    RetireEnded();
    return Status::Ok();
  }
  // Metrics first: whoever has got a token finds it counted.
  const TimePoint now = Clock::now();
  for (const Chunk& chunk : chunks) NoteToken(*chunk.sequence, now);
  metrics_.OnStep(engine_.report());
  NoteCost(engine_.report());
  NoteMoves(engine_.report());
  for (const Chunk& chunk : chunks) Publish(*chunk.sequence);
  RetireEnded();
  // Now and then, and before the router falls idle: then the figures stand for as long as nobody calls.
  if (now - window_published_ >= kWindowInterval || scheduler_.running() == 0) {
    window_published_ = now;
    ShowWindow();
  }
  return Status::Ok();
}

void Router::ShowWindow() {
  const std::span<const RoutingHealth::Change> changes = health_.Update(engine_.load_window());
  metrics_.OnWindow(engine_.load_window(), health_);
  if (!options_.on_health) return;
  for (const RoutingHealth::Change& change : changes) options_.on_health(change);
}

void Router::NoteCost(const StepReport& report) {
  for (const WorkerStep& worker : report.workers)
    if (worker.rows > 0) cost_.AddWorker(worker.rows, worker.busy_seconds);
  cost_.EndStep(report.seconds, report.exchange.experts);
}

void Router::NoteMoves(const StepReport& report) {
  const ExpertExchange* exchange = engine_.exchange();
  if (exchange == nullptr) return;
  const bool switched = exchange->placement_generation() != moves_.generation();
  const std::optional<double> slowdown = moves_.slowdown();
  const bool measured = moves_.EndStep({.generation = exchange->placement_generation(),
                                        .workers = exchange->bindings(),
                                        .migrating = migrator_.under_way(),
                                        .rows = report.tokens,
                                        .seconds = report.seconds});
  if (switched)
    if (const auto gain = migrator_.expected_gain(moves_.generation())) moves_.Expect(*gain);
  if (moves_.slowdown() != slowdown) metrics_.OnSlowdown(*moves_.slowdown());
  if (!measured) return;
  metrics_.OnMoveMeasured(*moves_.outcome());
  if (options_.on_move_measured) options_.on_move_measured(*moves_.outcome());
}

StepCost Router::cost() const {
  StepCost cost = cost_.Measured();
  cost.migration_slowdown = moves_.slowdown();
  return cost;
}

void Router::NoteToken(Sequence& sequence, TimePoint now) {
  const std::size_t generated = sequence.generated();
  if (generated == sequence.output->tokens()) return;
  if (generated == 1) {
    sequence.first_token = now;
  } else {
    metrics_.OnInterToken(Seconds(now - sequence.last_token));
  }
  sequence.last_token = now;
}

void Router::Publish(Sequence& sequence) {
  SequenceOutput& output = *sequence.output;
  if (sequence.request.return_routing) output.PublishRouted(sequence.computed);
  if (sequence.generated() == output.tokens()) return;
  output.PublishTokens(sequence.generated());
  sequence.listener->OnOutput();
}

void Router::RetireEnded() {
  scheduler_.Retire([this](Sequence& sequence) {
    const SequenceRequest& request = sequence.request;
    if (!sequence.failure.ok() && !sequence.output->cancelled()) {
      // A failure long before a drain is no failure of it.
      if (draining() && failed_++ == 0) failure_ = sequence.failure;
      End(sequence, FinishKind::kFailed, sequence.failure);
      return true;
    }
    if (request.kind == SequenceKind::kScore) {
      if (sequence.computed == request.prompt.size()) {
        End(sequence, FinishKind::kStop, Status::Ok());
        return true;
      }
    } else if (sequence.generated() > 0) {
      if (std::binary_search(request.stop_token_ids.begin(), request.stop_token_ids.end(), sequence.tokens.back())) {
        End(sequence, FinishKind::kStop, Status::Ok());
        return true;
      }
      if (sequence.generated() == request.max_new_tokens) {
        End(sequence, FinishKind::kLength, Status::Ok());
        return true;
      }
    }
    if (!sequence.output->cancelled()) return false;
    End(sequence, FinishKind::kCancelled, Status::Ok());
    return true;
  });
  metrics_.OnQueue(queue_state());
}

void Router::FailAll(const Status& failure) {
  std::vector<std::function<void()>> inspections;
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
    for (auto& sequence : inbox_) scheduler_.Enqueue(std::move(sequence));
    inbox_.clear();
    inspections.swap(inspections_);
  }
  for (const auto& inspect : inspections) inspect();
  // A worker's silence is no deadline of the client's, whose code that is.
  const Status told = failure.code() == StatusCode::kDeadlineExceeded ? Unavailable(failure.message()) : failure;
  scheduler_.Retire([&](Sequence& sequence) {
    if (sequence.output->cancelled()) {
      End(sequence, FinishKind::kCancelled, Status::Ok());
    } else {
      if (failed_++ == 0) failure_ = failure;
      End(sequence, FinishKind::kFailed, told);
    }
    return true;
  });
  metrics_.OnQueue(queue_state());
}

void Router::End(Sequence& sequence, FinishKind finish, Status status) {
  const TimePoint now = Clock::now();
  SequenceResult& result = sequence.result;
  result.finish = finish;
  result.status = std::move(status);
  const bool admitted = sequence.admitted != TimePoint{};
  result.queue_seconds = Seconds((admitted ? sequence.admitted : now) - sequence.arrived);
  result.time_to_first_token_seconds = sequence.generated() > 0 ? Seconds(sequence.first_token - sequence.arrived) : 0;
  result.total_seconds = Seconds(now - sequence.arrived);
  metrics_.OnFinish(result, sequence.request.kind, sequence.generated());
  sequence.output->Finish(std::move(result));
  sequence.listener->OnOutput();
}

QueueState Router::queue_state() const {
  return {.running = scheduler_.running(), .waiting = scheduler_.waiting(), .kv_tokens_used = cache_.used_tokens()};
}

}  // namespace moe
