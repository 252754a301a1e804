// Rows of any type and layout, read some at a time, with what is known of each: its cell and its
// weight.
#pragma once

#include <algorithm>
#include <array>
#include <type_traits>

#include "fairsteer/moments.hpp"
#include "kernels.hpp"

namespace fairsteer::detail {

// Rows that are read at a time.
constexpr Index kChunk = 256;

/// The precision in which products of rows are formed.
template <class T>
using RowScalar = std::conditional_t<std::is_same_v<T, double>, double, float>;

/// Rows as lists of float or double rows.
template <class T>
class RowReader {
 public:
  using S = RowScalar<T>;

  explicit RowReader(const RowsView<T>& rows) : rows_(rows) {}

  /// Whether rows are read where they lie; otherwise they are copied to the `staging` of `read`.
  bool in_place() const { return std::is_same_v<T, S> && rows_.col_stride == 1; }

  RowList<S> read(const Index* which, Index count, S* staging) const {
    if constexpr (std::is_same_v<T, S>)
      if (in_place()) return {rows_.data, rows_.row_stride, which, count, rows_.cols};
    stage(which, count, staging);
    return {staging, rows_.cols, nullptr, count, rows_.cols};
  }

 private:
  void stage(const Index* which, Index count, S* out) const {
    const Index d = rows_.cols;
    if constexpr (std::is_same_v<T, Eigen::half>) {
      if (rows_.col_stride == 1) {
        for (Index i = 0; i < count; ++i) widen(rows_.row(which[i]), d, out + i * d);
        return;
      }
    }
    // Where columns are the contiguous direction, a few of them are read side by side.
    constexpr Index kColumns = 16;
    for (Index j0 = 0; j0 < d; j0 += kColumns)
      for (Index i = 0; i < count; ++i) {
        const T* row = rows_.row(which[i]);
        for (Index j = j0; j < std::min(d, j0 + kColumns); ++j)
          out[i * d + j] = static_cast<S>(row[j * rows_.col_stride]);
      }
  }

  RowsView<T> rows_;
};

/// Codes and weights of rows.
struct RowCells {
  const std::int64_t* classes;
  const std::int64_t* groups;
  const double* weights;  // null: all one
  Index n_groups;

  /// Negative for a row that is left out.
  Index of(Index row) const {
    const std::int64_t k = classes[row], a = groups[row];
    const bool counts = (k | a) >= 0 && (weights == nullptr || weights[row] > 0);
    return counts ? k * n_groups + a : -1;
  }
};

/// Some rows of a task, and the slots that they belong to.
struct Chunk {
  Index count;
  std::array<Index, kChunk> row;
  std::array<Index, kChunk> slot;  // within the task
  std::array<Index, kChunk> cell;
  std::array<Index, kChunk> position;  // in a block
  std::array<double, kChunk> weight;
};

}  // namespace fairsteer::detail
