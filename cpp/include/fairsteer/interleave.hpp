// Tables hold their columns side by side; the core reads rows.
#pragma once

#include "fairsteer/types.hpp"

namespace fairsteer {

/// Lays columns of `n_rows` numbers each out row by row, `stride` from row to row of `out`, which
/// overlaps none of them. T is float or double. Cost: every number is read and written once.
template <class T>
void interleave(const T* const* columns, Index n_columns, Index n_rows, T* out, Index stride);

}  // namespace fairsteer
