// Loops over blocks of rows, compiled for several instruction sets and chosen when the module is
// loaded. Everything else that takes time goes through BLAS.
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
void add_rows(const RowList<float>& rows, const double* origins, const Index* cells,
              const double* weights, double* sums, const Index* slots);
void add_rows(const RowList<double>& rows, const double* origins, const Index* cells,
              const double* weights, double* sums, const Index* slots);

/// block[position] = sqrt(weight) (x - centres[cell]) for every row, with zeros up to `ld`, the
/// length of a line of the block; norms: the squares of these.
void centre_rows(const RowList<float>& rows, const float* centres, const Index* cells,
                 const double* weights, float* block, const Index* positions, Index ld,
                 double* norms);
void centre_rows(const RowList<double>& rows, const double* centres, const Index* cells,
                 const double* weights, double* block, const Index* positions, Index ld,
                 double* norms);

/// sums[slot] += factor block[position] for every row
void add_weighted(const float* block, const Index* positions, Index ld, Index count,
                  Index n_features, const double* factors, double* sums, const Index* slots);
void add_weighted(const double* block, const Index* positions, Index ld, Index count,
                  Index n_features, const double* factors, double* sums, const Index* slots);

/// The same blocks with a feature's numbers side by side, `ld` from feature to feature: BLAS
/// multiplies them faster.
void centre_columns(const RowList<float>& rows, const float* centres, const Index* cells,
                    const double* weights, float* block, Index ld, double* norms);
void centre_columns(const RowList<double>& rows, const double* centres, const Index* cells,
                    const double* weights, double* block, Index ld, double* norms);

/// sums += scale factor y for some rows y that follow one another.
void add_weighted_columns(const float* block, Index ld, Index count, Index n_features,
                          const float* factors, double scale, double* sums);
void add_weighted_columns(const double* block, Index ld, Index count, Index n_features,
                          const double* factors, double scale, double* sums);

/// sums[slot] += weight (y^2, y^3, y^4) for every row, where y = x - centres[cell]: three numbers a
/// feature, in three stretches.
void add_powers(const RowList<float>& rows, const double* centres, const Index* cells,
                const double* weights, double* sums, const Index* slots);
void add_powers(const RowList<double>& rows, const double* centres, const Index* cells,
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
void add_small_product(const float* block, Index ld, Index count, Index n_features,
                       double* product);
void add_small_product(const double* block, Index ld, Index count, Index n_features,
                       double* product);

/// sum[i] += the lower triangle of product (columns of `ld`), sum being (d, d).
void add_lower(const float* product, Index ld, Index d, double* sum);
void add_lower(const double* product, Index ld, Index d, double* sum);

/// One row: out = A x, A in row-major order.
void map_row(const float* A, const float* x, Index d, float* out);
void map_row(const double* A, const double* x, Index d, double* out);

/// out = a + b
void add(const float* a, const float* b, Index n, float* out);
void add(const double* a, const double* b, Index n, double* out);

void widen(const Eigen::half* from, Index n, float* to);
void narrow(const float* from, Index n, Eigen::half* to);

}  // namespace fairsteer::detail
