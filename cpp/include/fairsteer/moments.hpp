// Weight, mean and scatter of many subgroups in one pass over the rows; mergeable.
#pragma once

#include <cstdint>

#include "fairsteer/types.hpp"

namespace fairsteer {

enum class CovarianceModel {
  tied,      ///< one scatter a group, about the means of its subgroups
  full,      ///< one scatter a subgroup
  diagonal,  ///< one variance a feature and subgroup
};

/// The accumulators of K classes x G groups, owned by the caller. Subgroup (k, a) is cell
/// k * n_groups + a. All sums are about the cell's own mean, so that a large offset costs no
/// digits.
///
/// With `i` over the rows of a cell, s_i their weights and y_i = x_i - mean:
struct MomentSums {
  CovarianceModel model;
  Index n_classes;
  Index n_groups;
  Index n_features;
  double* weight;         ///< [cell]            sum s_i
  double* weight_square;  ///< [cell]            sum s_i^2 (for the effective sample size)
  double* mean;           ///< [cell][feature]   sum s_i x_i / sum s_i
  double*
      scatter;  ///< full: [cell][d][d], tied: [group][d][d]: sum s_i y_i y_i^T; diagonal: [cell][d]
  double* cubic;    ///< [cell][d]         sum s_i |y_i|^2 y_i; diagonal: sum s_i y_ij^3
  double* quartic;  ///< [cell]            sum s_i |y_i|^4;     diagonal: [cell][d] sum s_i y_ij^4

  Index n_cells() const { return n_classes * n_groups; }
};

/// Adds rows to the sums. `classes[i]` and `groups[i]` are the codes of row i, negative to leave it
/// out; `weights` may be null (all one); a row of weight zero is left out.
///
/// T is float, double or Eigen::half. Products of float and half rows are formed in float over a
/// few thousand rows at a time and summed in double. The result does not depend on `n_threads`,
/// each of which calls BLAS: the caller keeps BLAS to one thread of its own.
template <class T>
void update_moments(const MomentSums& sums, const RowsView<T>& rows, const std::int64_t* classes,
                    const std::int64_t* groups, const double* weights, Index n_threads = 1);

/// Adds the sums of `other`, whose cell c is cell `cells[c]` here (Chan, Golub and LeVeque 1979).
///
/// Exact, but for the `quartic` of the tied model: there a cell's own scatter is not kept, and the
/// group's stands in for it in a term of relative size 1/n.
void merge_moments(const MomentSums& sums, const MomentSums& other, const std::int64_t* cells);

}  // namespace fairsteer
