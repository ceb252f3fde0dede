#include "ranks/rank_device.h"

#include <utility>

namespace moe {
namespace {

// What of this rank's work needs a device, and how that is said to the user.
struct Need {
  bool router = false;  // of a router; a worker always does, when this is asked at all
  bool optional = false;
  std::string_view flag;
};

Result<std::unique_ptr<RankDevice>> Bind(const Need& need, const RankPlace& place, const DeviceLibraries& libraries) {
  Result<std::unique_ptr<DeviceApi>> api = libraries.open_device();
  if (!api.ok()) return InvalidArgument(need.flag, ": ", api.status().message());
  const Result<int> count = (*api)->DeviceCount();
  if (!count.ok()) return InvalidArgument(need.flag, ": ", count.status().message());
  // The router is the first rank of its machine.
  const int idle = place.router_is_here && !need.router && !place.topology.embedded ? 1 : 0;
  const int ranks = place.node_local_size - idle;
  if (ranks > *count) {
    return InvalidArgument(need.flag, ": ", ranks, " ranks of this machine need a device each, and ", *count,
                           " are visible");
  }
  auto device = std::make_unique<RankDevice>();
  device->index = place.node_local_rank - idle;
  const Result<DeviceProperties> properties = (*api)->Properties(device->index);
  if (!properties.ok()) return InvalidArgument(need.flag, ": ", properties.status().message());
  device->name = properties->name;
  device->api = *std::move(api);
  return device;
}

}  // namespace

Result<std::unique_ptr<RankDevice>> BindDevice(const RankOptions& options, const RankPlace& place,
                                               const DeviceLibraries& libraries) {
  const bool nccl = options.transport == TransportChoice::kNccl;
  const bool hosts_experts = place.topology.embedded || place.rank != place.topology.router();
  const bool wants_experts = options.backend != BackendChoice::kCpu && hosts_experts;
  if (!nccl && !wants_experts) return std::unique_ptr<RankDevice>();
  const Need need{
      .router = nccl,
      .optional = !nccl && options.backend == BackendChoice::kAuto,
      .flag = options.backend == BackendChoice::kCuda && hosts_experts ? "--backend cuda" : "--transport nccl"};
  Result<std::unique_ptr<RankDevice>> device = Bind(need, place, libraries);
  if (!device.ok() && need.optional) return std::unique_ptr<RankDevice>();
  if (!device.ok()) return device.status();
  (*device)->for_experts = wants_experts;
  (*device)->required = options.backend == BackendChoice::kCuda;
  if (nccl) {
    Result<std::unique_ptr<NcclApi>> opened = libraries.open_nccl();
    if (!opened.ok()) return InvalidArgument("--transport nccl: ", opened.status().message());
    (*device)->nccl = *std::move(opened);
  }
  return device;
}

std::string_view BackendName(std::string_view device) { return device == "cpu" ? "cpu" : "cuda"; }

}  // namespace moe
