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
          // Micro-batches, or one exchange and another thing to say beside it.
          .max_exchanges = std::max(2, static_cast<int>(options.max_micro_batches))};
}

ExpertExchange::ExpertExchange(Options options, Transport& transport, const Placement& placement,
                               const Kernels& kernels, ThreadPool& pool, ExchangeObserver* observer)
    : options_(options),
      transport_(transport),
      generation_(placement.generation),
      replicas_(placement),
      kernels_(kernels),
      pool_(pool),
      observer_(observer),
      plan_(PlanShape(options, transport.num_workers())),
      flights_(options.max_micro_batches),
      rows_(static_cast<std::size_t>(pool.threads()) * 2 * options.hidden),
      workers_(static_cast<std::size_t>(transport.num_workers())) {
  for (Flight& flight : flights_) {
    flight.exchange = transport.MakeExchange();
    flight.request_bytes.resize(workers_.size());
    flight.shapes.resize(workers_.size());
    flight.replies.resize(workers_.size());
  }
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
                          .weights = input.weights});
  Send(flight);
  flight.sent = Clock::now();
  times_.dispatch += Seconds(flight.sent - begin);
  MOE_RETURN_IF_ERROR(flight.exchange->Start(flight.request_bytes));
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
  MOE_RETURN_IF_ERROR(flight.exchange->Wait(std::max(flight.sent, received_) + options_.timeout));
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
    if (!flight.exchange->Wait(deadline).ok()) return;  // as good as told: the transport's failure is for good
  }
}

DispatchShape ExpertExchange::ShapeFor(std::uint32_t layer, WorkerId worker) const {
  const DispatchPlan::Part& part = plan_.part(worker);
  return {.layer = layer,
          .generation = generation_,
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
    if (!reply.ok()) return reply.status().WithContext(Cat("rank ", transport_.rank(worker)));
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
