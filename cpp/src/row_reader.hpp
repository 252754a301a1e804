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

  /// The rows with these numbers; null: those that follow `first`.
  RowList<S> read(const Index* which, Index first, Index count, S* staging) const {
    if constexpr (std::is_same_v<T, S>)
      if (in_place())
        return {which ? rows_.data : rows_.row(first), rows_.row_stride, which, count, rows_.cols};
    stage(which, first, count, staging);
    return {staging, rows_.cols, nullptr, count, rows_.cols};
  }

 private:
  void stage(const Index* which, Index first, Index count, S* out) const {
    const Index d = rows_.cols;
    const auto row_at = [&](Index i) { return rows_.row(which ? which[i] : first + i); };
    if constexpr (std::is_same_v<T, Eigen::half>) {
      if (rows_.col_stride == 1) {
        for (Index i = 0; i < count; ++i) widen(row_at(i), d, out + i * d);
        return;
      }
    }
    // Where columns are the contiguous direction, a few of them are read side by side.
    constexpr Index kColumns = 16;
    for (Index j0 = 0; j0 < d; j0 += kColumns)
      for (Index i = 0; i < count; ++i) {
        const T* row = row_at(i);
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

/// Some rows of a task, and the slots of the task that they belong to.
struct Chunk {
  Index count;
  Index first;           // row
  const Index* which;    // numbers of the rows; null: they follow the first
  const Index* slot;     // within the task
  const double* weight;  // null: all one
  std::array<Index, kChunk> cell;

  // What these point at, where it lies nowhere else; and a place in a block for every row.
  std::array<Index, kChunk> own_row;
  std::array<Index, kChunk> own_slot;
  std::array<double, kChunk> own_weight;
  std::array<Index, kChunk> position;
};

}  // namespace fairsteer::detail
