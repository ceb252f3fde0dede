#include "placement/trace_routing.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "placement/routing_tables.h"
#include "placement/trace_loads.h"

namespace moe {
namespace {

constexpr std::size_t kMaxBytes = std::size_t{1} << 30;

class TraceRouting final : public RoutingOverride {
 public:
  TraceRouting(std::uint64_t seed, const ModelConfig& config)
      : seed_(seed), k_(static_cast<std::size_t>(config.experts_per_token())), index_(config.layers.size()) {
    for (const int layer : config.sparse_layers()) {
      index_[static_cast<std::size_t>(layer)] = ids_.size();
      ids_.emplace_back();
    }
  }

  Status Add(const TraceHeader& header, const TraceStep& step) {
    bytes_ += 2 * step.ids.size();
    if (bytes_ > kMaxBytes)
      return ResourceExhausted("its rows take more than ", kMaxBytes, " bytes; record a shorter one (--trace-limit)");
    for (std::size_t layer = 0; layer < ids_.size(); ++layer) {
      const auto begin = step.ids.begin() + static_cast<std::ptrdiff_t>(step.begin(header, layer));
      ids_[layer].insert(ids_[layer].end(), begin, begin + static_cast<std::ptrdiff_t>(step.rows(header, layer) * k_));
    }
    return Status::Ok();
  }

  /// Whether every layer has a row.
  bool whole() const {
    return std::ranges::none_of(ids_, [](const std::vector<std::uint16_t>& ids) { return ids.empty(); });
  }

  void Choose(std::size_t layer, std::uint32_t token, std::uint32_t position,
              std::span<std::int32_t> ids) const override {
    const std::vector<std::uint16_t>& rows = ids_[index_[layer]];
    const std::size_t row = HashOf(seed_, token, position) % (rows.size() / k_);
    std::copy_n(rows.begin() + static_cast<std::ptrdiff_t>(row * k_), k_, ids.begin());
  }

 private:
  const std::uint64_t seed_;
  const std::size_t k_;
  std::vector<std::size_t> index_;               // by layer, of the sparse ones
  std::vector<std::vector<std::uint16_t>> ids_;  // by sparse layer, (rows of the whole trace, k)
  std::size_t bytes_ = 0;
};

Status CheckShape(const TraceHeader& trace, const TraceHeader& model) {
  if (trace.num_experts == model.num_experts && trace.experts_per_token == model.experts_per_token &&
      trace.layers == model.layers && trace.encoder_layers == model.encoder_layers)
    return Status::Ok();
  return InvalidArgument("it is of ", trace.layers.size(), " sparse layers with ", trace.experts_per_token, " of ",
                         trace.num_experts, " experts a token, the model has ", model.layers.size(), " with ",
                         model.experts_per_token, " of ", model.num_experts, ", or they are others");
}

// A row with an expert twice would be sent twice to it.
Status CheckDistinct(const TraceStep& step, std::size_t k) {
  for (std::size_t row = 0; row < step.ids.size(); row += k)
    for (std::size_t i = row; i < row + k; ++i)
      if (std::find(step.ids.begin() + static_cast<std::ptrdiff_t>(row),
                    step.ids.begin() + static_cast<std::ptrdiff_t>(i),
                    step.ids[i]) != step.ids.begin() + static_cast<std::ptrdiff_t>(i))
        return InvalidArgument("step ", step.head.step, " has a row with expert ", step.ids[i], " twice");
  return Status::Ok();
}

}  // namespace

Result<std::shared_ptr<const RoutingOverride>> ReadTraceRouting(const std::filesystem::path& path, std::uint64_t seed,
                                                                const ModelConfig& config) {
  const TraceHeader model = MakeTraceHeader(config, {});
  auto routing = std::make_shared<TraceRouting>(seed, config);
  const auto each = [&](const TraceHeader& header, const TraceStep& step) {
    MOE_RETURN_IF_ERROR(CheckShape(header, model));
    MOE_RETURN_IF_ERROR(CheckDistinct(step, static_cast<std::size_t>(header.experts_per_token)));
    return routing->Add(header, step);
  };
  MOE_ASSIGN_OR_RETURN(const TraceSummary summary, ReadTraceFile(path, each));
  if (const Status status = CheckShape(summary.header, model); !status.ok())
    return status.WithContext(Cat("trace ", path.string()));
  if (!routing->whole()) return InvalidArgument("trace ", path.string(), " has layers without a row");
  return std::shared_ptr<const RoutingOverride>(std::move(routing));
}

}  // namespace moe
