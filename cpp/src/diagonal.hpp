// Independent features: the one-dimensional problem of theory section 8, feature by feature,
// coupled by the priors alone.
#pragma once

#include <vector>

#include "alternation.hpp"

namespace fairsteer::detail {

class DiagonalModel {
 public:
  struct State {
    Matrix nu;              // (d, K) canonical means
    Matrix C;               // (d, K) canonical variances
    std::vector<Vector> B;  // scale of every feature; negative: a reflection
    std::vector<Vector> m;
    Mask known;
  };

  DiagonalModel(const Subgroups& subgroups, Alignment alignment)
      : subgroups_(subgroups), alignment_(alignment) {}

  void start(State& state, Index group) const;
  bool has_class(const State& state, Index k) const { return state.known[k] != 0; }
  void fit_group(State& state, Index a, const Vector& w, double tol) const;
  void fit_canonical(State& state, const Matrix& weight, const Mask& classes) const;
  Matrix divergences(const State& state) const;
  bool converged(const State&) const { return true; }  // closed form
  std::vector<double> path(const State&, Index) const { return {}; }
  void lift(const Solution<State>& solution, Index reference, IdealResult& result) const;

 private:
  double divergence(const State& state, Index k, Index a) const;
  const Subgroups& subgroups_;
  Alignment alignment_;
};

}  // namespace fairsteer::detail
