#include "fairsteer/ideal.hpp"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "block_descent.hpp"
#include "diagonal.hpp"
#include "fairsteer/check.hpp"
#include "fairsteer/covariances.hpp"
#include "fairsteer/errors.hpp"
#include "full.hpp"
#include "linalg.hpp"
#include "order.hpp"
#include "tied.hpp"

namespace fairsteer {
namespace {

template <class Model>
detail::Solution<typename Model::State> alternate(const Model& model, const Subgroups& subgroups,
                                                  const IdealOptions& options) {
  const detail::BlockDescent<Model> descent(model, subgroups, options);
  return options.intervention == Intervention::affirmative ? descent.affirmative()
                                                           : descent.all_subgroups();
}

template <class Model>
detail::Solution<typename Model::State> alternate(const Model& model, const Subgroups& subgroups,
                                                  const IdealOptions& options,
                                                  detail::Solution<typename Model::State> start) {
  const detail::BlockDescent<Model> descent(model, subgroups, options);
  return options.intervention == Intervention::affirmative
             ? descent.affirmative(std::move(start))
             : descent.all_subgroups(std::move(start));
}

Index reference_of(const IdealOptions& options) {
  return options.intervention == Intervention::affirmative ? options.reference : -1;
}

template <class State>
IdealResult summary(const detail::Solution<State>& solution) {
  IdealResult result;
  result.class_prior = solution.priors.p();
  result.group_prior = solution.priors.r();
  result.cell_divergence = solution.cells;
  // Rounding may leave less than nothing; what is not a number stays so.
  result.divergence = solution.objective < 0 ? 0.0 : solution.objective;
  result.objective_path = solution.path;
  result.n_iter = solution.n_iter;
  result.converged = solution.converged;
  return result;
}

template <class Model>
IdealResult solve(Model model, const Subgroups& subgroups, const IdealOptions& options) {
  const auto solution = alternate(model, subgroups, options);
  IdealResult result = summary(solution);
  model.lift(solution, reference_of(options), result);
  return result;
}

IdealResult solve_diagonal(const Subgroups& subgroups, const IdealOptions& options) {
  const detail::DiagonalModel model(subgroups, options.alignment);
  if (options.alignment == Alignment::symmetric ||
      options.intervention == Intervention::affirmative)
    return solve(model, subgroups, options);
  // From the solution without reflections as well: the one with them is then never farther.
  const double before = options.elapsed();
  auto solution =
      alternate(detail::DiagonalModel(subgroups, Alignment::symmetric), subgroups, options);
  if (options.stop(options.elapsed() - before)) {
    solution.converged = false;  // whether reflections are nearer stays open
  } else {
    auto reflected = alternate(model, subgroups, options);
    solution = detail::nearer(std::move(reflected),
                              alternate(model, subgroups, options, std::move(solution)));
  }
  IdealResult result = summary(solution);
  model.lift(solution, -1, result);
  return result;
}

using FullSolution = detail::Solution<detail::FullModel::State>;

double last_step(const FullSolution& solution) {
  const std::vector<double>& path = solution.path;
  return path.size() < 2 ? solution.objective : path[path.size() - 2] - path.back();
}

std::optional<FullSolution> symmetric_solution(const Subgroups& subgroups, IdealOptions options) {
  options.alignment = Alignment::symmetric;
  try {
    return alternate(detail::FullModel(subgroups, options), subgroups, options);
  } catch (const NumericalError&) {
    return std::nullopt;  // it is only one start of several
  }
}

// The affine problem does not change with the coordinates of the features, so it is solved in those
// in which the average covariance is the identity: units and correlations then cost no digits.
IdealResult solve_full_affine(const Subgroups& subgroups, const IdealOptions& options) {
  const Index d = subgroups.n_features, K = subgroups.n_classes, G = subgroups.n_groups;
  Matrix average = Matrix::Zero(d, d);
  Vector centre = Vector::Zero(d);
  for (Index k = 0; k < K; ++k)
    for (Index a = 0; a < G; ++a) {
      if (!subgroups.seen(k, a)) continue;
      average += subgroups.weight(k, a) * subgroups.covariance(k, a);
      centre += subgroups.weight(k, a) * subgroups.mean(k, a);
    }
  const Matrix factor = cholesky(average);
  std::vector<double> means(K * G * d, 0.0), covariances(K * G * d * d, 0.0);
  for (Index k = 0; k < K; ++k)
    for (Index a = 0; a < G; ++a) {
      if (!subgroups.seen(k, a)) continue;
      options.poll();
      const Index cell = k * G + a;
      Eigen::Map<Vector> mean(means.data() + cell * d, d);
      mean = subgroups.mean(k, a) - centre;
      linalg::solve_lower(factor, mean);
      Eigen::Map<Matrix>(covariances.data() + cell * d * d, d, d) =
          linalg::solve_congruence(factor, subgroups.covariance(k, a));
    }
  Subgroups white = subgroups;
  white.means = means.data();
  white.covariances = covariances.data();
  white.class_at.clear();
  white.group_at.clear();

  // What the model prepares of every cell, the divergences and the maps need once more each.
  IdealOptions own = options;
  const double before = options.elapsed();
  const detail::FullModel model(white, own);
  const double prepared = options.elapsed() - before;
  own.after += 2 * prepared;
  FullSolution solution = alternate(model, white, own);
  // Never farther than the nearest symmetric solution. That problem is convex, and Newton's steps
  // shrink fast: a few of them mostly settle that it stays above.
  IdealOptions coarse = own;
  coarse.max_iter = std::min<Index>(options.max_iter, 6);
  std::optional<FullSolution> symmetric;
  if (own.stop(3 * prepared))
    solution.converged = false;  // whether it is nearer stays open
  else
    symmetric = symmetric_solution(subgroups, coarse);
  if (symmetric && !own.stop() &&
      solution.objective > symmetric->objective - 2 * last_step(*symmetric))
    symmetric = symmetric_solution(subgroups, own);
  if (symmetric && symmetric->objective < solution.objective) {
    for (Index a = 0; a < G; ++a) {
      symmetric->state.m[a] -= centre;
      linalg::solve_lower(factor, symmetric->state.B[a]);
      linalg::solve_lower(factor, symmetric->state.m[a]);
    }
    solution =
        detail::nearer(std::move(solution), alternate(model, white, own, *std::move(symmetric)));
  }
  for (Index a = 0; a < G; ++a) {
    linalg::multiply_lower(factor, solution.state.B[a]);
    linalg::multiply_lower(factor, solution.state.m[a]);
    solution.state.m[a] += centre;
  }
  IdealResult result = summary(solution);
  detail::lift(subgroups, solution, reference_of(options), result);
  return result;
}

IdealResult solve_symmetric(const Subgroups& subgroups, const IdealOptions& options) {
  const auto solution = alternate(detail::FullModel(subgroups, options), subgroups, options);
  IdealResult result = summary(solution);
  detail::lift(subgroups, solution, reference_of(options), result);
  return result;
}

IdealResult solve(const Subgroups& subgroups, const IdealOptions& options) {
  if (subgroups.model == CovarianceModel::full && subgroups.n_classes == 1) {
    // One class: the two models coincide, and the tied one knows which optimum moves points least.
    Subgroups tied = subgroups;
    tied.model = CovarianceModel::tied;
    return solve(tied, options);
  }
  if (subgroups.model == CovarianceModel::diagonal) return solve_diagonal(subgroups, options);
  if (options.alignment == Alignment::symmetric) return solve_symmetric(subgroups, options);
  if (subgroups.model == CovarianceModel::full) return solve_full_affine(subgroups, options);
  detail::TiedModel model(subgroups, options);
  IdealOptions own = options;
  own.after += model.seconds_to_lift();
  return solve(std::move(model), subgroups, own);
}

// Units in which the numbers of a problem are of order one. Powers of two: nothing is rounded on
// the way there and back.
struct Units {
  Vector scale;
  Vector centre;
};

// Features that are mapped one by one have units of their own; otherwise what counts as moving
// points least depends on their ratios, and only numbers at the ends of the range of double need
// others.
Units units_of(const Subgroups& subgroups) {
  const Index d = subgroups.n_features;
  const bool diagonal = subgroups.model == CovarianceModel::diagonal;
  Units units{Vector::Ones(d), Vector::Zero(d)};
  const auto for_each_cell = [&](auto visit) {
    for (Index k = 0; k < subgroups.n_classes; ++k)
      for (Index a = 0; a < subgroups.n_groups; ++a)
        if (subgroups.seen(k, a)) visit(k, a);
  };
  if (diagonal)
    for_each_cell(
        [&](Index k, Index a) { units.centre += subgroups.weight(k, a) * subgroups.mean(k, a); });
  Vector largest = Vector::Zero(d);
  for_each_cell([&](Index k, Index a) {
    Vector deviation = (subgroups.mean(k, a) - units.centre).cwiseAbs();
    if (diagonal)
      deviation = deviation.cwiseMax(subgroups.variance(k, a).cwiseSqrt());
    else
      deviation = subgroups.covariance(k, a).diagonal().cwiseSqrt();
    largest = largest.cwiseMax(deviation);
  });
  if (!diagonal) {
    constexpr int kOrdinary = 160;  // twice this is a third of the range of double
    largest.setConstant(largest.maxCoeff());
    if (std::abs(std::ilogb(largest[0])) < kOrdinary) return units;
  }
  units.scale = largest.unaryExpr(
      [](double value) { return value > 0 ? std::ldexp(1.0, std::ilogb(value)) : 1.0; });
  return units;
}

/// A problem in its units, and its result in those of the features.
class Rescaled {
 public:
  Rescaled(const Subgroups& subgroups, Units units)
      : subgroups_(subgroups), units_(std::move(units)) {
    if (units_.scale.isOnes(0) && units_.centre.isZero(0)) return;
    const Index d = subgroups.n_features, K = subgroups.n_classes, G = subgroups.n_groups;
    const bool diagonal = subgroups.model == CovarianceModel::diagonal;
    const bool tied = subgroups.model == CovarianceModel::tied;
    const Vector inverse = units_.scale.cwiseInverse();
    means_.assign(K * G * d, 0.0);
    covariances_.assign(diagonal ? K * G * d : (tied ? 1 : K) * G * d * d, 0.0);
    for (Index k = 0; k < K; ++k)
      for (Index a = 0; a < G; ++a) {
        if (!subgroups.seen(k, a)) continue;
        const Index cell = k * G + a;
        Eigen::Map<Vector>(means_.data() + cell * d, d) =
            (subgroups.mean(k, a) - units_.centre).cwiseProduct(inverse);
        if (diagonal)
          Eigen::Map<Vector>(covariances_.data() + cell * d, d) =
              subgroups.variance(k, a).cwiseProduct(inverse).cwiseProduct(inverse);
        else
          Eigen::Map<Matrix>(covariances_.data() + (tied ? a : cell) * d * d, d, d) =
              inverse.asDiagonal() * subgroups.covariance(k, a) * inverse.asDiagonal();
      }
    subgroups_.means = means_.data();
    subgroups_.covariances = covariances_.data();
    subgroups_.class_at.clear();
    subgroups_.group_at.clear();
  }

