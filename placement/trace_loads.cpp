#include "placement/trace_loads.h"

#include <fstream>
#include <system_error>
#include <utility>

namespace moe {
namespace {

constexpr std::size_t kMaxWindowCounts = std::size_t{1} << 28;

LayerLoads NoLoads(const TraceHeader& header) {
  return LayerLoads(header.layers.size(), std::vector<std::uint64_t>(static_cast<std::size_t>(header.num_experts), 0));
}

void AddStep(const TraceHeader& header, const TraceStep& step, LayerLoads& loads) {
  const auto k = static_cast<std::size_t>(header.experts_per_token);
  for (std::size_t layer = 0; layer < loads.size(); ++layer) {
    const std::size_t begin = step.begin(header, layer);
    const std::size_t end = begin + step.rows(header, layer) * k;
    for (std::size_t i = begin; i < end; ++i)
      if (step.weights[i] != 0) ++loads[layer][step.ids[i]];
  }
}

Result<TraceSummary> ReadSteps(TraceReader& reader,
                               const std::function<Status(const TraceHeader&, const TraceStep&)>& each) {
  TraceStep step;
  for (;;) {
    MOE_ASSIGN_OR_RETURN(const bool more, reader.Next(step));
    if (!more) break;
    MOE_RETURN_IF_ERROR(each(reader.header(), step));
  }
  return TraceSummary{
      .header = reader.header(), .steps = reader.steps(), .dropped = reader.dropped(), .end = reader.end()};
}

}  // namespace

Result<TraceSummary> ReadTraceFile(const std::filesystem::path& path,
                                   const std::function<Status(const TraceHeader&, const TraceStep&)>& each) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) return NotFound("trace ", path.string(), " is not a file");
  std::ifstream file(path, std::ios::binary);
  if (!file) return InvalidArgument("trace ", path.string(), " cannot be read");
  const auto source = [&file](std::span<std::byte> out) {
    file.read(reinterpret_cast<char*>(out.data()), static_cast<std::streamsize>(out.size()));
    return static_cast<std::size_t>(file.gcount());
  };
  const std::string context = Cat("trace ", path.string());
  Result<TraceReader> reader = TraceReader::Open(source);
  if (!reader.ok()) return reader.status().WithContext(context);
  Result<TraceSummary> summary = ReadSteps(*reader, each);
  if (!summary.ok()) return summary.status().WithContext(context);
  return summary;
}

Result<TraceLoads> ReadTraceLoads(const std::filesystem::path& path, std::size_t window_steps) {
  TraceLoads loads;
  std::size_t in_window = 0;
  const auto each = [&](const TraceHeader& header, const TraceStep& step) {
    if (loads.total.empty()) loads.total = NoLoads(header);
    AddStep(header, step, loads.total);
    if (window_steps == 0) return Status::Ok();
    if (in_window == 0) {
      const std::size_t counts = header.layers.size() * static_cast<std::size_t>(header.num_experts);
      if ((loads.windows.size() + 1) * counts > kMaxWindowCounts)
        return ResourceExhausted("windows of ", window_steps, " steps are more than ", loads.windows.size(),
                                 ", which is as many as are kept of ", counts, " counts each");
      loads.windows.push_back(NoLoads(header));
    }
    AddStep(header, step, loads.windows.back());
    in_window = (in_window + 1) % window_steps;
    return Status::Ok();
  };
  MOE_ASSIGN_OR_RETURN(loads.trace, ReadTraceFile(path, each));
  if (loads.total.empty()) loads.total = NoLoads(loads.trace.header);
  return loads;
}

}  // namespace moe
