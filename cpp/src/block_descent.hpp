// Block-coordinate descent over priors, canonical family and maps (theory section 7), the same for
// every covariance model.
//
// A model holds the problem data, and a State: the canonical family and one map per group.
//   void start(State&, Index group)                    canonical := that group's own family
//   bool has_class(State, Index k)                     whether the canonical family knows class k
//   void fit_group(State&, Index a, Vector w, tol)     best map of group a; w sums to one
//   void fit_canonical(State&, FamilyWeights, mask)    best family for the masked classes
//   Matrix divergences(State)                          KL of every cell (K, G), nats; those of
//                                                      cells without rows are not looked at
//   kIterative                                         whether fit_group is iterative
//   bool converged(State)                              whether every fit_group reached its optimum
//   std::vector<double> path(State, Index a)           objective of group a's last fit, by
//                                                      iteration; empty for a closed form
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "fairsteer/errors.hpp"
#include "fairsteer/ideal.hpp"

namespace fairsteer::detail {

using Mask = std::vector<char>;

constexpr double kCoarse = 1e-3;  // nats, relative to max(1, KL); tells one start from another

// The scalar functions: Eigen's packet ones take the log of a subnormal for that of zero, and their
// exponential never reaches zero.
inline Matrix log_of(const Matrix& values) {
  return values.unaryExpr([](double value) { return std::log(value); });
}
inline Matrix exp_of(const Matrix& values) {
  return values.unaryExpr([](double value) { return std::exp(value); });
}

/// Priors as logarithms, so that a class or group that all but vanishes keeps its ratios to others.
struct Priors {
  Vector log_p;
  Vector log_r;

