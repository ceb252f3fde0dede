#include "experts/worker.h"

#include <algorithm>

#include "core/clock.h"
#include "core/parallel.h"

namespace moe {
namespace {

// Receives and answers until shutdown. `answer(kind, payload, reply)` gives the reply's bytes.
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
    const std::size_t bytes = kind.ok() ? answer(*kind, request.payload, reply) : WriteFailure(reply, kind.status());
    MOE_RETURN_IF_ERROR(endpoint.Reply(request, bytes));
    if (kind.ok() && *kind == MessageKind::kShutdown) return Status::Ok();
  }
}

}  // namespace

Worker::Worker(WorkerOptions options, const WorkerDescription& description, const ExpertShard& shard,
               ExpertBackend& backend, ThreadPool& pool, WorkerTotals& totals, Observer observer)
    : options_(options),
      description_(description),
      shard_(shard),
      backend_(backend),
      pool_(pool),
      observer_(std::move(observer)),
      totals_(totals),
      in_(options.max_pairs * options.hidden),
      out_(options.max_pairs * options.hidden),
      sorted_(options.max_pairs) {
  offsets_.reserve(shard.most_slots() + 2);
}

Status Worker::Run(WorkerEndpoint& endpoint) {
  return Serve(endpoint, [this](MessageKind kind, std::span<const std::byte> payload, std::span<std::byte> reply) {
    return Answer(kind, payload, reply);
  });
}

std::size_t Worker::Answer(MessageKind kind, std::span<const std::byte> payload, std::span<std::byte> reply) {
  switch (kind) {
    case MessageKind::kDispatch: break;
    case MessageKind::kDescribe: return WriteDescription(reply, description_);
    case MessageKind::kShutdown: return WriteControlReply(reply);
    case MessageKind::kAssign:
      return WriteFailure(reply, InvalidArgument("this worker has loaded its shard by itself and takes no other"));
  }
  const Result<std::size_t> bytes = Dispatch(payload, reply);
  if (!bytes.ok()) return WriteFailure(reply, bytes.status());
  totals_.received_bytes.fetch_add(payload.size(), std::memory_order_relaxed);
  totals_.sent_bytes.fetch_add(*bytes, std::memory_order_relaxed);
  return *bytes;
}

Result<std::size_t> Worker::Dispatch(std::span<const std::byte> payload, std::span<std::byte> reply) {
  const TimePoint begin = Clock::now();
  MOE_ASSIGN_OR_RETURN(const DispatchReader dispatch, DispatchReader::Parse(payload));
  const DispatchShape& shape = dispatch.shape();
  const ExpertShard::Layer* layer = shard_.Find(shape.layer);
  if (shape.generation != shard_.generation())
    return Internal("placement generation ", shape.generation, " is unknown here (", shard_.generation(), ")");
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
  totals_.exchanges.fetch_add(1, std::memory_order_relaxed);
  totals_.rows.fetch_add(shape.pairs, std::memory_order_relaxed);
  totals_.busy_ns.fetch_add(busy, std::memory_order_relaxed);
  if (observer_)
    observer_({.rows = shape.pairs, .ffn_seconds = ffn_seconds, .busy_seconds = static_cast<double>(busy) * 1e-9});
  return writer.Finish(busy);
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

Status ServeFailure(WorkerEndpoint& endpoint, const Status& failure) {
  return Serve(endpoint, [&](MessageKind kind, std::span<const std::byte>, std::span<std::byte> reply) {
    return kind == MessageKind::kShutdown ? WriteControlReply(reply) : WriteFailure(reply, failure);
  });
}

}  // namespace moe
