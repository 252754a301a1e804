// Tied covariances, all invertible maps: theory section 5 in closed form, section 7 by
// block-coordinate descent.
//
// With Sigma_a = H_a H_a^T, everything that depends on the classes lies in the span Q_a (d x r) of
// the whitened mean differences H_a^{-1}(mu_ka - mu_ja), r <= min(d, K-1). The problem is solved
// there, at a cost that does not depend on d; outside of it any isometry is optimal, and the lift
// to d dimensions takes the one that moves points least.
#pragma once

#include <limits>
#include <vector>

#include "block_descent.hpp"
#include "linalg.hpp"

namespace fairsteer::detail {

/// B solves min over B of 1/2 |B|^2_T - <B, M> - log|det B|, T = L_t L_t^T:
/// with M L_t^{-T} = U diag(l) V^T,  B = U diag((l + sqrt(l^2 + 4)) / 2) V^T L_t^{-1}.
struct ClosedForm {
  Matrix U;
  Matrix V;
  Vector l;
  Vector x;
  Matrix L_t;

  ClosedForm(const ConstMatrixRef& T, const ConstMatrixRef& M);
  Matrix map() const;
  /// Singular values that say something; below them any isometry is optimal.
  Index n_informative() const;
  /// Takes, beyond the first `s` directions, the isometry that maximises <U X V^T, pull>.
  void complete(Index s, const ConstMatrixRef& pull);
};

// T and M of one group's problem, with the shift eliminated.
struct TiedProblem {
  Vector nu_mean, mu_mean;
  Matrix T, M;

  TiedProblem(const Matrix& C, const Matrix& nu, const Matrix& mu, const Vector& w)
      : nu_mean(nu * w), mu_mean(mu * w), T(C) {
    const Matrix centred = nu.colwise() - nu_mean, mu_centred = mu.colwise() - mu_mean;
    const Matrix weighted = centred * w.asDiagonal();
    linalg::add_product(weighted, centred.transpose(), T);
    M = linalg::product(mu_centred, weighted.transpose());
  }
};

class TiedModel {
 public:
  static constexpr bool kIterative = false;

  struct State {
    Matrix nu;              // (r, K) canonical means
    Matrix C;               // (r, r) canonical covariance
    std::vector<Matrix> B;  // maps within the spans
    std::vector<Vector> m;
    Mask known;        // classes of the canonical family
    Index origin = 0;  // the group that it was taken from
  };

  TiedModel(const Subgroups& subgroups, const IdealOptions& options);

  void start(State& state, Index group) const;
  bool has_class(const State& state, Index k) const { return state.known[k] != 0; }
  void fit_group(State& state, Index a, const Vector& w, double tol) const;
  void fit_canonical(State& state, const FamilyWeights& weights, const Mask& classes) const;
  Matrix divergences(const State& state) const;
  bool converged(const State&) const { return true; }  // closed form
  std::vector<double> path(const State&, Index) const { return {}; }

  /// About what `lift` takes at least, to go by how long the making of the model took.
  double seconds_to_lift() const;

  /// Maps in d dimensions and the canonical family, with the free isometries chosen to move points
  /// least towards the frame: that of `reference`, or, when negative, the least-squares one.
  /// Takes the model apart: large matrices are given up when they have been used.
  void lift(const Solution<State>& solution, Index reference, IdealResult& result);

 private:
  class Lifting;
  struct Group {
    Matrix H;         // (d, d) lower
    linalg::QR span;  // Q_a and its complement
    Matrix means;     // (r, K) whitened class means within the span, centred
    Vector centre;    // (d) in the coordinates of the features
  };

  /// H Q: the span of a group in the coordinates of the features (d, r).
  Matrix span_image(Index a) const;

  const Subgroups& subgroups_;
  const IdealOptions& options_;
  Index rank_;
  std::vector<Group> groups_;
  double seconds_a_group_ = std::numeric_limits<double>::infinity();  // of the fastest
};

}  // namespace fairsteer::detail
