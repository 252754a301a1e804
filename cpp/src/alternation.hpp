// The alternation of theory section 7, the same for every covariance model.
//
// A model holds the problem data, and a State: the canonical family and one map per group.
//   void start(State&, Index group)                    canonical := that group's own family
//   bool has_class(State, Index k)                     whether the canonical family knows class k
//   void fit_group(State&, Index a, Vector w, tol)     best map of group a; w sums to one
//   void fit_canonical(State&, Matrix q, mask)         best family for the masked classes
//   Matrix divergences(State)                          KL of every cell (K, G), nats; those of
//   cells
//                                                      without rows are not looked at
//   bool converged(State)                              whether every fit_group reached its optimum
//   std::vector<double> path(State, Index a)           objective of group a's last fit, by
//                                                      iteration; empty for a closed form
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "fairsteer/errors.hpp"
#include "fairsteer/ideal.hpp"

namespace fairsteer::detail {

using Mask = std::vector<char>;

constexpr double kCoarse = 1e-3;  // nats, relative to max(1, KL); tells one start from another

struct Priors {
  Vector p;
  Vector r;
};

// An empty cell takes the weight that independence gives it: it then says nothing about the priors.
inline Matrix complete_weights(const Subgroups& subgroups) {
  Matrix q = subgroups.weight;
  const Vector classes = q.rowwise().sum();
  const Vector groups = q.colwise().sum();
  for (Index k = 0; k < q.rows(); ++k)
    for (Index a = 0; a < q.cols(); ++a)
      if (!subgroups.seen(k, a)) q(k, a) = classes[k] * groups[a];
  return q / q.sum();
}

/// Priors of the classes of one group, those it has no row of left out; sums to one, or is zero.
inline Vector class_weights(const Subgroups& subgroups, const Vector& p, Index a) {
  const Vector w = (subgroups.weight.col(a).array() > 0).select(p, 0.0);
  const double total = w.sum();
  return total > 0 ? Vector(w / total) : w;
}

inline Vector softmax(const Vector& logits) {
  const Vector shifted = (logits.array() - logits.maxCoeff()).exp();
  return shifted / shifted.sum();
}

template <class State>
struct Solution {
  State state;
  Priors priors;
  Matrix cells;
  double objective = std::numeric_limits<double>::infinity();
  std::vector<double> path;
  Index n_iter = 0;
  bool converged = false;
};

/// By more than rounding; of equally near ones the first.
template <class State>
Solution<State> nearer(Solution<State> first, Solution<State> second) {
  const double rounding = 1e-10 * std::max(1.0, std::abs(first.objective));
  return second.objective < first.objective - rounding ? std::move(second) : std::move(first);
}

template <class Model>
class Alternation {
 public:
  using State = typename Model::State;

  Alternation(const Model& model, const Subgroups& subgroups, const IdealOptions& options)
      : model_(model), subgroups_(subgroups), options_(options), q_(complete_weights(subgroups)) {}

  /// With the reference's family as the canonical one, or whatever family `start` has.
  Solution<State> affirmative() const {
    auto solution = begin(options_.reference, fit_tolerance(0.1, 1));
    if (!solution) throw std::invalid_argument("a group shares no class with the reference group");
    evaluate(*solution);
    finish_affirmative(*solution);
    return *std::move(solution);
  }
  Solution<State> affirmative(Solution<State> start) const {
    for (Index a = 0; a < subgroups_.n_groups; ++a)
      if (a != options_.reference)
        model_.fit_group(start.state, a, *weights(start, a), fit_tolerance(0.1, 1));
    evaluate(start);
    finish_affirmative(start);
    return start;
  }

  /// The best of the alternations from each group's own family; or the one from `start`.
  Solution<State> all_subgroups() const {
    std::optional<Solution<State>> best;
    std::optional<NumericalError> failure;
    for (const Index group : starts()) {
      try {
        std::optional<Solution<State>> solution = begin(group, std::max(options_.tol, kCoarse));
        if (!solution) continue;
        Solution<State> candidate = all_subgroups(*std::move(solution));
        best = best ? nearer(*std::move(best), std::move(candidate)) : std::move(candidate);
      } catch (const NumericalError& error) {
        failure = error;  // another start may get through
      }
    }
    if (best) return *std::move(best);
    if (failure) throw *failure;
    throw std::invalid_argument("no group shares a class with every other group");
  }
  Solution<State> all_subgroups(Solution<State> start) const {
    evaluate(start);
    iterate(start);
    return start;
  }

 private:
  // Every group's own family is a start; of many groups the heaviest.
  std::vector<Index> starts() const {
    std::vector<Index> order(subgroups_.n_groups);
    std::iota(order.begin(), order.end(), Index{0});
    const Vector weight = subgroups_.weight.colwise().sum();
    std::stable_sort(order.begin(), order.end(),
                     [&](Index a, Index b) { return weight[a] > weight[b]; });
    order.resize(std::min<std::size_t>(order.size(), 8));
    return order;
  }

  // The canonical family of one group and the best map of every group into it: the affirmative
  // solution with that reference.
  std::optional<Solution<State>> begin(Index reference, double tol) const {
    Solution<State> solution;
    solution.priors.p = q_.col(reference) / q_.col(reference).sum();
    solution.priors.r = q_.colwise().sum();
    model_.start(solution.state, reference);
    for (Index a = 0; a < subgroups_.n_groups; ++a) {
      const auto w = weights(solution, a);
      if (!w) return std::nullopt;
      if (a != reference) model_.fit_group(solution.state, a, *w, tol);
    }
    // Classes that the reference lacks follow from the other groups, through maps that the classes
    // they share have decided.
    Mask missing(subgroups_.n_classes, 0);
    for (Index k = 0; k < subgroups_.n_classes; ++k)
      missing[k] = !model_.has_class(solution.state, k);
    if (std::count(missing.begin(), missing.end(), 1) > 0)
      model_.fit_canonical(solution.state, target(solution.priors), missing);
    return solution;
  }

