// Two sets of sums about their own means become sums about the common mean (Chan, Golub and LeVeque
// 1979).
#pragma once

#include <vector>

#include "fairsteer/moments.hpp"

namespace fairsteer::detail {

/// What rows add up to in some cells, one an entry or a column: weights and means; and, where they
/// are multiplied, sums about `centre`, a point near the mean.
struct CellSums {
  CellSums(Index d, Index n_cells)
      : weight(Vector::Zero(n_cells)),
        weight_square(Vector::Zero(n_cells)),
        mean(Matrix::Zero(d, n_cells)) {}

  /// Sums of products, of no rows at first.
  void add_products() {
    trace = quartic = Vector::Zero(weight.size());
    centre = cubic = Matrix::Zero(mean.rows(), mean.cols());
  }

  CellSums of(const std::vector<Index>& cells) const {
    CellSums some(0, 0);
    some.weight = weight(cells);
    some.weight_square = weight_square(cells);
    some.trace = trace(cells);
    some.quartic = quartic(cells);
    some.mean = mean(Eigen::all, cells);
    some.centre = centre(Eigen::all, cells);
    some.cubic = cubic(Eigen::all, cells);
    return some;
  }

  Vector weight, weight_square;
  Matrix mean;
  Vector trace, quartic;
  Matrix centre, cubic;
};

/// Merges new rows into cells that share one scatter (tied or full), of which the lower triangle is
/// read and written alone.
class ChanMerge {
 public:
  /// Entry i of `added` goes to `cells[i]`. Only its weights, means and centres are read yet.
  ChanMerge(const MomentSums& sums, std::vector<Index> cells, CellSums added);

  /// Reads the scatter: before that of the new rows, which is about their centres, is added to it
  /// (or put there, where no rows were).
  void read_scatter();

  /// Writes weights, means and the sums of higher order: after it has been added.
  void finish(const Vector& trace, const Vector& quartic, const Matrix& cubic);

  const std::vector<Index>& cells() const { return cells_; }

 private:
  const MomentSums& sums_;
  std::vector<Index> cells_;
  CellSums added_;
  double* scatter_;
  double old_total_ = 0;  // weight behind the scatter
  double old_trace_ = 0;
  Vector old_weight_;             // of the cells
  Matrix difference_;             // new mean minus old one
  Matrix old_shift_, new_shift_;  // what is added to residuals about the old centres
  Matrix old_moved_, new_moved_;  // the old scatter times these
};

/// Sums of one cell of the diagonal model, about its mean.
struct DiagonalCell {
  double weight;
  double weight_square;
  const double* mean;
  const double* variance;
  const double* cubic;
  const double* quartic;
};

void merge_diagonal_cell(const MomentSums& sums, Index cell, const DiagonalCell& other);

/// What merge_moments does, its arguments checked, to the lower triangles of the scatters. Empty
/// `cells`: every cell to the same one.
void merge_cells(const MomentSums& sums, const MomentSums& other, const std::vector<Index>& cells);

/// Makes the upper triangles of some scatters those of their lower ones.
void complete_scatters(const MomentSums& sums, const std::vector<char>& which, Index n_threads = 1);

/// Throws NumericalError(what) with the first cell whose weight or mean is not finite, or else the
/// first whose variance is not (tied: the group).
void check_merged(const MomentSums& sums, const char* what);

}  // namespace fairsteer::detail
