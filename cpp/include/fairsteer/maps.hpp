// One affine map a group, applied to rows.
#pragma once

#include <cstdint>
#include <type_traits>

#include "fairsteer/types.hpp"
#include "fairsteer/watch.hpp"

namespace fairsteer {

/// What maps are made of. A smaller kind costs less time and memory.
enum class MapKind {
  translation,  ///< x + offset
  diagonal,     ///< linear (x - centre) + offset, feature by feature
  dense,        ///< linear (x - centre) + offset
};

/// The numbers of maps: double for double rows, else float.
template <class T>
using MapScalar = std::conditional_t<std::is_same_v<T, double>, double, float>;

/// One map a group. Views. A centre near the rows of its group keeps the digits that a large mean
/// would cost in the product.
template <class S>
struct MapsView {
  MapKind kind;
  Index n_groups;
  Index n_features;
  const S* linear;  ///< dense [group][d][d] in row-major order, diagonal [group][d], or null
  const S* centre;  ///< [group][d], or null for a translation
  const S* offset;  ///< [group][d]
};

/// out_i = the map of codes[i] applied to x_i, for every row i; rows with a negative code are not
/// written.
///
/// `out` is row-major, of the type of the rows, and does not overlap them. The result does not
/// depend on `n_threads`, each of which calls BLAS for dense maps: the caller keeps BLAS to one
/// thread of its own.
///
/// Throws std::invalid_argument for a code of `n_groups` or more and for rows of another length
/// than the maps, before anything is written; what `watch` throws, after which some rows have been
/// written. Cost: O(n d^2) for dense maps, else O(n d). Safe to call from several threads at a
/// time.
template <class T>
void apply_maps(const RowsView<T>& rows, const std::int64_t* codes,
                const MapsView<MapScalar<T>>& maps, T* out, Index n_threads = 1,
                const Watch* watch = nullptr);

}  // namespace fairsteer
