#include "device/cublas.h"

#include <cublas_v2.h>

#include <vector>

#include "device/shared_library.h"

namespace moe {
namespace {

Result<cudaDataType_t> DataType(GemmType type) {
  switch (type) {
    case GemmType::kF32: return CUDA_R_32F;
    case GemmType::kBf16: return CUDA_R_16BF;
    case GemmType::kF16: return CUDA_R_16F;
  }
  return Internal("grouped GEMM: type ", static_cast<int>(type), " is unknown");
}

}  // namespace

struct Cublas::Functions {
  decltype(&cublasCreate_v2) create = nullptr;
  decltype(&cublasDestroy_v2) destroy = nullptr;
  decltype(&cublasSetStream_v2) set_stream = nullptr;
  decltype(&cublasGetStatusName) status_name = nullptr;
  decltype(&cublasGetStatusString) status_text = nullptr;
  decltype(&cublasGemmGroupedBatchedEx) grouped_gemm = nullptr;
};

// One entry a group, in the order that the call wants them.
struct Cublas::Arguments {
  std::vector<cublasOperation_t> transposed, plain;
  std::vector<int> outputs, rows, inner, counts;
  std::vector<float> one, zero;

  void Clear() {
    for (auto* list : {&transposed, &plain}) list->clear();
    for (auto* list : {&outputs, &rows, &inner, &counts}) list->clear();
    for (auto* list : {&one, &zero}) list->clear();
  }
  void Add(const GemmGroup& group) {
    transposed.push_back(CUBLAS_OP_T);
    plain.push_back(CUBLAS_OP_N);
    outputs.push_back(group.outputs);
    rows.push_back(group.rows);
    inner.push_back(group.inner);
    counts.push_back(group.count);
    one.push_back(1.0F);
    zero.push_back(0.0F);
  }
};

Cublas::Cublas() : functions_(std::make_unique<Functions>()), arguments_(std::make_unique<Arguments>()) {}

Cublas::~Cublas() {
  if (handle_ != nullptr) functions_->destroy(static_cast<cublasHandle_t>(handle_));
}

Result<std::unique_ptr<Cublas>> Cublas::Open() {
  const std::string name = Cat("libcublas.so.", CUBLAS_VER_MAJOR);
  MOE_ASSIGN_OR_RETURN(const SharedLibrary library, SharedLibrary::Open({name, Cat(MOE_CUDA_LIBRARIES, "/", name)}));
  std::unique_ptr<Cublas> cublas(new Cublas);
  Functions& functions = *cublas->functions_;
  MOE_RETURN_IF_ERROR(library.Load("cublasCreate_v2", &functions.create));
  MOE_RETURN_IF_ERROR(library.Load("cublasDestroy_v2", &functions.destroy));
  MOE_RETURN_IF_ERROR(library.Load("cublasSetStream_v2", &functions.set_stream));
  MOE_RETURN_IF_ERROR(library.Load("cublasGetStatusName", &functions.status_name));
  MOE_RETURN_IF_ERROR(library.Load("cublasGetStatusString", &functions.status_text));
  MOE_RETURN_IF_ERROR(library.Load("cublasGemmGroupedBatchedEx", &functions.grouped_gemm));
  cublasHandle_t handle = nullptr;
  MOE_RETURN_IF_ERROR(cublas->Check(functions.create(&handle), "cublasCreate"));
  cublas->handle_ = handle;
  return cublas;
}

// cuBLAS is column-major: what is row-major (rows, outputs) for us is (outputs, rows) for it, and so is the product:
// out' (outputs, rows) = weights (outputs, inner), which it sees as (inner, outputs) and transposes, times in' (inner,
// rows). The leading dimension of a matrix is the length of its row with us.
Status Cublas::Run(const GroupedGemm& gemm, DeviceStream stream) {
  MOE_ASSIGN_OR_RETURN(const cudaDataType_t input, DataType(gemm.input_type));
  MOE_ASSIGN_OR_RETURN(const cudaDataType_t output, DataType(gemm.output_type));
  Arguments& a = *arguments_;
  a.Clear();
  for (const GemmGroup& group : gemm.groups) a.Add(group);
  auto* handle = static_cast<cublasHandle_t>(handle_);
  MOE_RETURN_IF_ERROR(
      Check(functions_->set_stream(handle, static_cast<cudaStream_t>(stream.handle)), "cublasSetStream"));
  const cublasStatus_t status = functions_->grouped_gemm(
      handle, a.transposed.data(), a.plain.data(), a.outputs.data(), a.rows.data(), a.inner.data(), a.one.data(),
      gemm.weights.as<const void* const>(), input, a.inner.data(), gemm.in.as<const void* const>(), input,
      a.inner.data(), a.zero.data(), gemm.out.as<void* const>(), output, a.outputs.data(),
      static_cast<int>(gemm.groups.size()), a.counts.data(), CUBLAS_COMPUTE_32F);
  return Check(status, "cublasGemmGroupedBatchedEx");
}

Status Cublas::Check(int status, const char* call) const {
  const auto code = static_cast<cublasStatus_t>(status);
  if (code == CUBLAS_STATUS_SUCCESS) return Status::Ok();
  const std::string message = Cat(call, ": ", functions_->status_name(code), " (", functions_->status_text(code), ")");
  return code == CUBLAS_STATUS_ALLOC_FAILED ? ResourceExhausted(message) : Internal(message);
}

}  // namespace moe
