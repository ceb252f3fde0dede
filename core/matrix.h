// A view of a row-major matrix whose rows may lie further apart than they are long.
#pragma once

#include <cstddef>
#include <span>
#include <type_traits>

#include "core/check.h"

namespace moe {

/// (rows, cols), row-major, `stride` elements from one row to the next. Owns nothing; never outlives a step.
template <typename T>
class MatrixView {
 public:
  MatrixView() = default;
  MatrixView(T* data, std::size_t rows, std::size_t cols, std::size_t stride)
      : data_(data), rows_(rows), cols_(cols), stride_(stride) {
    MOE_CHECK(stride >= cols);
  }
  MatrixView(T* data, std::size_t rows, std::size_t cols) : MatrixView(data, rows, cols, cols) {}

  /// A view of mutable elements is also one of constant elements.
  operator MatrixView<const T>() const  // NOLINT(google-explicit-constructor)
      requires(!std::is_const_v<T>) {
    return {data_, rows_, cols_, stride_};
  }

  T* data() const { return data_; }
  std::size_t rows() const { return rows_; }
  std::size_t cols() const { return cols_; }
  std::size_t stride() const { return stride_; }

  std::span<T> row(std::size_t i) const { return {data_ + i * stride_, cols_}; }
  T& operator()(std::size_t i, std::size_t j) const { return data_[i * stride_ + j]; }

  /// Rows [begin, begin + count).
  MatrixView Rows(std::size_t begin, std::size_t count) const {
    MOE_CHECK(begin + count <= rows_);
    return {data_ + begin * stride_, count, cols_, stride_};
  }
  /// Columns [begin, begin + count) of every row.
  MatrixView Columns(std::size_t begin, std::size_t count) const {
    MOE_CHECK(begin + count <= cols_);
    return {data_ + begin, rows_, count, stride_};
  }

 private:
  T* data_ = nullptr;
  std::size_t rows_ = 0;
  std::size_t cols_ = 0;
  std::size_t stride_ = 0;
};

}  // namespace moe