  Vector p() const { return exp_of(log_p); }
  Vector r() const { return exp_of(log_r); }
};

/// What the canonical family averages over the groups.
struct FamilyWeights {
  Matrix shares;  ///< (K, G) the groups' part in every class: rows sum to one, 0 where unseen
  Matrix cells;   ///< (K, G) q~ on the cells that were seen, summing to one
};

/// Log of the sum of the exponentials.
inline double log_sum(const Vector& logits) {
  const double most = logits.maxCoeff();
  return most + std::log(exp_of((logits.array() - most).matrix()).sum());
}

/// The exponentials, divided by their sum; those of -infinity are 0.
inline Vector normalised_exp(const Vector& logits) {
  const Vector shifted = exp_of((logits.array() - logits.maxCoeff()).matrix());
  return shifted / shifted.sum();
}

/// Logs of q. An empty cell takes the weight that independence gives it: it then says nothing about
/// the priors.
inline Matrix complete_log_weights(const Subgroups& subgroups) {
  Matrix log_q = log_of(subgroups.weight);
  const Vector classes = log_of(subgroups.weight.rowwise().sum());
  const Vector groups = log_of(subgroups.weight.colwise().sum().transpose());
  for (Index k = 0; k < log_q.rows(); ++k)
    for (Index a = 0; a < log_q.cols(); ++a)
      if (!subgroups.seen(k, a)) log_q(k, a) = classes[k] + groups[a];
  return log_q.array() - log_sum(log_q.reshaped());
}

/// Priors of the classes of one group, normalised within those it has rows of: they sum to one.
inline Vector class_weights(const Subgroups& subgroups, const Vector& log_p, Index a) {
  constexpr double kNever = -std::numeric_limits<double>::infinity();
  return normalised_exp((subgroups.weight.col(a).array() > 0).select(log_p, kNever));
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

/// By more than rounding; of equally near ones the first. A finite one is nearer than any other.
template <class State>
Solution<State> nearer(Solution<State> first, Solution<State> second) {
  if (!std::isfinite(first.objective) || !std::isfinite(second.objective))
    return std::isfinite(second.objective) ? std::move(second) : std::move(first);
  const double rounding = 1e-10 * std::max(1.0, std::abs(first.objective));
  return second.objective < first.objective - rounding ? std::move(second) : std::move(first);
}

template <class Model>
class BlockDescent {
 public:
  using State = typename Model::State;

  BlockDescent(const Model& model, const Subgroups& subgroups, const IdealOptions& options)
      : model_(model),
        subgroups_(subgroups),
        options_(options),
        log_q_(complete_log_weights(subgroups)) {}

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
        model_.fit_group(start.state, a, shared_weights(start, a), fit_tolerance(0.1, 1));
    evaluate(start);
    finish_affirmative(start);
    return start;
  }

  /// The best of the descents from each group's own family; or the one from `start`.
  Solution<State> all_subgroups() const {
    std::optional<Solution<State>> best;
    std::optional<NumericalError> failure;
    double begun = 0, took = 0;  // when, and how long: the first steps of a start
    for (Index group = 0; group < n_starts(); ++group) {
      if (best && options_.stop(took)) {  // whether another start is nearer stays open
        best->converged = false;
        break;
      }
      try {
        begun = options_.elapsed();
        std::optional<Solution<State>> solution = begin(group, std::max(options_.tol, kCoarse));
        if (!solution) continue;
        took = time_of(begun);
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
  // Every group's own family is a start; of many groups the heaviest, which come first.
  Index n_starts() const { return std::min<Index>(subgroups_.n_groups, 8); }

  // The canonical family of one group and the best map of every group into it: the affirmative
  // solution with that reference.
  std::optional<Solution<State>> begin(Index reference, double tol) const {
    Solution<State> solution;
    solution.priors.log_p = log_q_.col(reference).array() - log_sum(log_q_.col(reference));
    solution.priors.log_r.resize(subgroups_.n_groups);
    for (Index a = 0; a < subgroups_.n_groups; ++a)
      solution.priors.log_r[a] = log_sum(log_q_.col(a));
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
      model_.fit_canonical(solution.state, family_weights(solution.priors), missing);
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
          std::exp(solution.priors.log_r[a]) *
          (subgroups_.weight.col(a).array() > 0).select(solution.priors.p().array(), 0.0).sum();
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
    double took = 0;                                     // the last round, in seconds
    for (solution.n_iter = 1; solution.n_iter <= options_.max_iter; ++solution.n_iter) {
      if (options_.stop(took)) return;
      const double begun = options_.elapsed();
      const Solution<State> before = solution;
      const double scale = std::max(1.0, std::abs(solution.objective));
      try {
        fit_priors(solution);
        model_.fit_canonical(solution.state, family_weights(solution.priors), all);
        for (Index a = 0; a < subgroups_.n_groups; ++a)
          model_.fit_group(solution.state, a, shared_weights(solution, a), tolerance);
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
      took = time_of(begun);
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
        // As long as a round gains more, the fits need not be better than it is.
        tolerance = std::min(tolerance, 0.01 * step);
      }
      tolerance = std::max(tolerance, fit_tolerance(0.01, scale));
    }
    solution.n_iter = options_.max_iter;
  }

  // What a step from `begin` to now takes when it is done again: iterative fits end when time is
  // up.
  double time_of(double begin) const { return Model::kIterative ? 0 : options_.elapsed() - begin; }

  // Iterative fits stop well inside the tolerance of the whole, so that their errors do not add up
  // to it.
  double fit_tolerance(double part, double scale) const { return part * options_.tol * scale; }

  // w[k] of one group: the priors of the classes that it and the canonical family both have,
  // normalised; none: they share no class.
  std::optional<Vector> weights(const Solution<State>& solution, Index a) const {
    Vector log_p = solution.priors.log_p;
    bool shared = false;
    for (Index k = 0; k < log_p.size(); ++k) {
      if (!model_.has_class(solution.state, k))
        log_p[k] = -std::numeric_limits<double>::infinity();
      else
        shared = shared || subgroups_.seen(k, a);
    }
    if (!shared) return std::nullopt;
    return class_weights(subgroups_, log_p, a);
  }

  // The same of a group that must share a class.
  Vector shared_weights(const Solution<State>& solution, Index a) const {
    std::optional<Vector> w = weights(solution, a);
    if (!w) throw std::invalid_argument("a group shares no class with the canonical family");
    return *std::move(w);
  }

  FamilyWeights family_weights(const Priors& priors) const {
    constexpr double kNever = -std::numeric_limits<double>::infinity();
    const Index K = subgroups_.n_classes, G = subgroups_.n_groups;
    Matrix logits(K, G);
    for (Index k = 0; k < K; ++k)
      for (Index a = 0; a < G; ++a)
        logits(k, a) = subgroups_.seen(k, a) ? priors.log_p[k] + priors.log_r[a] : kNever;
    FamilyWeights weights{Matrix(K, G), Matrix(K, G)};
    for (Index k = 0; k < K; ++k)
      weights.shares.row(k) = normalised_exp(logits.row(k).transpose()).transpose();
    const double most = logits.maxCoeff();
    weights.cells = exp_of((logits.array() - most).matrix());
    weights.cells /= weights.cells.sum();
    return weights;
  }

  void evaluate(Solution<State>& solution) const {
    const Index K = subgroups_.n_classes, G = subgroups_.n_groups;
    const Matrix divergences = model_.divergences(solution.state);
    solution.cells = Matrix::Zero(K, G);
    solution.objective = 0;
    for (Index k = 0; k < K; ++k)
      for (Index a = 0; a < G; ++a) {
        // Rounding may leave less than nothing; what is not a number stays so.
        if (subgroups_.seen(k, a))
          solution.cells(k, a) = divergences(k, a) < 0 ? 0.0 : divergences(k, a);
        const double log_weight = solution.priors.log_p[k] + solution.priors.log_r[a];
        const double weight = std::exp(log_weight);
        // The part of a cell that has vanished is nothing, wherever its family lies.
        if (weight > 0 || std::isnan(solution.cells(k, a)))
          solution.objective += weight * (log_weight - log_q_(k, a) + solution.cells(k, a));
      }
  }

  void fit_priors(Solution<State>& solution) const {
    const Matrix energy = log_q_ - solution.cells;
    Priors& priors = solution.priors;
    for (int round = 0; round < 1000; ++round) {
      const Vector before = priors.p();
      priors.log_p = energy * priors.r();
      priors.log_p.array() -= log_sum(priors.log_p);
      priors.log_r = energy.transpose() * priors.p();
      priors.log_r.array() -= log_sum(priors.log_r);
      if (!((priors.p() - before).lpNorm<1>() >= 1e-15)) break;
    }
  }

  const Model& model_;
  const Subgroups& subgroups_;
  const IdealOptions& options_;
  Matrix log_q_;
};

}  // namespace fairsteer::detail
