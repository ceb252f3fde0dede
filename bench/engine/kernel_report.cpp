// The results of `moe_bench kernels` as JSON and as a table.
#include <nlohmann/json.hpp>

#include "bench/engine/kernel_bench.h"
#include "bench/table.h"
#include "core/text.h"

namespace moe {
namespace {

using Json = nlohmann::ordered_json;

std::string Giga(double rate) { return Format("%.1f", rate / 1e9); }
std::string Percent(double share) { return Format("%.0f%%", 100 * share); }

std::string Title(const KernelResult& result) {
  return Cat(result.kernel, ", ", result.model, ", ", result.shape, ", ", result.type);
}

// The results of one kernel and shape, which differ in rows.
std::string Figures(std::span<const KernelResult> results) {
  const auto& peak = results.front().peak;
  TextTable table({"rows", "GB/s", "reading", "share", "Gop/s", peak ? peak->instruction : "peak", "share"});
  for (const KernelResult& result : results)
    table.Add({std::to_string(result.rows), Giga(result.bytes_per_s), Giga(result.read_bytes_per_s),
               Percent(result.share_of_bandwidth), Giga(result.operations_per_s),
               result.peak ? Giga(result.peak->operations_per_s) : "-",
               result.peak ? Percent(result.peak->share) : "-"});
  return table.Text();
}

}  // namespace

std::string KernelResultsJson(const std::vector<KernelResult>& results, const KernelBenchContext& context) {
  Json roofs = Json::array();
  for (const DotRoof& roof : context.dot_roofs)
    roofs.push_back({{"format", roof.format},
                     {"instruction_set", roof.instruction_set},
                     {"operations_per_s", roof.operations_per_s}});
  Json list = Json::array();
  for (const KernelResult& result : results) {
    const auto& peak = result.peak;
    list.push_back({{"kernel", result.kernel},
                    {"model", result.model},
                    {"shape", result.shape},
                    {"weight_type", result.type},
                    {"rows", result.rows},
                    {"bytes_per_s", result.bytes_per_s},
                    {"read_bytes_per_s", result.read_bytes_per_s},
                    {"share_of_bandwidth", result.share_of_bandwidth},
                    {"operations_per_s", result.operations_per_s},
                    {"peak_instruction", peak ? Json(peak->instruction) : Json(nullptr)},
                    {"peak_operations_per_s", peak ? Json(peak->operations_per_s) : Json(nullptr)},
                    {"share_of_peak", peak ? Json(peak->share) : Json(nullptr)},
                    {"largest_error", result.largest_error}});
  }
  return Json{{"target", context.kernels}, {"threads", context.threads}, {"roofs", roofs}, {"kernels", list}}.dump();
}

std::string KernelTable(const std::vector<KernelResult>& results, const KernelBenchContext& context) {
  std::string text = Cat("kernels ", context.kernels, ", ", context.threads, " thread(s); multiply-adds at best\n");
  TextTable roofs({"format", "instructions", "Gop/s"});
  for (const DotRoof& roof : context.dot_roofs)
    roofs.Add({roof.format, roof.instruction_set, Format("%.0f", roof.operations_per_s / 1e9)});
  text += roofs.Text();
  text +=
      "\nShares: of GB/s in reading the same memory, of Gop/s in what the instruction named does alone; either is\n"
      "measured before each pass of the kernel, and all figures are medians over the passes.\n";
  for (auto begin = results.begin(); begin != results.end();) {
    const auto end =
        std::find_if(begin, results.end(), [&](const KernelResult& other) { return Title(other) != Title(*begin); });
    text += Cat("\n", Title(*begin), "\n", Figures({begin, end}));
    begin = end;
  }
  return text;
}

}  // namespace moe