  const Subgroups& subgroups() const { return subgroups_; }

  void restore(IdealResult& result) const {
    if (means_.empty()) return;
    const Vector& scale = units_.scale;
    const Vector inverse = scale.cwiseInverse();
    const bool diagonal = subgroups_.model == CovarianceModel::diagonal;
    for (std::size_t a = 0; a < result.linear.size(); ++a) {
      Matrix& linear = result.linear[a];
      if (!diagonal) linear = scale.asDiagonal() * linear * inverse.asDiagonal();
      const Vector& c = units_.centre;
      const Vector moved = diagonal ? Vector(linear.col(0).cwiseProduct(c)) : Vector(linear * c);
      result.offset[a] = result.offset[a].cwiseProduct(scale) + (c - moved);
    }
    result.canonical_mean = (scale.asDiagonal() * result.canonical_mean).colwise() + units_.centre;
    for (Matrix& covariance : result.canonical_covariance) {
      covariance = scale.asDiagonal() * covariance;
      if (diagonal)
        covariance = scale.asDiagonal() * covariance;
      else
        covariance = covariance * scale.asDiagonal();
    }
  }

 private:
  Subgroups subgroups_;
  Units units_;
  std::vector<double> means_, covariances_;
};

// A result that is not finite is an error with its cell, never a number.
void check_result(const Subgroups& subgroups, const IdealResult& result) {
  const char* const what = "the nearest ideal distribution is not finite";
  for (Index a = 0; a < subgroups.n_groups; ++a) {
    for (Index k = 0; k < subgroups.n_classes; ++k)
      if (!std::isfinite(result.cell_divergence(k, a))) throw NumericalError(what, k, a);
    if (!result.linear[a].allFinite() || !result.offset[a].allFinite() ||
        !std::isfinite(result.group_prior[a]))
      throw NumericalError(what, -1, a);
  }
  for (Index k = 0; k < subgroups.n_classes; ++k)
    if (!result.canonical_mean.col(k).allFinite() || !std::isfinite(result.class_prior[k]))
      throw NumericalError(what, k, -1);
  for (const Matrix& covariance : result.canonical_covariance)
    if (!covariance.allFinite()) throw NumericalError(what, -1, -1);
  if (!std::isfinite(result.divergence)) throw NumericalError(what, -1, -1);
}

}  // namespace

void check_subgroups(const Subgroups& subgroups) {
  const char* const function = "nearest_ideal";
  const Index d = subgroups.n_features, K = subgroups.n_classes, G = subgroups.n_groups;
  check_at_least(function, "n_classes", K, 1);
  check_at_least(function, "n_groups", G, 1);
  check_at_least(function, "n_features", d, 1);
  check_not_negative(function, "weight", subgroups.weight.data(), K * G);
  if (!(subgroups.weight.colwise().sum().minCoeff() > 0) ||
      !(subgroups.weight.rowwise().sum().minCoeff() > 0))
    throw std::invalid_argument(
        "nearest_ideal: weights must have a positive sum for every class and every group");
  for (Index a = 0; a < G; ++a) {
    for (Index k = 0; k < K; ++k) {
      if (!subgroups.seen(k, a)) continue;
      check_finite(function, "mean", subgroups.mean(k, a).data(), d);
      if (subgroups.model == CovarianceModel::diagonal) {
        check_finite(function, "variance", subgroups.variance(k, a).data(), d);
        if (!(subgroups.variance(k, a).minCoeff() > 0))
          throw NumericalError("a variance is not positive", k, a);
      } else if (subgroups.model == CovarianceModel::full) {
        check_finite(function, "covariance", subgroups.covariance(k, a).data(), d * d);
        if (!(subgroups.covariance(k, a).diagonal().minCoeff() > 0))
          throw NumericalError("a covariance is not positive definite", k, a);
      }
    }
    if (subgroups.model == CovarianceModel::tied) {
      check_finite(function, "covariance", subgroups.covariance(0, a).data(), d * d);
      if (!(subgroups.covariance(0, a).diagonal().minCoeff() > 0))
        throw NumericalError("a covariance is not positive definite", -1, a);
    }
  }
}

IdealResult nearest_ideal(const Subgroups& subgroups, const IdealOptions& options) {
  check_subgroups(subgroups);
  const detail::Order order = detail::order_by_data(subgroups);
  const Subgroups ordered = detail::reordered(subgroups, order);
  IdealOptions own = options;
  if (options.intervention == Intervention::affirmative) {
    check_index("nearest_ideal", "reference", options.reference, subgroups.n_groups);
    own.reference = std::find(order.groups.begin(), order.groups.end(), options.reference) -
                    order.groups.begin();
  }
  const auto caller_cell = [&](const NumericalError& error) {
    return NumericalError(error.what(),
                          error.class_index < 0 ? -1 : order.classes[error.class_index],
                          error.group_index < 0 ? -1 : order.groups[error.group_index]);
  };
  const Rescaled problem(ordered, units_of(ordered));
  // What was done up to here is undone at the end, which takes about as long.
  own.after = own.elapsed();
  own.poll();
  IdealResult result;
  try {
    result = solve(problem.subgroups(), own);
    problem.restore(result);
    check_result(ordered, result);
  } catch (const NumericalError& error) {
    throw caller_cell(error);
  }
  // One class was solved as the tied model, whatever it was called.
  detail::restore_order(order, subgroups.model, result);
  return result;
}

}  // namespace fairsteer
