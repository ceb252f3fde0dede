// Which device a rank works with: its own one of its machine, if it needs any.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "core/status.h"
#include "device/device_api.h"
#include "experts/device_layer.h"
#include "ranks/rank_setup.h"
#include "transport/nccl/nccl_api.h"

namespace moe {

/// A device of this machine that no other rank uses.
struct RankDevice {
  std::unique_ptr<DeviceApi> api;
  std::unique_ptr<NcclApi> nccl;  // null unless the transport is nccl
  int index = 0;                  // among the visible ones
  std::string name;
  bool for_experts = false;  // they are computed on it; else only the transport uses it
  bool required = false;     // for experts by the user's word, not by our choice
  UploadObserver on_upload;  // the program's, while their weights are brought to it; may be empty
};

/// How the libraries are opened; tests have fakes.
struct DeviceLibraries {
  std::function<Result<std::unique_ptr<DeviceApi>>()> open_device = OpenCudaDevice;
  std::function<Result<std::unique_ptr<NcclApi>>()> open_nccl = OpenNccl;
};

/// This rank's device, the n-th visible one for the n-th of its machine's ranks that need one (CUDA applies
/// CUDA_VISIBLE_DEVICES). Null where it needs none: with the backend cpu, or auto where there are too few, and for a
/// router whose transport is not nccl. INVALID_ARGUMENT, naming the flag, for what was asked for and cannot be had.
Result<std::unique_ptr<RankDevice>> BindDevice(const RankOptions& options, const RankPlace& place,
                                               const DeviceLibraries& libraries = {});

/// "cpu" or "cuda": the backend of experts on `device`, as WorkerDescription tells it.
std::string_view BackendName(std::string_view device);

}  // namespace moe
