// One affine map a group, applied to rows.
#pragma once

#include <cstdint>

#include "fairsteer/types.hpp"

namespace fairsteer {

/// out_i = A[codes[i]] x_i + b[codes[i]] for every row i; rows with a negative code are not
/// written.
///
/// `linear` is [group][d][d] in row-major order, `offset` [group][d]; `out` is row-major, of the
/// type of the rows. The product is formed in T, for half precision in float.
template <class T>
void apply_maps(const RowsView<T>& rows, const std::int64_t* codes, Index n_groups,
                const double* linear, const double* offset, T* out);

}  // namespace fairsteer
