// Rows of activations in int8, shared out over a pool: what every product with quantized weights begins with.
#pragma once

#include "core/matrix.h"
#include "core/parallel.h"
#include "core/thread_pool.h"
#include "kernels/kernels.h"
#include "kernels/quantize.h"

namespace moe {

/// out = x, (rows, cols), in the groups of weights of `type`.
inline void QuantizeRows(ThreadPool& pool, const Kernels& kernels, MatrixView<const float> x, WeightType type,
                         QuantizedRows& out) {
  out.Shape(x.rows(), x.cols(), type);
  ShareOut(pool, x.rows(), x.rows() * x.cols(), [&](std::size_t row, int) {
    kernels.QuantizeRow(x.row(row), GroupSize(type), out.Groups(row, 0, x.cols()));
  });
}

}  // namespace moe
