#include "bench/transport/transport_choice.h"

#include <algorithm>
#include <array>
#include <string_view>

namespace moe {
namespace {

constexpr std::array<std::string_view, 5> kTransports = {"inprocess", "mpi", "grpc", "grpc_streams", "nccl"};

/// Why it cannot run here; empty when it can.
std::string Refusal(std::string_view name, const TransportSurroundings& surroundings) {
  const bool several = surroundings.ranks > 1;
  if (name == "inprocess" && several)
    return Cat("inprocess joins threads of one process; mpirun started ", surroundings.ranks, " ranks");
  if (name == "mpi" && !several) return "mpi needs mpirun with at least two ranks, a router and a worker; there is one";
  if (name == "nccl") return surroundings.nccl_refusal;
  return "";
}

Status CheckName(const std::string& name, const std::vector<std::string>& asked,
                 const TransportSurroundings& surroundings) {
  if (std::ranges::find(kTransports, name) == kTransports.end()) {
    const bool alone = name == "auto" || name == "all";
    return InvalidArgument(
        "--transports ", name,
        alone ? " stands alone" : " is unknown (auto, all, inprocess, mpi, grpc, grpc_streams, nccl)");
  }
  if (std::ranges::count(asked, name) > 1) return InvalidArgument("--transports has ", name, " twice");
  if (const std::string refusal = Refusal(name, surroundings); !refusal.empty())
    return InvalidArgument("--transports ", name, ": ", refusal);
  return Status::Ok();
}

}  // namespace

Result<TransportSelection> SelectTransports(const std::vector<std::string>& asked,
                                            const TransportSurroundings& surroundings) {
  if (asked.empty()) return InvalidArgument("--transports is empty, at least one name is needed");
  TransportSelection selection;
  if (asked == std::vector<std::string>{"auto"}) {
    selection.names.push_back(surroundings.ranks > 1 ? "mpi" : "inprocess");
    return selection;
  }
  if (asked == std::vector<std::string>{"all"}) {
    for (const std::string_view name : kTransports) {
      const std::string refusal = Refusal(name, surroundings);
      if (refusal.empty()) selection.names.emplace_back(name);
      if (!refusal.empty()) selection.skipped.push_back(Cat("--transports all leaves out ", name, ": ", refusal));
    }
    return selection;
  }
  for (const std::string& name : asked) MOE_RETURN_IF_ERROR(CheckName(name, asked, surroundings));
  selection.names = asked;
  return selection;
}

}  // namespace moe
