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
          .max_exchanges = 2};
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
      exchange_(transport.MakeExchange()),
      request_bytes_(static_cast<std::size_t>(transport.num_workers())),
      shapes_(request_bytes_.size()),
      replies_(request_bytes_.size()),
      rows_(static_cast<std::size_t>(pool.threads()) * 2 * options.hidden),
      workers_(request_bytes_.size()) {}

void ExpertExchange::BeginStep() {
  times_ = {};
  std::fill(workers_.begin(), workers_.end(), WorkerStep{});
}

Status ExpertExchange::Start(const LayerInput& input) {
  const TimePoint begin = Clock::now();
  input_ = input;
  plan_.Build(replicas_, input.sparse_index, input.ids, input.weights);
  Send();
  sent_ = Clock::now();
  times_.dispatch += Seconds(sent_ - begin);
  return exchange_->Start(request_bytes_);
}

Status ExpertExchange::Finish(const LayerOutput& output) {
  const TimePoint begin = Clock::now();
  MOE_RETURN_IF_ERROR(exchange_->Wait(sent_ + options_.timeout));
  const TimePoint received = Clock::now();
  MOE_ASSIGN_OR_RETURN(const double longest, ReadReplies());
  times_.experts += std::min(longest, Seconds(received - begin));
  Combine(output);
  times_.wait += Seconds(received - begin);
  times_.combine += Seconds(Clock::now() - received);
  return Status::Ok();
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

void ExpertExchange::Send() {
  for (std::size_t w = 0; w < shapes_.size(); ++w) {
    const WorkerId worker(static_cast<int>(w));
    const DispatchPlan::Part& part = plan_.part(worker);
    shapes_[w] = ShapeFor(input_.layer, worker);
    request_bytes_[w] = 0;
    if (part.pairs.empty()) continue;
    const DispatchWriter writer(exchange_->request(worker), shapes_[w]);
    std::copy(part.pairs.begin(), part.pairs.end(), writer.pairs().begin());
    for (std::size_t row = 0; row < part.tokens.size(); ++row) writer.SetRow(row, input_.in.row(part.tokens[row]));
    request_bytes_[w] = writer.bytes();
  }
}

Result<double> ExpertExchange::ReadReplies() {
  double longest = 0;
  for (std::size_t w = 0; w < shapes_.size(); ++w) {
    if (request_bytes_[w] == 0) continue;
    const WorkerId worker(static_cast<int>(w));
    Result<DispatchReplyReader> reply = DispatchReplyReader::Parse(exchange_->reply(worker), shapes_[w]);
    if (!reply.ok()) return reply.status().WithContext(Cat("rank ", transport_.rank(worker)));
    const double busy = static_cast<double>(reply->busy_ns()) * 1e-9;
    longest = std::max(longest, busy);
    workers_[w].rows += shapes_[w].pairs;
    workers_[w].busy_seconds += busy;
    if (observer_ != nullptr) observer_->OnExchange(worker, Seconds(exchange_->completed_at(worker) - sent_));
    replies_[w] = *std::move(reply);
  }
  return longest;
}

void ExpertExchange::Combine(const LayerOutput& output) {
  const std::size_t hidden = options_.hidden;
  const auto combine = [&](std::size_t token, int thread) {
    float* scratch = rows_.data() + static_cast<std::size_t>(thread) * 2 * hidden;
    const std::span<float> row(scratch, hidden);
    const std::span<float> sum(scratch + hidden, hidden);
    std::fill(sum.begin(), sum.end(), 0.0f);
    for (std::size_t j = 0; j < input_.ids.cols(); ++j) {
      const float weight = input_.weights(token, j);
      if (weight == 0) continue;
      const DispatchPlan::Source source = plan_.source(token, j);
      replies_[source.worker].GetRow(source.pair, row);
      kernels_.AddScaled(input_.scales_input ? 1 : weight, row, sum);
    }
    if (output.shared.rows() > 0) kernels_.Add(output.shared.row(token), sum);
    kernels_.AddScaled(output.scale, sum, output.residual.row(token));
  };
  const std::size_t tokens = input_.in.rows();
  ShareOut(pool_, tokens, tokens * hidden * input_.ids.cols(), combine);
}

}  // namespace moe
