// The table of nccl_api.h over the library, which is found when it is first needed.
#include <nccl.h>

#include <cstring>

#include "device/shared_library.h"
#include "transport/nccl/nccl_api.h"

namespace moe {
namespace {

// One message at a time travels each way between two ranks, and a receive that waits occupies its thread blocks all the
// while, beside the kernels of the experts: four of 132 or more multiprocessors, of which one alone moves some 20 GB/s.
constexpr int kMostThreadBlocks = 4;

static_assert(NCCL_UNIQUE_ID_BYTES == sizeof(NcclUniqueId::bytes));

ncclComm_t Native(NcclCommunicator communicator) { return static_cast<ncclComm_t>(communicator.handle); }

struct Functions {
  decltype(&ncclGetUniqueId) get_unique_id = nullptr;
  decltype(&ncclCommInitRankConfig) init_rank = nullptr;
  decltype(&ncclCommGetAsyncError) async_error = nullptr;
  decltype(&ncclGroupStart) group_start = nullptr;
  decltype(&ncclGroupEnd) group_end = nullptr;
  decltype(&ncclSend) send = nullptr;
  decltype(&ncclRecv) receive = nullptr;
  decltype(&ncclCommFinalize) finalize = nullptr;
  decltype(&ncclCommDestroy) destroy = nullptr;
  decltype(&ncclCommAbort) abort = nullptr;
  decltype(&ncclGetErrorString) error_text = nullptr;
  decltype(&ncclGetLastError) last_error = nullptr;

  Status Load(const SharedLibrary& library) {
    MOE_RETURN_IF_ERROR(library.Load("ncclGetUniqueId", &get_unique_id));
    MOE_RETURN_IF_ERROR(library.Load("ncclCommInitRankConfig", &init_rank));
    MOE_RETURN_IF_ERROR(library.Load("ncclCommGetAsyncError", &async_error));
    MOE_RETURN_IF_ERROR(library.Load("ncclGroupStart", &group_start));
    MOE_RETURN_IF_ERROR(library.Load("ncclGroupEnd", &group_end));
    MOE_RETURN_IF_ERROR(library.Load("ncclSend", &send));
    MOE_RETURN_IF_ERROR(library.Load("ncclRecv", &receive));
    MOE_RETURN_IF_ERROR(library.Load("ncclCommFinalize", &finalize));
    MOE_RETURN_IF_ERROR(library.Load("ncclCommDestroy", &destroy));
    MOE_RETURN_IF_ERROR(library.Load("ncclCommAbort", &abort));
    MOE_RETURN_IF_ERROR(library.Load("ncclGetErrorString", &error_text));
    return library.Load("ncclGetLastError", &last_error);
  }
};

class NcclLibrary final : public NcclApi {
 public:
  explicit NcclLibrary(const Functions& functions) : call_(functions) {}

  Result<NcclUniqueId> GetUniqueId() override {
    ncclUniqueId native;
    MOE_RETURN_IF_ERROR(Check(call_.get_unique_id(&native), "ncclGetUniqueId"));
    NcclUniqueId id;
    std::memcpy(id.bytes.data(), &native, sizeof(native));
    return id;
  }

  Result<NcclCommunicator> InitRank(const NcclUniqueId& id, int num_ranks, int rank) override {
    ncclUniqueId native;
    std::memcpy(&native, id.bytes.data(), sizeof(native));
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    config.minCTAs = 1;
    config.maxCTAs = kMostThreadBlocks;
    ncclComm_t communicator = nullptr;
    MOE_RETURN_IF_ERROR(
        Check(call_.init_rank(&communicator, num_ranks, native, rank, &config), "ncclCommInitRankConfig"));
    return NcclCommunicator{communicator};
  }

  Result<bool> Settled(NcclCommunicator communicator) override {
    ncclResult_t state = ncclSuccess;
    MOE_RETURN_IF_ERROR(Check(call_.async_error(Native(communicator), &state), "ncclCommGetAsyncError"));
    if (state == ncclInProgress) return false;
    MOE_RETURN_IF_ERROR(Check(state, "NCCL"));
    return true;
  }

  Status GroupStart() override { return Check(call_.group_start(), "ncclGroupStart"); }
  Status GroupEnd() override { return Check(call_.group_end(), "ncclGroupEnd"); }

  Status Send(DeviceSpan from, int peer, NcclCommunicator communicator, DeviceStream stream) override {
    return Check(call_.send(from.address, from.bytes, ncclUint8, peer, Native(communicator),
                            static_cast<cudaStream_t>(stream.handle)),
                 "ncclSend");
  }
  Status Receive(DeviceSpan into, int peer, NcclCommunicator communicator, DeviceStream stream) override {
    return Check(call_.receive(into.address, into.bytes, ncclUint8, peer, Native(communicator),
                               static_cast<cudaStream_t>(stream.handle)),
                 "ncclRecv");
  }

  Status Finalize(NcclCommunicator communicator) override {
    return Check(call_.finalize(Native(communicator)), "ncclCommFinalize");
  }
  Status Destroy(NcclCommunicator communicator) override {
    return Check(call_.destroy(Native(communicator)), "ncclCommDestroy");
  }
  Status Abort(NcclCommunicator communicator) override {
    return Check(call_.abort(Native(communicator)), "ncclCommAbort");
  }

 private:
  // A non-blocking communicator answers "in progress" to what it has accepted.
  Status Check(ncclResult_t result, const char* call) const {
    if (result == ncclSuccess || result == ncclInProgress) return Status::Ok();
    // NCCL keeps the last error's details for the whole process; it knows none for a null communicator's sake.
    const char* details = call_.last_error(nullptr);
    const bool some = details != nullptr && *details != '\0';
    return Unavailable(call, ": ", call_.error_text(result), some ? Cat(" (", details, ")") : "");
  }

  const Functions call_;
};

}  // namespace

Result<std::unique_ptr<NcclApi>> OpenNccl() {
  const Result<SharedLibrary> library = SharedLibrary::Open({"libnccl.so.2", MOE_CUDA_LIBRARIES "/libnccl.so.2"});
  if (!library.ok()) return library.status().WithContext("NCCL is not here");
  Functions functions;
  MOE_RETURN_IF_ERROR(functions.Load(*library));
  return std::unique_ptr<NcclApi>(std::make_unique<NcclLibrary>(functions));
}

bool BuiltWithNccl() { return true; }

}  // namespace moe
