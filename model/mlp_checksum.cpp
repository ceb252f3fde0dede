#include "model/mlp_checksum.h"

#include <span>
#include <vector>

#include "model/content_hash.h"

namespace moe {

std::uint64_t Checksum(const MlpWeights& weights) {
  ContentHash hash;
  for (const PackedMatrix* matrix : {&weights.gate, &weights.up, &weights.down}) {
    hash.AddNumber(static_cast<std::uint64_t>(matrix->type()));
    hash.AddNumber(matrix->rows());
    hash.AddNumber(matrix->cols());
    hash.AddBytes(matrix->storage());
  }
  for (const std::vector<float>* bias : {&weights.gate_bias, &weights.up_bias, &weights.down_bias}) {
    hash.AddNumber(bias->size());
    hash.AddBytes(std::as_bytes(std::span(*bias)));
  }
  return hash.value();
}

}  // namespace moe
