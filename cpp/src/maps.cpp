#include "fairsteer/maps.hpp"

#include <algorithm>
#include <type_traits>

#include "fairsteer/row_sort.hpp"

namespace fairsteer {

template <class T>
void apply_maps(const RowsView<T>& rows, const std::int64_t* codes, Index n_groups,
                const double* linear, const double* offset, T* out) {
  using S = std::conditional_t<std::is_same_v<T, double>, double, float>;
  const Index d = rows.cols;
  const RowsByCode sorted = sort_rows_by_code(codes, rows.rows, n_groups);
  Index longest = 1;
  for (Index a = 0; a < n_groups; ++a) longest = std::max(longest, sorted.size(a));
  const Index limit = std::min(longest, std::clamp<Index>((Index{1} << 19) / d, 128, 1024));
  MatrixOf<S> block(d, limit);  // a row of X is a column here
  MatrixOf<S> mapped(d, limit);
  for (Index a = 0; a < n_groups; ++a) {
    // Row-major storage read as column-major is the transpose.
    const MatrixOf<S> transposed = MatrixView(linear + a * d * d, d, d).template cast<S>();
    const VectorOf<S> shift = VectorView(offset + a * d, d).template cast<S>();
    const Index* which = sorted.rows.data() + sorted.begin[a];
    for (Index start = 0; start < sorted.size(a); start += limit) {
      const Index n = std::min(limit, sorted.size(a) - start);
      for (Index i = 0; i < n; ++i) {
        const T* source = rows.row(which[start + i]);
        for (Index j = 0; j < d; ++j) block(j, i) = static_cast<S>(source[j * rows.col_stride]);
      }
      mapped.leftCols(n).noalias() = transposed.transpose() * block.leftCols(n);
      for (Index i = 0; i < n; ++i) {
        T* target = out + which[start + i] * d;
        for (Index j = 0; j < d; ++j) target[j] = static_cast<T>(mapped(j, i) + shift[j]);
      }
    }
  }
}

template void apply_maps(const RowsView<float>&, const std::int64_t*, Index, const double*,
                         const double*, float*);
template void apply_maps(const RowsView<double>&, const std::int64_t*, Index, const double*,
                         const double*, double*);
template void apply_maps(const RowsView<Eigen::half>&, const std::int64_t*, Index, const double*,
                         const double*, Eigen::half*);

}  // namespace fairsteer
