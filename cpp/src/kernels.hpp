// Loops over blocks of rows. Everything else that takes time goes through BLAS. T and S are float
// or double.
#pragma once

#include <cstdint>

#include "fairsteer/types.hpp"

namespace fairsteer::detail {

/// Rows that lie `stride` elements apart, features side by side. `which` numbers them; null: all,
/// in order.
template <class T>
struct RowList {
  const T* data;
  Index stride;
  const Index* which;
  Index count;
  Index n_features;
};

// `weights` has one number for each row of the list; null stands for ones. `cells` and `slots` say
// which line of a table belongs to a row.

/// sums[slot] += weight (x - origins[cell]) for every row
template <class T>
void add_rows(const RowList<T>& rows, const double* origins, const Index* cells,
              const double* weights, double* sums, const Index* slots);

/// y = block[position] = sqrt(weight) (x - centres[cell]) for every row, with zeros up to `ld`, the
/// length of a line of the block. squares[slot] += (|y|^2, |y|^4 / weight), cubes[slot] += |y|^2 y
/// / sqrt(weight), these in lines of `cube_ld`: d, filled up to whole packs of double.
template <class T>
void centre_rows(const RowList<T>& rows, const T* centres, const Index* cells,
                 const double* weights, T* block, const Index* positions, Index ld, double* squares,
                 double* cubes, const Index* slots);

/// The same blocks with a feature's numbers side by side, `ld` from feature to feature: BLAS
/// multiplies them faster; and the squares of the rows' norms.
template <class T>
void centre_columns(const RowList<T>& rows, const T* centres, const Index* cells,
                    const double* weights, T* block, Index ld, double* norms);

/// sums += scale factor y for some rows y that follow one another.
template <class S>
void add_weighted_columns(const S* block, Index ld, Index count, Index n_features, const S* factors,
                          double scale, double* sums);

/// sums[slot] += weight (y^2, y^3, y^4) for every row, where y = x - centres[cell]: three numbers a
/// feature, in three stretches.
template <class T>
void add_powers(const RowList<T>& rows, const double* centres, const Index* cells,
                const double* weights, double* sums, const Index* slots);

/// Whether `add_small_product` beats BLAS.
inline bool has_small_product(Index n_features) { return n_features <= 64; }
/// The length to which it needs its rows filled up with zeros.
template <class S>
Index small_product_stride(Index n_features) {
  constexpr Index width = static_cast<Index>(64 / sizeof(S));
  return (n_features + width - 1) / width * width;
}
/// The columns, of that length, of its result.
inline Index small_product_columns(Index n_features) { return (n_features + 7) / 8 * 8; }

/// Lower triangle of product += block^T block; entries of the other one may be written too.
template <class S>
void add_small_product(const S* block, Index ld, Index count, Index n_features, double* product);

/// The lower triangle of sum, (d, d), += that of product (columns of `ld`); `first`: =.
template <class S>
void add_lower(const S* product, Index ld, Index d, double* sum, bool first);

/// The lower triangle of sum, (d, d), += factor x x^T.
void add_outer(const double* x, double factor, Index d, double* sum);

/// Makes the upper triangle of a square matrix, `ld` from column to column, that of the lower one.
void mirror_lower(double* A, Index ld, Index d);

/// out = A x, of a symmetric matrix whose lower triangle is read, (d, d).
void symmetric_times(const double* lower, Index d, const double* x, double* out);

/// One row: out = A x, A in row-major order.
template <class T>
void map_row(const T* A, const T* x, Index d, T* out);

/// out = a + b; `out` may be one of them.
template <class T>
void add_vectors(const T* a, const T* b, Index n, T* out);

void widen(const Eigen::half* from, Index n, float* to);
void narrow(const float* from, Index n, Eigen::half* to);

}  // namespace fairsteer::detail
