// cuBLAS, found when it is first needed (device/shared_library.h), and the one call of it that this project makes.
#pragma once

#include <memory>

#include "core/status.h"
#include "device/device_api.h"

namespace moe {

class Cublas {
 public:
  /// Loads the library and makes a handle on this thread's device. UNAVAILABLE where it is missing.
  static Result<std::unique_ptr<Cublas>> Open();
  ~Cublas();
  Cublas(const Cublas&) = delete;
  Cublas& operator=(const Cublas&) = delete;

  /// Not thread-safe: the handle carries the stream. Enqueued on `stream`, which belongs to the handle's device.
  Status Run(const GroupedGemm& gemm, DeviceStream stream);

 private:
  struct Functions;
  struct Arguments;
  Cublas();
  Status Check(int status, const char* call) const;

  std::unique_ptr<Functions> functions_;
  std::unique_ptr<Arguments> arguments_;  // kept, so that a call allocates nothing once it has seen as many groups
  void* handle_ = nullptr;                // cublasHandle_t
};

}  // namespace moe