  // The groups do not touch each other, so that their descents add up.
  void finish_affirmative(Solution<State>& solution) const {
    solution.converged = model_.converged(solution.state);
    solution.path = {solution.objective};
    for (Index a = 0; a < subgroups_.n_groups; ++a) {
      if (a == options_.reference) continue;
      const std::vector<double> path = model_.path(solution.state, a);
      if (path.size() > solution.path.size()) solution.path.resize(path.size(), solution.objective);
      const double share =
          solution.priors.r[a] *
          (subgroups_.weight.col(a).array() > 0).select(solution.priors.p.array(), 0.0).sum();
      for (std::size_t n = 0; n + 1 < path.size(); ++n)
        solution.path[n] += share * (path[n] - path.back());
    }
    solution.n_iter = std::max<Index>(1, static_cast<Index>(solution.path.size()) - 1);
  }

  void iterate(Solution<State>& solution) const {
    solution.path = {solution.objective};
    const Mask all(subgroups_.n_classes, 1);
    double previous_step = 0;
    double tolerance = std::max(options_.tol, kCoarse);  // of the groups' fits
    for (solution.n_iter = 1; solution.n_iter <= options_.max_iter; ++solution.n_iter) {
      const Solution<State> before = solution;
      const double scale = std::max(1.0, std::abs(solution.objective));
      try {
        fit_priors(solution);
        model_.fit_canonical(solution.state, target(solution.priors), all);
        for (Index a = 0; a < subgroups_.n_groups; ++a)
          model_.fit_group(solution.state, a, *weights(solution, a), tolerance);
        evaluate(solution);
      } catch (const NumericalError&) {
        solution = before;  // as near as double precision gets; reported as not converged
        return;
      }
      // Each part is exact, so only rounding can undo progress.
      if (!(solution.objective <= before.objective)) {
        const bool noise = solution.objective - before.objective <= 1e-10 * scale;
        solution = before;
        solution.converged = noise && model_.converged(solution.state);
        return;
      }
      solution.path.push_back(solution.objective);
      // The steps shrink geometrically: what is left is a geometric series.
      const double step = before.objective - solution.objective;
      const double rate = previous_step > 0 ? std::min(step / previous_step, 0.9999) : 0.9999;
      const double left = step * rate / (1 - rate);
      previous_step = step;
      if (solution.n_iter > 1 && left <= options_.tol * scale) {
        if (tolerance <= fit_tolerance(0.1, scale)) {
          solution.converged = model_.converged(solution.state);
          return;
        }
        tolerance = 0;  // perhaps it was the fits that came to rest
      } else {
        // As long as the alternation moves by more, the fits need not be better than it is.
        tolerance = std::min(tolerance, 0.01 * step);
      }
      tolerance = std::max(tolerance, fit_tolerance(0.01, scale));
    }
    solution.n_iter = options_.max_iter;
  }

  // Iterative fits stop well inside the tolerance of the whole, so that their errors do not add up
  // to it.
  double fit_tolerance(double part, double scale) const { return part * options_.tol * scale; }

  // w[k] of one group: the priors of the classes that it and the canonical family both have.
  std::optional<Vector> weights(const Solution<State>& solution, Index a) const {
    Vector p = solution.priors.p;
    for (Index k = 0; k < p.size(); ++k)
      if (!model_.has_class(solution.state, k)) p[k] = 0;
    const Vector w = class_weights(subgroups_, p, a);
    if (w.sum() <= 0) return std::nullopt;
    return w;
  }

  // q~ on the cells that were seen, 0 elsewhere.
  Matrix target(const Priors& priors) const {
    return (subgroups_.weight.array() > 0).select(priors.p * priors.r.transpose(), 0.0);
  }

  void evaluate(Solution<State>& solution) const {
    const Index K = subgroups_.n_classes, G = subgroups_.n_groups;
    const Matrix divergences = model_.divergences(solution.state);
    solution.cells.resize(K, G);
    for (Index k = 0; k < K; ++k)
      for (Index a = 0; a < G; ++a)
        solution.cells(k, a) = subgroups_.seen(k, a) ? std::max(0.0, divergences(k, a)) : 0.0;
    const Array weight = (solution.priors.p * solution.priors.r.transpose()).array();
    solution.objective = 0;
    for (Index k = 0; k < K; ++k)
      for (Index a = 0; a < G; ++a)
        if (weight(k, a) > 0)
          solution.objective +=
              weight(k, a) * (std::log(weight(k, a) / q_(k, a)) + solution.cells(k, a));
  }

  void fit_priors(Solution<State>& solution) const {
    const Matrix energy = q_.array().log().matrix() - solution.cells;
    Priors& priors = solution.priors;
    for (int round = 0; round < 1000; ++round) {
      const Vector before = priors.p;
      priors.p = softmax(energy * priors.r);
      priors.r = softmax(energy.transpose() * priors.p);
      if ((priors.p - before).lpNorm<1>() < 1e-15) break;
    }
  }

  const Model& model_;
  const Subgroups& subgroups_;
  const IdealOptions& options_;
  Matrix q_;
};

}  // namespace fairsteer::detail
