#include "experts/worker.h"

#include <algorithm>

#include "core/clock.h"
#include "core/parallel.h"

namespace moe {
namespace {

// Receives and answers until shutdown. `answer(kind, request, reply)` gives the reply's bytes.
template <typename Answer>
Status Serve(WorkerEndpoint& endpoint, Answer&& answer) {
  while (true) {
    Result<std::optional<IncomingRequest>> received = endpoint.Receive(kNoDeadline);
    if (!received.ok()) {
      // No router is left: nothing was lost, since a router waits for its replies before it leaves.
      if (received.status().code() == StatusCode::kUnavailable) return Status::Ok();
      // One wrong frame: its router has been told, the others are served on.
      if (received.status().code() == StatusCode::kInternal) continue;
      return received.status();
    }
    if (!received->has_value()) continue;
    const IncomingRequest& request = **received;
    const std::span<std::byte> reply = endpoint.reply_buffer(request);
    const Result<MessageKind> kind = ParseKind(request.payload);
    const std::size_t bytes = kind.ok() ? answer(*kind, request, reply) : WriteFailure(reply, kind.status());
    MOE_RETURN_IF_ERROR(endpoint.Reply(request, bytes));
    if (kind.ok() && *kind == MessageKind::kShutdown) return Status::Ok();
  }
}

}  // namespace

Worker::Worker(WorkerOptions options, Describe describe, ExpertViews& views, ExpertBackend& backend, ThreadPool& pool,
               WorkerTotals& totals, Observer observer)
    : options_(options),
      describe_(std::move(describe)),
      views_(views),
      backend_(backend),
      pool_(pool),
      observer_(std::move(observer)),
      totals_(totals),
      in_(options.max_pairs * options.hidden),
      out_(options.max_pairs * options.hidden),
      sorted_(options.max_pairs) {
  offsets_.reserve(options.max_slots + 1);
}

Status Worker::Run(WorkerEndpoint& endpoint) {
  return Serve(endpoint, [this](MessageKind kind, const IncomingRequest& request, std::span<std::byte> reply) {
    return Answer(kind, request, reply);
  });
}

std::size_t Worker::Answer(MessageKind kind, const IncomingRequest& request, std::span<std::byte> reply) {
  views_.Meet(request.router);
  const auto answer = [&]() -> Result<std::size_t> {
    switch (kind) {
      case MessageKind::kDispatch: return Dispatch(request, reply);
      case MessageKind::kDescribe: return WriteDescription(reply, WithHosted(describe_(), views_.hosted()));
      case MessageKind::kShutdown: return WriteControlReply(reply);
      case MessageKind::kAssign:
        return InvalidArgument("this worker has loaded its shard by itself and takes no other");
      case MessageKind::kPrepare: return Prepare(request, reply);
      case MessageKind::kPrepared: return TellPrepared(request, reply);
      case MessageKind::kDrop: return Drop(request, reply);
    }
    return Internal("a message of an unknown kind");
  };
  const Result<std::size_t> bytes = answer();
  return bytes.ok() ? *bytes : WriteFailure(reply, bytes.status());
}

Result<std::size_t> Worker::Prepare(const IncomingRequest& request, std::span<std::byte> reply) {
  MOE_ASSIGN_OR_RETURN(const WorkerPreparation wanted, ParsePreparation(request.payload));
  MOE_RETURN_IF_ERROR(backend_.CheckMigration());
  MOE_RETURN_IF_ERROR(views_.Prepare(request.router, wanted));
  return WriteControlReply(reply);
}

Result<std::size_t> Worker::TellPrepared(const IncomingRequest& request, std::span<std::byte> reply) {
  MOE_ASSIGN_OR_RETURN(const PreparationQuery query, ParsePreparationQuery(request.payload));
  MOE_ASSIGN_OR_RETURN(const PreparationStatus status, views_.StatusOf(request.router, query));
  return WritePreparationStatus(reply, status);
}

Result<std::size_t> Worker::Drop(const IncomingRequest& request, std::span<std::byte> reply) {
  MOE_ASSIGN_OR_RETURN(const std::uint64_t generation, ParseGeneration(request.payload));
  views_.Drop(request.router, generation);
  return WriteDescription(reply, WithHosted(describe_(), views_.hosted()));
}

Result<std::size_t> Worker::Dispatch(const IncomingRequest& request, std::span<std::byte> reply) {
  const TimePoint begin = Clock::now();
  MOE_ASSIGN_OR_RETURN(const DispatchReader dispatch, DispatchReader::Parse(request.payload));
  const DispatchShape& shape = dispatch.shape();
  const ExpertShard* const shard = views_.Use(request.router, shape.generation);
  if (shard == nullptr)
    return Internal("placement generation ", shape.generation, " is unknown here (", views_.hosted().generation,
                    " came last)");
  const ExpertShard::Layer* layer = shard->Find(shape.layer);
  if (layer == nullptr) return Internal("layer ", shape.layer, " has no experts");
  if (shape.hidden != options_.hidden)
    return Internal("rows of width ", shape.hidden, " arrived, hidden is ", options_.hidden);
  if (shape.pairs > options_.max_pairs)
    return Internal("a dispatch of ", shape.pairs, " pairs is over the limit of ", options_.max_pairs);
  if (DispatchReplyBytes(shape) > reply.size())
    return Internal("a reply of ", DispatchReplyBytes(shape), " bytes is over the limit of ", reply.size());
  MOE_RETURN_IF_ERROR(SortBySlot(dispatch, layer->experts.size()));

  const std::size_t hidden = options_.hidden;
  const MatrixView<float> in(in_.data(), shape.pairs, hidden);
  const MatrixView<float> out(out_.data(), shape.pairs, hidden);
  // A row's copy counts as its elements: a few bytes an element take the memory about as long as a multiply-add takes.
  const std::size_t copied = shape.pairs * hidden;
  ShareOut(pool_, shape.pairs, copied, [&](std::size_t i, int) {
    const std::span<float> row = in.row(sorted_[i]);
    dispatch.GetRow(dispatch.pairs()[i].row, row);
    if (!layer->scales_input) return;
    for (float& value : row) value *= dispatch.pairs()[i].weight;
  });
  const TimePoint ffn = Clock::now();
  MOE_RETURN_IF_ERROR(backend_.Run(*layer, {.offsets = offsets_, .in = in, .out = out}));
  const double ffn_seconds = Seconds(Clock::now() - ffn);

  const DispatchReplyWriter writer(reply, shape);
  ShareOut(pool_, shape.pairs, copied, [&](std::size_t i, int) { writer.SetRow(i, out.row(sorted_[i])); });
  const auto busy = static_cast<std::uint64_t>(std::chrono::nanoseconds(Clock::now() - begin).count());
  const std::size_t bytes = writer.Finish(busy);
  totals_.received_bytes.fetch_add(request.payload.size(), std::memory_order_relaxed);
  totals_.sent_bytes.fetch_add(bytes, std::memory_order_relaxed);
  totals_.exchanges.fetch_add(1, std::memory_order_relaxed);
  totals_.rows.fetch_add(shape.pairs, std::memory_order_relaxed);
  totals_.busy_ns.fetch_add(busy, std::memory_order_relaxed);
  if (observer_)
    observer_({.rows = shape.pairs, .ffn_seconds = ffn_seconds, .busy_seconds = static_cast<double>(busy) * 1e-9});
  return bytes;
}

Status Worker::SortBySlot(const DispatchReader& dispatch, std::size_t slots) {
  offsets_.assign(slots + 1, 0);
  for (const DispatchPair& pair : dispatch.pairs()) {
    if (pair.slot >= slots)
      return Internal("layer ", dispatch.shape().layer, " asks for slot ", pair.slot, ", there are ", slots);
    ++offsets_[pair.slot + 1];
  }
  for (std::size_t slot = 0; slot < slots; ++slot) offsets_[slot + 1] += offsets_[slot];
  // offsets_[slot] is the next free row of the slot while rows are handed out; afterwards it is the slot's end.
  for (std::size_t i = 0; i < dispatch.pairs().size(); ++i) sorted_[i] = offsets_[dispatch.pairs()[i].slot]++;
  for (std::size_t slot = slots; slot > 0; --slot) offsets_[slot] = offsets_[slot - 1];
  offsets_[0] = 0;
  return Status::Ok();
}

WorkerDescription WithHosted(WorkerDescription description, const HostedExperts& hosted) {
  description.generation = hosted.generation;
  description.slots = hosted.slots;
  description.parameters = hosted.parameters;
  description.weight_bytes = hosted.bytes;
  return description;
}

Status ServeFailure(WorkerEndpoint& endpoint, const Status& failure) {
  return Serve(endpoint, [&](MessageKind kind, const IncomingRequest&, std::span<std::byte> reply) {
    return kind == MessageKind::kShutdown ? WriteControlReply(reply) : WriteFailure(reply, failure);
  });
}

}  // namespace moe
