// Independent features: the one-dimensional problem of theory section 8, feature by feature,
// coupled by the priors alone.
#pragma once

#include <vector>

#include "block_descent.hpp"

namespace fairsteer::detail {

class DiagonalModel {
 public:
  static constexpr bool kIterative = false;

  struct State {
    Matrix nu;              // (d, K) canonical means
    Matrix C;               // (d, K) canonical variances
    std::vector<Vector> B;  // scale of every feature; negative: a reflection
    std::vector<Vector> m;
    std::vector<Vector> pull;    // of the class means towards a sign of B, in nats; near 0: either
    std::vector<Vector> centre;  // (d) point of the canonical family about which B may be turned
    Mask known;
  };

  DiagonalModel(const Subgroups& subgroups, Alignment alignment)
      : subgroups_(subgroups), alignment_(alignment) {}

  void start(State& state, Index group) const;
  bool has_class(const State& state, Index k) const { return state.known[k] != 0; }
  void fit_group(State& state, Index a, const Vector& w, double tol) const;
  void fit_canonical(State& state, const FamilyWeights& weights, const Mask& classes) const;
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
