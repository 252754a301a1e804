#include "fairsteer/ideal.hpp"

#include <algorithm>
#include <optional>
#include <vector>

#include "alternation.hpp"
#include "diagonal.hpp"
#include "fairsteer/covariances.hpp"
#include "fairsteer/errors.hpp"
#include "full.hpp"
#include "linalg.hpp"
#include "tied.hpp"

namespace fairsteer {
namespace {

template <class Model>
detail::Solution<typename Model::State> alternate(const Model& model, const Subgroups& subgroups,
                                                  const IdealOptions& options) {
  const detail::Alternation<Model> alternation(model, subgroups, options);
  return options.intervention == Intervention::affirmative ? alternation.affirmative()
                                                           : alternation.all_subgroups();
}

template <class Model>
detail::Solution<typename Model::State> alternate(const Model& model, const Subgroups& subgroups,
                                                  const IdealOptions& options,
                                                  detail::Solution<typename Model::State> start) {
  const detail::Alternation<Model> alternation(model, subgroups, options);
  return options.intervention == Intervention::affirmative
             ? alternation.affirmative(std::move(start))
             : alternation.all_subgroups(std::move(start));
}

Index reference_of(const IdealOptions& options) {
  return options.intervention == Intervention::affirmative ? options.reference : -1;
}

template <class State>
IdealResult summary(const detail::Solution<State>& solution) {
  IdealResult result;
  result.class_prior = solution.priors.p;
  result.group_prior = solution.priors.r;
  result.cell_divergence = solution.cells;
  result.divergence = std::max(0.0, solution.objective);
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
  const auto upright =
      alternate(detail::DiagonalModel(subgroups, Alignment::symmetric), subgroups, options);
  const auto solution = detail::nearer(alternate(model, subgroups, options),
                                       alternate(model, subgroups, options, upright));
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

  const detail::FullModel model(white, options);
  FullSolution solution = alternate(model, white, options);
  // Never farther than the nearest symmetric solution. That problem is convex, and Newton's steps
  // shrink fast: a few of them mostly settle that it stays above.
  IdealOptions coarse = options;
  coarse.max_iter = std::min<Index>(options.max_iter, 6);
  std::optional<FullSolution> symmetric = symmetric_solution(subgroups, coarse);
  if (symmetric && solution.objective > symmetric->objective - 2 * last_step(*symmetric))
    symmetric = symmetric_solution(subgroups, options);
  if (symmetric && symmetric->objective < solution.objective) {
    for (Index a = 0; a < G; ++a) {
      symmetric->state.m[a] -= centre;
      linalg::solve_lower(factor, symmetric->state.B[a]);
      linalg::solve_lower(factor, symmetric->state.m[a]);
    }
    solution = detail::nearer(std::move(solution),
                              alternate(model, white, options, *std::move(symmetric)));
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

}  // namespace

IdealResult nearest_ideal(const Subgroups& subgroups, const IdealOptions& options) {
  if (subgroups.model == CovarianceModel::full && subgroups.n_classes == 1) {
    // One class: the two models coincide, and the tied one knows which optimum moves points least.
    Subgroups tied = subgroups;
    tied.model = CovarianceModel::tied;
    return nearest_ideal(tied, options);
  }
  if (subgroups.model == CovarianceModel::diagonal) return solve_diagonal(subgroups, options);
  if (options.alignment == Alignment::symmetric) return solve_symmetric(subgroups, options);
  if (subgroups.model == CovarianceModel::full) return solve_full_affine(subgroups, options);
  return solve(detail::TiedModel(subgroups), subgroups, options);
}

}  // namespace fairsteer
