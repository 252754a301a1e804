// One covariance a subgroup (theory sections 4, 6 and 7), all invertible maps or symmetric ones;
// and the symmetric maps of the tied model, which is the same problem with one shared precision.
#pragma once

#include <algorithm>
#include <vector>

#include "block_descent.hpp"
#include "group_problem.hpp"

namespace fairsteer::detail {

class FullModel {
 public:
  static constexpr bool kIterative = true;

  struct State {
    Matrix nu;              // (d, K)
    std::vector<Matrix> C;  // canonical covariances: K, tied: 1
    std::vector<Matrix> B;  // (G)
    std::vector<Vector> m;
    std::vector<Descent> descent;  // of B, in the last fit; no path: not fitted yet
    Index pinned = -1;  // symmetric: the class whose canonical covariance is the identity
    Mask known;
  };

  FullModel(const Subgroups& subgroups, const IdealOptions& options);

  void start(State& state, Index group) const;
  bool has_class(const State& state, Index k) const { return state.known[k] != 0; }
  void fit_group(State& state, Index a, const Vector& w, double tol) const;
  void fit_canonical(State& state, const FamilyWeights& weights, const Mask& classes) const;
  Matrix divergences(const State& state) const;
  bool converged(const State& state) const {
    return std::all_of(state.descent.begin(), state.descent.end(),
                       [](const Descent& descent) { return descent.converged; });
  }
  std::vector<double> path(const State& state, Index a) const { return state.descent[a].path; }

 private:
  double divergence(const State& state, Index k, Index a) const;
  bool tied() const { return subgroups_.model == CovarianceModel::tied; }
  // Covariances are stored once a group when tied, once a subgroup otherwise.
  std::size_t cell(Index k, Index a) const { return tied() ? a : k * subgroups_.n_groups + a; }
  std::size_t canonical(Index k) const { return tied() ? 0 : k; }

  const Subgroups& subgroups_;
  const IdealOptions& options_;
  std::vector<Matrix> precision_;
  std::vector<double> log_det_;  // of the covariances
};

/// Maps and canonical family in the frame of `reference`, or when negative in the least-squares
/// one.
void lift(const Subgroups& subgroups, const Solution<FullModel::State>& solution, Index reference,
          IdealResult& result);

}  // namespace fairsteer::detail
