#include "router/expert_exchange.h"

#include <algorithm>

#include "core/check.h"
#include "core/parallel.h"

namespace moe {
namespace {

DispatchPlan::Shape PlanShape(const ExpertExchange::Options& options, int workers) {
  return {.max_tokens = options.max_tokens,
          .experts_per_token = options.experts_per_token,
          .num_experts = options.num_experts,
          .workers = workers};
}

}  // namespace

TransportLimits ExpertExchange::Limits(const Options& options) {
  // All pairs of a step may go to one worker, and all of its tokens' rows.
  const DispatchShape largest{.rows = static_cast<std::uint32_t>(options.max_tokens),
                              .pairs = static_cast<std::uint32_t>(options.max_tokens * options.experts_per_token),
                              .hidden = static_cast<std::uint32_t>(options.hidden),
                              .type = options.type};
  return {.max_request_bytes = std::max(DispatchBytes(largest), kMaxControlBytes),
          .max_reply_bytes = std::max(DispatchReplyBytes(largest), kMaxControlBytes),
          // Micro-batches, and what is asked beside them.
          .max_exchanges = static_cast<int>(options.max_micro_batches) + 1};
}

ExpertExchange::ExpertExchange(Options options, Transport& transport, Placement placement, const Kernels& kernels,
                               ThreadPool& pool, ExchangeObserver* observer)
    : options_(options),
      transport_(&transport),
      attached_(AllWorkers(transport.num_workers())),
      placement_(std::move(placement)),
      replicas_(placement_),
      kernels_(kernels),
      pool_(pool),
      observer_(observer),
      plan_(PlanShape(options, transport.num_workers())),
      flights_(options.max_micro_batches),
      rows_(static_cast<std::size_t>(pool.threads()) * 2 * options.hidden),
      workers_(static_cast<std::size_t>(transport.num_workers())) {
  for (int w = 0; w < transport.num_workers(); ++w) names_.push_back(Cat("rank ", transport.rank(WorkerId(w))));
  for (Flight& flight : flights_) {
    flight.exchange = transport.MakeExchange();
    flight.request_bytes.resize(workers_.size());
    flight.shapes.resize(workers_.size());
    flight.replies.resize(workers_.size());
  }
  aside_ = transport.MakeExchange();
}

ExpertExchange::~ExpertExchange() {
  if (aside_under_way_) (void)aside_->Wait(After(options_.timeout));  // the transport has told its failure
}

void ExpertExchange::Unbind() {
  for (Flight& flight : flights_) {
    flight.under_way = false;
    flight.exchange.reset();
  }
  aside_under_way_ = false;
  aside_.reset();
  transport_ = nullptr;
  ++bindings_;
}

void ExpertExchange::Rebind(Transport* transport, const WorkerMask& workers) {
  Unbind();
  attached_ = workers;
  replicas_ = ReplicaTable(placement_, workers);
  transport_ = transport;
  if (transport == nullptr) return;
  MOE_CHECK(static_cast<std::size_t>(transport->num_workers()) == workers_.size());
  for (Flight& flight : flights_) flight.exchange = transport->MakeExchange();
  aside_ = transport->MakeExchange();
}

void ExpertExchange::SwitchTo(Placement placement) {
  placement_ = std::move(placement);
  replicas_ = ReplicaTable(placement_, attached_);
}

Status ExpertExchange::StartAside(std::span<const std::size_t> request_bytes) {
  MOE_CHECK(!aside_under_way_, "one question at a time");
  if (transport_ == nullptr) return Unavailable("no worker is there");
  aside_bytes_.assign(request_bytes.begin(), request_bytes.end());
  aside_sent_ = Clock::now();
  if (Status status = aside_->Start(request_bytes); !status.ok()) {
    Blame(*aside_, aside_bytes_, status);
    return status;
  }
  aside_under_way_ = true;
  return Status::Ok();
}

Result<bool> ExpertExchange::PollAside() {
  MOE_CHECK(aside_under_way_);
  Result<bool> done = aside_->Poll();
  // Workers answer in order, so its time begins when the exchange before it has been answered.
  if (done.ok() && !*done && Clock::now() >= std::max(aside_sent_, received_) + options_.timeout) {
    constexpr std::chrono::milliseconds kLastLook{100};  // what has come during a long step
    const Status status = aside_->Wait(After(kLastLook));
    done = status.ok() ? Result<bool>(true) : Result<bool>(status);
  }
  if (!done.ok()) Blame(*aside_, aside_bytes_, done.status());
  if (!done.ok() || *done) aside_under_way_ = false;
  return done;
}

Status ExpertExchange::WhyUnserved(std::size_t sparse_index, std::size_t expert) const {
  const LayerPlacement& layer = placement_.layers[sparse_index];
  std::string hosts;
  for (std::size_t w = 0; w < layer.slots.size(); ++w) {
    if (std::ranges::find(layer.slots[w], static_cast<int>(expert)) == layer.slots[w].end()) continue;
    hosts += Cat(hosts.empty() ? "" : " and ", names_[w]);
  }
  return Unavailable("layer ", layer.layer, " needs expert ", expert, ", which only ", hosts, " could compute: lost");
}

void ExpertExchange::BeginStep() {
  times_ = {};
  std::fill(workers_.begin(), workers_.end(), WorkerStep{});
}

Status ExpertExchange::Start(const LayerInput& input) {
  const TimePoint begin = Clock::now();
  Flight& flight = flights_[input.micro_batch];
  MOE_CHECK(!flight.under_way, "a micro-batch is in flight once at a time");
  flight.input = input;
  plan_.Build(replicas_, {.sparse_index = input.sparse_index,
                          .first_token = input.first_token,
                          .ids = input.ids,
                          .weights = input.weights,
                          .left_out = input.left_out});
  Send(flight);
  flight.sent = Clock::now();
  times_.dispatch += Seconds(flight.sent - begin);
  flight.asked = std::ranges::any_of(flight.request_bytes, [](std::size_t bytes) { return bytes > 0; });
  if (flight.asked) {
    if (Status status = flight.exchange->Start(flight.request_bytes); !status.ok()) {
      Blame(*flight.exchange, flight.request_bytes, status);
      return status;
    }
  }
  flight.under_way = true;
  return Status::Ok();
}

Status ExpertExchange::Finish(const LayerOutput& output) {
  Flight& flight = flights_[output.micro_batch];
  MOE_CHECK(flight.under_way, "Finish follows Start");
  flight.under_way = false;
  Status status = Receive(flight, output);
  if (!status.ok()) EndOthers();
  return status;
}

Status ExpertExchange::Receive(Flight& flight, const LayerOutput& output) {
  const TimePoint begin = Clock::now();
  // Workers answer in order, so a request's time begins when the one before it has been answered.
  if (flight.asked) {
    if (Status status = flight.exchange->Wait(std::max(flight.sent, received_) + options_.timeout); !status.ok()) {
      Blame(*flight.exchange, flight.request_bytes, status);
      return status;
    }
  }
  received_ = Clock::now();
  const double wait = Seconds(received_ - begin);
  MOE_ASSIGN_OR_RETURN(const double longest, ReadReplies(flight));
  times_.experts += std::min(longest, wait);
  Combine(flight, output);
  times_.wait += wait;
  times_.combine += Seconds(Clock::now() - received_);
  return Status::Ok();
}

// After one worker's failure the transport may be sound. It stays so only if no exchange is given up in flight.
void ExpertExchange::EndOthers() {
  const Deadline deadline = After(options_.timeout);
  for (Flight& flight : flights_) {
    if (!flight.under_way) continue;
    flight.under_way = false;
    if (flight.asked && !flight.exchange->Wait(deadline).ok())
      return;  // as good as told: the transport's failure is for good
  }
  if (aside_under_way_ && aside_->Wait(deadline).ok()) aside_under_way_ = false;
}

void ExpertExchange::Blame(const Exchange& exchange, std::span<const std::size_t> request_bytes,
                           const Status& failure) {
  blame_ = {.workers = NoWorkers(static_cast<int>(workers_.size())),
            .certain = failure.code() == StatusCode::kDeadlineExceeded};
  for (std::size_t w = 0; w < workers_.size(); ++w) {
    const bool answered = exchange.completed_at(WorkerId(static_cast<int>(w))) != TimePoint();
    blame_.workers[w] = request_bytes[w] > 0 && !answered ? 1 : 0;
  }
}

DispatchShape ExpertExchange::ShapeFor(std::uint32_t layer, WorkerId worker) const {
  const DispatchPlan::Part& part = plan_.part(worker);
  return {.layer = layer,
          .generation = placement_.generation,
          .rows = static_cast<std::uint32_t>(part.tokens.size()),
          .pairs = static_cast<std::uint32_t>(part.pairs.size()),
          .hidden = static_cast<std::uint32_t>(options_.hidden),
          .type = options_.type};
}

void ExpertExchange::Send(Flight& flight) {
  for (std::size_t w = 0; w < flight.shapes.size(); ++w) {
    const WorkerId worker(static_cast<int>(w));
    const DispatchPlan::Part& part = plan_.part(worker);
    flight.shapes[w] = ShapeFor(flight.input.layer, worker);
    flight.request_bytes[w] = 0;
    if (part.pairs.empty()) continue;
    const DispatchWriter writer(flight.exchange->request(worker), flight.shapes[w]);
    std::copy(part.pairs.begin(), part.pairs.end(), writer.pairs().begin());
    for (std::size_t row = 0; row < part.tokens.size(); ++row)
      writer.SetRow(row, flight.input.in.row(part.tokens[row]));
    flight.request_bytes[w] = writer.bytes();
  }
}

Result<double> ExpertExchange::ReadReplies(Flight& flight) {
  double longest = 0;
  for (std::size_t w = 0; w < flight.shapes.size(); ++w) {
    if (flight.request_bytes[w] == 0) continue;
    const WorkerId worker(static_cast<int>(w));
    Result<DispatchReplyReader> reply = DispatchReplyReader::Parse(flight.exchange->reply(worker), flight.shapes[w]);
    if (!reply.ok()) {
      blame_ = {.workers = OneWorker(static_cast<int>(workers_.size()), worker), .certain = true};
      return reply.status().WithContext(names_[w]);
    }
    const double busy = static_cast<double>(reply->busy_ns()) * 1e-9;
    longest = std::max(longest, busy);
    workers_[w].rows += flight.shapes[w].pairs;
    workers_[w].busy_seconds += busy;
    if (observer_ != nullptr)
      observer_->OnExchange(worker, Seconds(flight.exchange->completed_at(worker) - flight.sent));
    flight.replies[w] = *std::move(reply);
  }
  return longest;
}

void ExpertExchange::Combine(const Flight& flight, const LayerOutput& output) {
  const std::size_t hidden = options_.hidden;
  const LayerInput& input = flight.input;
  const auto combine = [&](std::size_t token, int thread) {
    float* scratch = rows_.data() + static_cast<std::size_t>(thread) * 2 * hidden;
    const std::span<float> row(scratch, hidden);
    const std::span<float> sum(scratch + hidden, hidden);
    std::fill(sum.begin(), sum.end(), 0.0f);
    for (std::size_t j = 0; j < input.ids.cols(); ++j) {
      const float weight = input.weights(token, j);
      if (weight == 0) continue;
      const DispatchPlan::Source source = plan_.source(input.first_token + token, j);
      if (source.worker == DispatchPlan::kNowhere) continue;  // nobody waits for this token
      flight.replies[source.worker].GetRow(source.pair, row);
      kernels_.AddScaled(input.scales_input ? 1 : weight, row, sum);
    }
    if (output.shared.rows() > 0) kernels_.Add(output.shared.row(token), sum);
    kernels_.AddScaled(output.scale, sum, output.residual.row(token));
  };
  const std::size_t tokens = input.in.rows();
  ShareOut(pool_, tokens, tokens * hidden * input.ids.cols(), combine);
}

}  // namespace moe
