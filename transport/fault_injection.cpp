#include "transport/fault_injection.h"

#include <algorithm>
#include <limits>
#include <thread>
#include <utility>

#include "core/split_mix.h"
#include "transport/exchange_checks.h"
#include "transport/frame.h"

namespace moe {
namespace {

bool ConcernsRequests(FaultKind kind) {
  return kind == FaultKind::kDropRequest || kind == FaultKind::kCorruptRequestLength ||
         kind == FaultKind::kCorruptRequestPayload;
}

// Edits a frame on its way; false when it is lost.
bool Apply(FaultKind kind, FrameHeader& header, std::span<std::byte> payload) {
  switch (kind) {
    case FaultKind::kDropRequest:
    case FaultKind::kDropReply:
    case FaultKind::kDeadPeer: return false;
    case FaultKind::kCorruptRequestLength:
    case FaultKind::kCorruptReplyLength: ++header.payload_bytes; break;
    case FaultKind::kOversizeReplyLength: header.payload_bytes = std::numeric_limits<std::uint64_t>::max() / 2; break;
    case FaultKind::kFlipReplyHeaderBit: header.payload_bytes ^= 1; return true;
    case FaultKind::kWrongReplyMagic: header.magic = 0; break;
    case FaultKind::kWrongReplyVersion: ++header.version; break;
    case FaultKind::kCorruptRequestPayload:
    case FaultKind::kCorruptReplyPayload:
      if (!payload.empty()) payload[payload.size() / 2] ^= std::byte{16};
      return true;
    case FaultKind::kStaleReply: --header.sequence; break;
    case FaultKind::kDelayReply: return true;  // FaultyExchange does that
  }
  Seal(header);
  return true;
}

// A well-mixed number from a counter.
std::uint64_t SplitMix(std::uint64_t counter) { return MixBits(counter * kSplitMixStep); }

class FaultyTransport final : public Transport {
 public:
  FaultyTransport(std::unique_ptr<Transport> inner, const FaultInjector& injector)
      : inner_(std::move(inner)), injector_(injector) {}

  std::string_view name() const override { return inner_->name(); }
  MemorySpace memory_space() const override { return inner_->memory_space(); }
  int num_workers() const override { return inner_->num_workers(); }
  Rank rank(WorkerId worker) const override { return inner_->rank(worker); }
  const TransportLimits& limits() const override { return inner_->limits(); }
  std::unique_ptr<Exchange> MakeExchange() override;

 private:
  friend class FaultyExchange;

  const std::unique_ptr<Transport> inner_;
  const FaultInjector& injector_;
  std::uint64_t num_started_ = 0;
  Status failure_;  // an expired delay, for good; the inner transport's own failures come from there
};

class FaultyExchange final : public Exchange {
 public:
  explicit FaultyExchange(FaultyTransport& transport)
      : transport_(transport),
        inner_(transport.inner_->MakeExchange()),
        held_(static_cast<std::size_t>(transport.num_workers())),
        was_held_(held_.size()),
        delays_(held_.size()),
        revealed_at_(held_.size()) {}

  std::span<std::byte> request(WorkerId worker) override { return inner_->request(worker); }

  Status Start(std::span<const std::size_t> request_bytes) override {
    if (!transport_.failure_.ok()) return transport_.failure_;
    MOE_RETURN_IF_ERROR(inner_->Start(request_bytes));
    const std::uint64_t exchange = transport_.num_started_++;
    started_at_ = Clock::now();
    for (std::size_t w = 0; w < held_.size(); ++w) {
      delays_[w] = transport_.injector_.Delay(WorkerId(static_cast<int>(w)), exchange);
      held_[w] = request_bytes[w] > 0 && (delays_[w].polls > 0 || delays_[w].duration.count() > 0) ? 1 : 0;
      was_held_[w] = held_[w];
    }
    return Status::Ok();
  }

