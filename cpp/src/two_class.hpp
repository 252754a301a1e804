// The affine problem of a group with two classes (theory section 6). Two pairs of matrices are
// diagonal at once, so that X in B = U X V^T meets
//   f(X) = 1/2 sum_ij h_ij X_ij^2 + 1/2 sum_i g_i (X_i . nu - mu_i)^2 - log|det X|,
//   h_ij = (1 - a_i) c0_j + a_i c1_j,   g_i = a_i (1 - a_i),
// the shift eliminated: rows couple through the determinant alone.
#pragma once

#include "descent.hpp"
#include "fairsteer/covariances.hpp"
#include "fairsteer/types.hpp"
#include "linalg.hpp"

namespace fairsteer::detail {

/// One class of a group's problem, or several taken together; means relative to their averages.
struct Side {
  double weight;
  Matrix precision;   ///< of the group, carrying the weight
  Matrix covariance;  ///< canonical
  Vector mu;          ///< of the group
  Vector nu;          ///< canonical
};

class TwoClassProblem {
 public:
  TwoClassProblem(const Side& one, const Side& other);

  Matrix to_diagonal(const Matrix& B) const {
    return linalg::product(linalg::product(left_.inverse, B), right_.inverse.transpose());
  }
  Matrix from_diagonal(const Matrix& X) const {
    return linalg::product(linalg::product(left_.U, X), right_.U.transpose());
  }

  /// Directions paired by the rearrangement inequality, ascending precision ratios with descending
  /// covariance ratios, signs by the differences of the means; with equal means the global optimum.
  /// Directions whose ratios coincide may be turned freely: there the pairing follows `guide`.
  Matrix paired(const Matrix& guide) const;

  double value(const Matrix& X) const;

  /// Exact minimisation over one row after the other, at most `max_sweeps` times over all of them,
  /// or until a sweep gains less than `options.tol`, or time is up. It tries both signs of a row,
  /// so that it leaves poor local optima.
  void descend_rows(Matrix& X, Index max_sweeps, const DescentOptions& options) const;

  /// Quasi-Newton steps to the nearest local optimum.
  Descent minimise(Matrix& X, const DescentOptions& options) const;

 private:
  class Relative;

  Index size() const { return a_.size(); }

  Diagonaliser left_;   // of the precisions
  Diagonaliser right_;  // of the covariances
  Vector a_;            // share of the second class in the precision, by direction
  Vector c0_, c1_;      // variances of the classes, by direction
  Vector g_, mu_, nu_;
  Matrix h_;
};

}  // namespace fairsteer::detail
