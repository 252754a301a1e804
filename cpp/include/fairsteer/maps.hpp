// One affine map a group, applied to rows.
#pragma once

#include <cstdint>
#include <type_traits>

#include "fairsteer/types.hpp"

namespace fairsteer {

/// out_i = A[codes[i]] x_i + b[codes[i]] for every row i; rows with a negative code are not
/// written.
///
/// `linear` is [group][d][d] in row-major order, `offset` [group][d], both in the precision of the
/// product: that of the rows, and float for half precision. `out` is row-major, of the type of the
/// rows. The result does not depend on `n_threads`, each of which calls BLAS.
template <class T>
void apply_maps(const RowsView<T>& rows, const std::int64_t* codes, Index n_groups,
                const std::conditional_t<std::is_same_v<T, double>, double, float>* linear,
                const std::conditional_t<std::is_same_v<T, double>, double, float>* offset, T* out,
                Index n_threads = 1);

}  // namespace fairsteer