  Result<bool> Poll() override {
    if (!transport_.failure_.ok()) return transport_.failure_;
    MOE_ASSIGN_OR_RETURN(const bool arrived, inner_->Poll());
    const TimePoint now = Clock::now();
    for (std::size_t w = 0; w < held_.size(); ++w) {
      if (held_[w] == 0 || delays_[w].polls-- > 0 || now - started_at_ < delays_[w].duration) continue;
      held_[w] = 0;
      revealed_at_[w] = now;
    }
    return arrived && std::find(held_.begin(), held_.end(), 1) == held_.end();
  }

  Status Wait(Deadline deadline) override {
    if (!transport_.failure_.ok()) return transport_.failure_;
    if (Status status = inner_->Wait(deadline); !status.ok()) {
      // Over: nothing is held back any more, and who has answered shows.
      std::fill(held_.begin(), held_.end(), 0);
      std::fill(was_held_.begin(), was_held_.end(), 0);
      return status;
    }
    while (true) {
      const bool late = Clock::now() >= deadline;  // before the look, which may come much later
      MOE_ASSIGN_OR_RETURN(const bool done, Poll());
      if (done) return Status::Ok();
      if (late) return transport_.failure_ = NoReply(transport_, held_);
      std::this_thread::yield();
    }
  }

  std::span<const std::byte> reply(WorkerId worker) const override { return inner_->reply(worker); }
  TimePoint completed_at(WorkerId worker) const override {
    if (held_[worker.index()] != 0) return TimePoint();
    const TimePoint arrived = inner_->completed_at(worker);
    return was_held_[worker.index()] != 0 ? std::max(arrived, revealed_at_[worker.index()]) : arrived;
  }

 private:
  FaultyTransport& transport_;
  const std::unique_ptr<Exchange> inner_;
  std::vector<std::uint8_t> held_;  // per worker: its reply is not shown yet
  std::vector<std::uint8_t> was_held_;
  std::vector<Fault> delays_;  // per worker; `polls` counts down
  std::vector<TimePoint> revealed_at_;
  TimePoint started_at_;
};

std::unique_ptr<Exchange> FaultyTransport::MakeExchange() { return std::make_unique<FaultyExchange>(*this); }

}  // namespace

FaultScript RandomDelays(std::uint64_t seed, int num_workers, std::uint64_t num_exchanges, int max_polls) {
  FaultScript script;
  for (std::uint64_t e = 0; e < num_exchanges; ++e) {
    for (int w = 0; w < num_workers; ++w) {
      const std::uint64_t bits = SplitMix(SplitMix(seed ^ SplitMix(e)) + static_cast<std::uint64_t>(w));
      const int polls = static_cast<int>(bits % (static_cast<std::uint64_t>(max_polls) + 1));
      script.push_back({.kind = FaultKind::kDelayReply, .worker = WorkerId(w), .exchange = e, .polls = polls});
    }
  }
  return script;
}

bool FaultInjector::Pass(FrameHeader& header, std::span<std::byte> payload, WorkerId worker) {
  if (header.kind == FrameKind::kClose || header.kind == FrameKind::kError) return true;
  const bool is_request = header.kind == FrameKind::kRequest;
  const std::uint64_t exchange = header.sequence - 1;  // before any edit: sequences count Starts from 1
  for (const Fault& fault : script_) {
    const bool now = fault.kind == FaultKind::kDeadPeer ? exchange >= fault.exchange : exchange == fault.exchange;
    if (!now || fault.worker != worker || ConcernsRequests(fault.kind) != is_request) continue;
    if (!Apply(fault.kind, header, payload)) return false;
  }
  return true;
}

Fault FaultInjector::Delay(WorkerId worker, std::uint64_t exchange) const {
  for (const Fault& fault : script_) {
    if (fault.kind == FaultKind::kDelayReply && fault.worker == worker && fault.exchange == exchange) return fault;
  }
  return {};
}

std::unique_ptr<Transport> MakeFaultyTransport(std::unique_ptr<Transport> inner, const FaultInjector& injector) {
  return std::make_unique<FaultyTransport>(std::move(inner), injector);
}

}  // namespace moe
