#include "bench/plan/memory_report.h"

#include <nlohmann/json.hpp>

#include "bench/table.h"
#include "core/units.h"
#include "model/parameter_count.h"

namespace moe {
namespace {

using Json = nlohmann::ordered_json;

Json BuffersJson(const std::vector<Buffer>& buffers) {
  Json json = Json::object();
  for (const Buffer& buffer : buffers) json[buffer.name] = buffer.bytes;
  return json;
}

Json WeightsJson(const WeightBytes& weights) {
  Json parts = Json::object();
  for (std::size_t i = 0; i < kNumModelParts; ++i)
    parts[std::string(Name(static_cast<ModelPart>(i)))] = weights.by_part[i];
  return {{"bytes", weights.total},
          {"scales", weights.scales},
          {"dense", weights.dense},
          {"experts", weights.experts()},
          {"tied_head_copy", weights.tied_head_copy},
          {"by_part", parts}};
}

Json RankJson(const RankMemory& rank) {
  return {{"rank", rank.rank},         {"role", rank.role},    {"slots", rank.slots},
          {"weights", rank.weights},   {"kv", rank.kv},        {"activations", rank.activations},
          {"exchange", rank.exchange}, {"total", rank.total()}};
}

Json EntryJson(const MemoryReport::Entry& entry) {
  const MemoryPlan& plan = entry.plan;
  Json ranks = Json::array();
  for (const RankMemory& rank : plan.ranks) ranks.push_back(RankJson(rank));
  return {{"weight_type", entry.scheme.name},
          {"held_as", Describe(entry.scheme)},
          {"weights", WeightsJson(plan.weights)},
          {"fits", plan.fits},
          {"all_ranks", plan.all_ranks},
          {"smallest_workers", plan.smallest_workers ? Json(*plan.smallest_workers) : Json(nullptr)},
          {"longest_context", plan.longest_context ? Json(*plan.longest_context) : Json(nullptr)},
          {"longest_context_at_smallest_workers",
           plan.longest_context_at_smallest ? Json(*plan.longest_context_at_smallest) : Json(nullptr)},
          {"ranks", ranks}};
}

Json KvJson(const KvBytes& kv) {
  Json uses = Json::array();
  for (const KvUse& use : kv.uses)
    uses.push_back({{"kind", Name(use.kind)},
                    {"layers", use.layers},
                    {"elements_per_position", use.elements},
                    {"positions", use.positions},
                    {"bytes", use.bytes}});
  return {{"bytes", kv.total}, {"uses", uses}};
}

std::string_view KvTypeName(const KvShape& shape) { return shape.element_bytes == 4 ? "f32" : "bf16"; }

Json AssumptionsJson(const MemoryReport& report) {
  const MemoryOptions& o = report.options;
  return {{"context", o.kv.context},
          {"batch", o.kv.batch},
          {"encoder_tokens", report.model.config.has_encoder() ? Json(o.kv.encoder_tokens) : Json(nullptr)},
          {"kv_type", KvTypeName(o.kv)},
          {"kv_page_tokens", o.kv.page_tokens},
          {"prefill_chunk", o.kv.prefill_chunk},
          {"max_step_tokens", o.step.max_step_tokens},
          {"exchange_type", Name(o.step.exchange_type)},
          {"workers", o.workers},
          {"placement", o.placement},
          {"loads", o.loads.empty() ? Json(nullptr) : Json(o.loads.string())},
          {"redundant_experts", o.redundant_experts},
          {"device", report.device},
          {"device_memory", o.device_bytes},
          {"memory_share", o.usable_share}};
}

std::string Bytes(std::uint64_t bytes) { return ShortBytes(static_cast<double>(bytes)); }

std::string AssumptionLines(const MemoryReport& report) {
  const MemoryOptions& o = report.options;
  std::string text = Cat(report.model.name, ": ", o.kv.batch, " sequence(s) of ", WithSeparators(o.kv.context),
                         " positions, ", KvTypeName(o.kv), " cache in pages of ", o.kv.page_tokens, ", steps of ",
                         o.step.max_step_tokens, " tokens.\n");
  if (report.model.config.has_encoder())
    text += Cat("Each sequence has ", WithSeparators(o.kv.encoder_tokens), " positions in the encoder",
                o.kv.encoder_tokens > o.kv.step_tokens ? ", which computes them in one step: too few fit in one" : "",
                ".\n");
  if (report.model.config.context_length > 0 &&
      o.kv.context > static_cast<std::uint64_t>(report.model.config.context_length))
    text += Cat("The model was made for ",
                WithSeparators(static_cast<std::uint64_t>(report.model.config.context_length)), " positions.\n");
  text += o.workers == 0 ? "One process holds everything. "
                         : Cat("A router and ", o.workers, " workers, placement ", o.placement,
                               o.loads.empty() ? "" : Cat(" by ", o.loads.string()), ", ", o.redundant_experts,
                               " extra slots a layer. ");
  const double share = static_cast<double>(o.device_bytes) * o.usable_share;
  text += Cat("Each rank may use ", ShortBytes(share), ": ", Significant(100 * o.usable_share, 3), " % of ",
              Bytes(o.device_bytes), " (", report.device, ").\n");
  for (const MemoryReport::Entry& entry : report.entries)
    text += Cat(entry.scheme.name, ": ", Describe(entry.scheme), "\n");
  return text;
}

std::string WorkersText(const MemoryPlan& plan) {
  if (!plan.smallest_workers) return "none";
  return *plan.smallest_workers == 0 ? "one process" : Cat(*plan.smallest_workers, " workers");
}

std::string ContextText(const std::optional<std::uint64_t>& context) {
  if (!context) return "none";
  return *context == kMostContext ? "any" : WithSeparators(*context);
}

std::string TypeLines(const MemoryReport& report) {
  TextTable table({"weights as", "bytes", "in all", "dense", "experts", "of which scales", "fits", "least",
                   "longest context", "with the least"});
  for (const auto& [scheme, plan] : report.entries)
    table.Add({scheme.name, WithSeparators(plan.weights.total), Bytes(plan.weights.total), Bytes(plan.weights.dense),
               Bytes(plan.weights.experts()), Bytes(plan.weights.scales), std::string(plan.fits ? "yes" : "no"),
               WorkersText(plan), ContextText(plan.longest_context), ContextText(plan.longest_context_at_smallest)});
  return Cat("\n", table.Text());
}

std::string KvLines(const KvBytes& kv) {
  TextTable table({"KV cache", "layers", "elements a position", "positions", "bytes", ""});
  for (const KvUse& use : kv.uses)
    table.Add({std::string(Name(use.kind)), Cat(use.layers), WithSeparators(use.elements),
               WithSeparators(use.positions), WithSeparators(use.bytes), Bytes(use.bytes)});
  return Cat("\n", table.Text());
}

bool HoldTheSame(const RankMemory& a, const RankMemory& b) {
  return a.role == b.role && a.slots == b.slots && a.weights == b.weights && a.total() == b.total();
}

// Neighbours that hold the same share a line.
std::string RankLines(const MemoryPlan& plan) {
  TextTable table({"rank", "slots", "weights", "KV cache", "activations", "exchange", "total"});
  for (std::size_t first = 0; first < plan.ranks.size();) {
    const RankMemory& rank = plan.ranks[first];
    std::size_t end = first + 1;
    while (end < plan.ranks.size() && HoldTheSame(rank, plan.ranks[end])) ++end;
    const std::string name =
        end - first == 1 ? Cat(first, " ", rank.role) : Cat(first, "…", end - 1, " each a ", rank.role);
    table.Add({name, WithSeparators(rank.slots), Bytes(rank.weights), Bytes(rank.kv), Bytes(rank.activations),
               Bytes(rank.exchange), Bytes(rank.total())});
    first = end;
  }
  std::string text = Cat("\n", table.Text());
  if (plan.ranks.size() > 1) text += Cat("All ranks together: ", Bytes(plan.all_ranks), ".\n");
  return text;
}

}  // namespace

std::string MemoryJson(const MemoryReport& report) {
  const MemoryPlan& first = report.entries.front().plan;
  Json entries = Json::array();
  for (const MemoryReport::Entry& entry : report.entries) entries.push_back(EntryJson(entry));
  const Json json = {{"name", report.model.name},
                     {"assumptions", AssumptionsJson(report)},
                     {"usable_bytes_per_rank", first.usable_bytes},
                     {"kv", KvJson(first.kv)},
                     {"activations",
                      {{"router", BuffersJson(RouterBuffers(report.model.config, report.options.step))},
                       {"worker", BuffersJson(WorkerBuffers(report.model.config, report.options.step))}}},
                     {"by_weight_type", entries}};
  return json.dump(2) + "\n";
}

std::string MemoryText(const MemoryReport& report) {
  std::string text = AssumptionLines(report) + TypeLines(report) + KvLines(report.entries.front().plan.kv);
  if (report.entries.size() == 1) text += RankLines(report.entries.front().plan);
  return text;
}

}  // namespace moe
