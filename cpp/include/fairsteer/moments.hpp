// Weight, mean and scatter of many subgroups in one pass over the rows; mergeable.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fairsteer/types.hpp"
#include "fairsteer/watch.hpp"

namespace fairsteer {

enum class CovarianceModel {
  tied,      ///< one scatter a group, about the means of its subgroups
  full,      ///< one scatter a subgroup
  diagonal,  ///< one variance a feature and subgroup
};

/// The model of a name; throws std::invalid_argument for any but "tied", "full" and "diagonal".
CovarianceModel covariance_model(const std::string& name);

/// K classes x G groups of rows with d features. Subgroup (k, a) is cell k * n_groups + a.
struct MomentShape {
  CovarianceModel model;
  Index n_classes;
  Index n_groups;
  Index n_features;

  Index n_cells() const { return n_classes * n_groups; }
  /// Scatters: one a group when tied, else one a cell.
  Index n_scatters() const { return model == CovarianceModel::tied ? n_groups : n_cells(); }
  Index scatter_of(Index cell) const {
    return model == CovarianceModel::tied ? cell % n_groups : cell;
  }
  Index scatter_size() const {
    return model == CovarianceModel::diagonal ? n_features : n_features * n_features;
  }
  Index quartic_size() const { return model == CovarianceModel::diagonal ? n_features : 1; }
  /// From one variance of a scatter to the next.
  Index variance_stride() const { return model == CovarianceModel::diagonal ? 1 : n_features + 1; }
};

/// Views of the sums over the rows of every cell. All are about the cell's own mean, so that a
/// large offset costs no digits. A cell of weight 0 holds no rows: its mean and its sums about it,
/// and the scatter of a group of such cells, are not read; the first rows overwrite them. Scatters
/// that are matrices are symmetric.
///
/// With `i` over the rows of a cell, s_i their weights and y_i = x_i - mean:
struct MomentSums : MomentShape {
  double* weight;         ///< [cell]            sum s_i
  double* weight_square;  ///< [cell]            sum s_i^2 (for the effective sample size)
  double* mean;           ///< [cell][feature]   sum s_i x_i / sum s_i
  double*
      scatter;  ///< full: [cell][d][d], tied: [group][d][d]: sum s_i y_i y_i^T; diagonal: [cell][d]
  double* cubic;    ///< [cell][d]         sum s_i |y_i|^2 y_i; diagonal: sum s_i y_ij^3
  double* quartic;  ///< [cell]            sum s_i |y_i|^4;     diagonal: [cell][d] sum s_i y_ij^4

  /// Whether any row stands behind a scatter.
  bool holds_rows(Index which) const;
};

/// Sums that own their memory, of no rows at first.
class Moments {
 public:
  explicit Moments(const MomentShape& shape);

  const MomentShape& shape() const { return shape_; }
  MomentSums sums();

 private:
  MomentShape shape_;
  std::vector<double> weight_, weight_square_, mean_, scatter_, cubic_, quartic_;
};

/// Throws std::invalid_argument unless there is a class, a group and a feature, weights and their
/// squares are finite and not negative, and means and variances are finite, the latter not
/// negative, wherever there are rows.
void check_sums(const char* function, const char* argument, const MomentSums& sums);

/// Adds rows to the sums. `classes[i]` and `groups[i]` are the codes of row i, negative to leave it
/// out; `weights` may be null (all one); a row of weight zero is left out.
///
/// T is float, double or Eigen::half. Products of float and half rows are formed in float over a
/// few thousand rows at a time and summed in double; where they leave the range of float, in
/// double. The result does not depend on `n_threads`, each of which calls BLAS: the caller keeps
/// BLAS to one thread of its own.
///
/// Expects what `check_sums` checks, rows of the sums' length, codes below the numbers of classes
/// and groups, and weights that are finite and not negative; throws std::invalid_argument
/// otherwise. Throws NumericalError, with the cell, when a row is not finite or too large to be
/// squared, and what `watch` throws. Whatever is thrown, the sums are what they were (strong
/// guarantee), where not read perhaps zero.
///
/// Cost: O(n d^2), diagonal O(n d); memory O(n + cells d), and for rows out of the range of float
/// as much as the sums. Safe for different sums from several threads at a time.
template <class T>
void update_moments(const MomentSums& sums, const RowsView<T>& rows, const std::int64_t* classes,
                    const std::int64_t* groups, const double* weights, Index n_threads = 1,
                    const Watch* watch = nullptr);

/// Adds the sums of `other`, whose cell c is cell `cells[c]` here (Chan, Golub and LeVeque 1979).
///
/// Exact, but for the `quartic` of the tied model: there a cell's own scatter is not kept, and the
/// group's stands in for it in a term of relative size 1/n.
///
/// Expects sums of one model and one number of features that do not overlap in memory, what
/// `check_sums` checks, and `cells` that are distinct, lie within the sums, and (tied) lead the
/// cells of one group to one group; throws std::invalid_argument otherwise, with nothing changed.
/// Throws NumericalError, with the cell, when the merged sums are too large: they are spoilt then,
/// and so are they when memory runs out (basic guarantee). Cost: O(cells d + scatters d^2).
void merge_moments(const MomentSums& sums, const MomentSums& other, const std::int64_t* cells);

}  // namespace fairsteer
