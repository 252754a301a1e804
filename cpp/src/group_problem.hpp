// The problem of one group (theory section 4), with the shift eliminated:
//   f(B) = 1/2 <B, Q[B]> - <B, J> - log|det B|,
//   Q[B] = sum_k P_k (B S_k + delta nu_k^T),   S_k = C_k + nu_k nu_k^T,
//   delta = -(sum_k P_k)^{-1} sum_k P_k B nu_k,
// where P_k carries the class weight. Means are relative to their averages, so that S_k is not
// dominated by an offset of the data.
#pragma once

#include <vector>

#include "descent.hpp"
#include "fairsteer/types.hpp"
#include "linalg.hpp"

namespace fairsteer::detail {

class GroupProblem {
 public:
  struct Term {
    Matrix precision;      ///< P_k: weight times the inverse covariance of the group's class
    Matrix second_moment;  ///< S_k
    Vector nu;
  };

  /// `linear` is J and `target` is sum_k P_k mu_k.
  GroupProblem(std::vector<Term> terms, Matrix linear, Vector target);

  /// The same problem for S in B = S R.
  GroupProblem transformed(const Matrix& R) const;

  /// The best shift for a map.
  Vector shift(const Matrix& B) const;

  /// Nearest symmetric positive-definite map, from the positive-definite `B` on: a convex problem
  /// (the paper's Theorem 4.1, in coordinates where R = I).
  Descent minimise_symmetric(Matrix& B, const DescentOptions& options) const;

  /// Nearest invertible map that descent from `B` reaches: `sweeps` over its rows, which may leave
  /// a poor basin, then Newton steps.
  Descent minimise_affine(Matrix& B, Index sweeps, const DescentOptions& options) const;

  double value(const Matrix& B) const;
  void quadratic(const Matrix& B, Matrix& out) const;
  const Matrix& linear() const { return J_; }

 private:
  void descend(Matrix& B, Index sweeps, const DescentOptions& options) const;

  std::vector<Term> terms_;
  Matrix J_;
  Vector target_;
  Matrix total_;             // sum_k P_k
  linalg::Cholesky factor_;  // of it
  Matrix nu_;                // (d, K)
  mutable Matrix scratch_, moved_;
};

}  // namespace fairsteer::detail
