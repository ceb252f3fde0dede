// The results of `moe_bench kernels` as JSON and as a table.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "bench/engine/kernel_bench.h"
#include "core/text.h"

namespace moe {
namespace {

using Json = nlohmann::ordered_json;

template <typename... Values>
std::string Format(const char* format, Values... values) {
  char text[256];
  std::snprintf(text, sizeof(text), format, values...);
  return text;
}

}  // namespace

std::string KernelResultsJson(const std::vector<KernelResult>& results, const KernelBenchContext& context) {
  Json roofs = Json::array();
  for (const DotRoof& roof : context.dot_roofs)
    roofs.push_back({{"format", roof.format},
                     {"instruction_set", roof.instruction_set},
                     {"operations_per_s", roof.operations_per_s}});
  Json list = Json::array();
  for (const KernelResult& result : results)
    list.push_back({{"kernel", result.kernel},
                    {"model", result.model},
                    {"shape", result.shape},
                    {"weight_type", result.type},
                    {"rows", result.rows},
                    {"bytes_per_s", result.bytes_per_s},
                    {"operations_per_s", result.operations_per_s},
                    {"share_of_bandwidth", result.share_of_bandwidth(context.roofs)},
                    {"share_of_peak", result.share_of_peak(context.roofs)},
                    {"largest_error", result.largest_error}});
  return Json{{"target", context.kernels}, {"threads", context.roofs.threads}, {"roofs", roofs}, {"kernels", list}}
      .dump();
}

std::string KernelTable(const std::vector<KernelResult>& results, const KernelBenchContext& context) {
  std::string text = Cat("kernels ", context.kernels, ", ", context.roofs.threads, " thread(s); the machine reads ",
                         Format("%.1f", context.roofs.read_bandwidth_bytes_per_s / 1e9), " GB/s and computes\n");
  for (const DotRoof& roof : context.dot_roofs)
    text += Format("  %-5s %-12s %8.0f Gop/s\n", roof.format.c_str(), roof.instruction_set.c_str(),
                   roof.operations_per_s / 1e9);
  std::string group;
  for (const KernelResult& result : results) {
    const std::string next = Cat(result.kernel, ", ", result.model, ", ", result.shape, ", ", result.type);
    if (next != group)
      text += Cat("\n", next, "\n", Format("%6s %10s %8s %10s %8s\n", "rows", "GB/s", "", "Gop/s", ""));
    group = next;
    text += Format("%6zu %10.1f %7.0f%% %10.1f %7.0f%%\n", result.rows, result.bytes_per_s / 1e9,
                   100 * result.share_of_bandwidth(context.roofs), result.operations_per_s / 1e9,
                   100 * result.share_of_peak(context.roofs));
  }
  return text;
}

}  // namespace moe
