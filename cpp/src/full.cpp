#include "full.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "fairsteer/covariances.hpp"
#include "fairsteer/errors.hpp"
#include "frame.hpp"
#include "linalg.hpp"
#include "tied.hpp"
#include "two_class.hpp"

namespace fairsteer::detail {

FullModel::FullModel(const Subgroups& subgroups, const IdealOptions& options)
    : subgroups_(subgroups), options_(options) {
  const Index n_classes = tied() ? 1 : subgroups.n_classes;
  precision_.resize(n_classes * subgroups.n_groups);
  log_det_.assign(precision_.size(), 0.0);
  for (Index k = 0; k < n_classes; ++k)
    for (Index a = 0; a < subgroups.n_groups; ++a) {
      if (!tied() && !subgroups.seen(k, a)) continue;
      options.poll();
      const linalg::Cholesky factor(subgroups.covariance(k, a));
      if (!factor.succeeded())
        throw NumericalError("a covariance is not positive definite", tied() ? -1 : k, a);
      precision_[cell(k, a)] = factor.inverse();
      log_det_[cell(k, a)] = factor.log_det();
    }
}

void FullModel::start(State& state, Index group) const {
  const Index d = subgroups_.n_features, K = subgroups_.n_classes;
  const Index G = subgroups_.n_groups;
  state.nu = Matrix::Zero(d, K);
  state.C.assign(tied() ? 1 : K, Matrix::Identity(d, d));
  state.known.assign(K, 0);
  for (Index k = 0; k < K; ++k) {
    if (!subgroups_.seen(k, group)) continue;
    state.known[k] = 1;
    state.nu.col(k) = subgroups_.mean(k, group);
    state.C[canonical(k)] = subgroups_.covariance(k, group);
  }
  state.B.assign(G, Matrix::Identity(d, d));
  state.m.assign(G, Vector::Zero(d));
  state.descent.assign(G, Descent{{}, true});
  state.descent[group].path = {0.0};

  // The heaviest class: of the reference group, or of all groups.
  const Vector margin = options_.intervention == Intervention::affirmative
                            ? Vector(subgroups_.weight.col(group))
                            : Vector(subgroups_.weight.rowwise().sum());
  (subgroups_.weight.col(group).array() > 0).select(margin, -1.0).maxCoeff(&state.pinned);
  if (options_.alignment != Alignment::symmetric) return;
  // The paper's B = S R with R = C_i^{-1/2}: coordinates in which C_i = I, and R = I.
  const SquareRoot root = square_root(state.C[canonical(state.pinned)]);
  state.nu = linalg::product(root.inverse, state.nu);
  for (Matrix& C : state.C) C = linalg::congruence(root.inverse, C);
  state.C[canonical(state.pinned)].setIdentity();
  state.B[group] = root.root;
}

namespace {

constexpr Index kSweeps = 30;              // over rows, before the second-order steps
constexpr Index kPairSweeps = 10;          // of two classes: from the pairing they settle sooner
constexpr std::size_t kPairedClasses = 6;  // up to which every two classes give a start

// Averages over the classes, by weight.
struct Averages {
  Matrix C;        // canonical covariance
  Matrix Sigma;    // the group's covariance
  Matrix between;  // scatter of the canonical means
  Matrix cross;    // cross-scatter of the group's means and the canonical ones
};

// J = sum_k P_k (mu_k - P^{-1} sum_j P_j mu_j) nu_k^T
GroupProblem problem_of(const std::vector<Side>& sides) {
  const Index d = sides.front().mu.size();
  std::vector<GroupProblem::Term> terms;
  Vector target = Vector::Zero(d);
  Matrix J = Matrix::Zero(d, d), total = Matrix::Zero(d, d);
  for (const Side& side : sides) {
    terms.push_back({side.precision, side.covariance + side.nu * side.nu.transpose(), side.nu});
    target += side.precision * side.mu;
    total += side.precision;
  }
  Vector centre = target;
  linalg::Cholesky(std::move(total)).solve_in_place(centre);
  for (const Side& side : sides)
    J.noalias() += (side.precision * (side.mu - centre)) * side.nu.transpose();
  return {std::move(terms), std::move(J), std::move(target)};
}

// With one precision the classes enter through their scatter alone.
GroupProblem tied_problem_of(const Matrix& precision, const Averages& average) {
  const Vector zero = Vector::Zero(precision.rows());
  return {{{precision, average.C + average.between, zero}},
          linalg::product(precision, average.cross),
          zero};
}

// The tied optimum of averaged covariances, completed by least displacement.
Matrix tied_start(const Averages& average) {
  const Matrix H = cholesky(average.Sigma);
  Matrix cross = average.cross;
  linalg::solve_lower(H, cross);
  ClosedForm closed(average.C + average.between, cross);
  Matrix pull = average.C;  // H^T C L_t^{-T}
  linalg::multiply_lower_transposed(H, pull);
  linalg::solve_lower_transposed_on_the_right(pull, closed.L_t);
  closed.complete(closed.n_informative(), pull);
  Matrix B = closed.map();
  linalg::multiply_lower(H, B);
  return B;
}

// The paper's symmetric map, which the affine one must never be farther than.
Matrix symmetric_start(const GroupProblem& problem, const Averages& average,
                       const Matrix& pinned_covariance, const DescentOptions& options) {
  const SquareRoot root = square_root(pinned_covariance);
  Matrix S = transport_map(linalg::congruence(root.inverse, average.C), average.Sigma);
  problem.transformed(root.inverse)
      .minimise_symmetric(S, {options.max_iter, kCoarse, options.watch, options.after});
  return linalg::product(S, root.inverse);
}

Side all_but(const std::vector<Side>& sides, std::size_t left_out) {
  const Index d = sides.front().mu.size();
  Side rest{0, Matrix::Zero(d, d), Matrix::Zero(d, d), Vector::Zero(d), Vector::Zero(d)};
  for (std::size_t j = 0; j < sides.size(); ++j) {
    if (j == left_out) continue;
    const Side& side = sides[j];
    rest.weight += side.weight;
    rest.precision += side.precision;
    rest.covariance += side.weight * side.covariance;
    rest.mu += side.weight * side.mu;
    rest.nu += side.weight * side.nu;
  }
  rest.covariance /= rest.weight;
  rest.mu /= rest.weight;
  rest.nu /= rest.weight;
  return rest;
}

// How thoroughly to look for the lowest basin. Small matrices have the worst local optima for their
// size, and cost nothing; the factors that sweeps keep outgrow memory for large ones.
struct Search {
  std::size_t n_starts;
  std::vector<Index> sweeps;  // over rows before the Newton steps: each start is tried with each
  double tol;
};
Search search_for(Index d) {
  if (d <= 32) return {16, {0, kSweeps}, 1e-6};
  if (d <= 256) return {4, {kSweeps}, kCoarse};
  return {4, {0}, kCoarse};
}

// The tied optimum, the symmetric one, every class against the others, and against every other.
std::vector<Matrix> starts_of(const GroupProblem& problem, const std::vector<Side>& sides,
                              const Averages& average, const Matrix& pinned_covariance,
                              const DescentOptions& options) {
  std::vector<Matrix> starts{tied_start(average)};
  if (options.stop()) return starts;
  try {
    starts.push_back(symmetric_start(problem, average, pinned_covariance, options));
  } catch (const NumericalError&) {
    // One start of several.
  }
  for (std::size_t i = 0; i < sides.size() && !options.stop(); ++i) {
    const TwoClassProblem pair(sides[i], all_but(sides, i));
    starts.push_back(pair.from_diagonal(pair.paired(starts.front())));
  }
  if (sides.size() <= kPairedClasses)
    for (std::size_t i = 0; i < sides.size(); ++i)
      for (std::size_t j = i + 1; j < sides.size() && !options.stop(); ++j) {
        const TwoClassProblem pair(sides[i], sides[j]);
        starts.push_back(pair.from_diagonal(pair.paired(starts.front())));
      }
  return starts;
}

// The affine problem has many local optima: the best starts are refined coarsely, to see which
// basin is lowest, and then that one to the end.
Descent lowest_basin(const GroupProblem& problem, const std::vector<Matrix>& starts,
                     const DescentOptions& options, Matrix& B) {
  std::vector<std::pair<double, std::size_t>> order;
  for (std::size_t i = 0; i < starts.size(); ++i) {
    const double value = problem.value(starts[i]);
    if (std::isfinite(value)) order.emplace_back(value, i);
  }
  std::sort(order.begin(), order.end());
  const Search search = search_for(starts.front().rows());
  order.resize(std::min(order.size(), search.n_starts));
  const DescentOptions coarse{options.max_iter, std::max(options.tol, search.tol), options.watch,
                              options.after};
  Descent best;
  for (const auto& start : order)
    for (const Index sweeps : search.sweeps) {
      if (!best.path.empty() && options.stop()) break;
      try {
        Matrix candidate = starts[start.second];
        Descent descent = problem.minimise_affine(candidate, sweeps, coarse);
        if (!best.path.empty() && !(descent.value() < best.value())) continue;
        best = std::move(descent);
        B = std::move(candidate);
      } catch (const NumericalError&) {
        // One start of several.
      }
    }
  if (best.path.empty()) throw NumericalError("no start of the affine problem got through", -1, -1);
  if (options.stop()) {
    best.converged = false;
    return best;
  }
  Descent rest = problem.minimise_affine(B, 0, options);
  rest.path.insert(rest.path.begin(), best.path.begin(), best.path.end());
  return rest;
}

// Over hundreds of problems the swept pairing ended lowest every time. The tied optimum is the one
// to take where it is as near, because of all equally near maps it moves points least.
Descent lowest_of_two_classes(const TwoClassProblem& problem, const Matrix& tied,
                              const DescentOptions& options, Matrix& B) {
  Matrix X = problem.paired(tied);
  problem.descend_rows(X, kPairSweeps, {options.max_iter, kCoarse, options.watch, options.after});
  Descent descent = problem.minimise(X, options);
  const Matrix other = problem.to_diagonal(tied);
  if (problem.value(other) < descent.value() + options.tol) {
    X = other;
    descent = problem.minimise(X, options);
  }
  B = problem.from_diagonal(X);
  return descent;
}

}  // namespace

void FullModel::fit_group(State& state, Index a, const Vector& w, double tol) const {
  const Index d = subgroups_.n_features, K = subgroups_.n_classes;
  Vector nu_mean = Vector::Zero(d), mu_mean = Vector::Zero(d);
  for (Index k = 0; k < K; ++k) {
    if (w[k] <= 0) continue;
    nu_mean += w[k] * state.nu.col(k);
    mu_mean += w[k] * subgroups_.mean(k, a);
  }
  const Matrix zero = Matrix::Zero(d, d);
  Averages average{zero, zero, zero, zero};
  std::vector<Side> sides;
  for (Index k = 0; k < K; ++k) {
    if (w[k] <= 0) continue;
    const Vector nu = state.nu.col(k) - nu_mean, mu = subgroups_.mean(k, a) - mu_mean;
    average.between.noalias() += (w[k] * nu) * nu.transpose();
    average.cross.noalias() += (w[k] * mu) * nu.transpose();
    average.C += w[k] * state.C[canonical(k)];
    average.Sigma += w[k] * subgroups_.covariance(k, a);
    if (!tied())
      sides.push_back({w[k], w[k] * precision_[cell(k, a)], state.C[canonical(k)], mu, nu});
  }
  Matrix& B = state.B[a];
  Descent& descent = state.descent[a];
  const bool fresh = descent.path.empty();
  const DescentOptions options{options_.max_iter, tol, options_.watch, options_.after};
  const GroupProblem problem =
      tied() ? tied_problem_of(precision_[cell(0, a)], average) : problem_of(sides);
  if (options_.alignment == Alignment::symmetric) {
    if (fresh) B = transport_map(average.C, average.Sigma);
    // Convex, and the convergence quadratic: twice the digits cost a step or two.
    descent = problem.minimise_symmetric(
        B, {options_.max_iter, tol * tol, options_.watch, options_.after});
  } else if (sides.size() == 1 && fresh) {
    B = tied_start(average);  // exact, and of all optimal isometries it moves points least
    descent = {{0.0}, true};
  } else if (fresh && options.stop()) {
    B = tied_start(average);  // a map at least, where there is time for no descent
    descent = {{0.0}, false};
  } else if (sides.size() == 2) {
    const TwoClassProblem two(sides[0], sides[1]);
    if (fresh) {
      descent = lowest_of_two_classes(two, tied_start(average), options, B);
    } else {
      Matrix X = two.to_diagonal(B);
      descent = two.minimise(X, options);
      B = two.from_diagonal(X);
    }
  } else if (fresh) {
    descent = lowest_basin(
        problem, starts_of(problem, sides, average, state.C[canonical(state.pinned)], options),
        options, B);
  } else {
    descent = problem.minimise_affine(B, 0, options);
  }
  state.m[a] = problem.shift(B) + mu_mean - B * nu_mean;
}

void FullModel::fit_canonical(State& state, const FamilyWeights& weights,
                              const Mask& classes) const {
  const Index d = subgroups_.n_features, K = subgroups_.n_classes, G = subgroups_.n_groups;
  const bool symmetric = options_.alignment == Alignment::symmetric;
  std::vector<Matrix> pulled;  // tied: B^T P B of every group
  if (tied())
    for (Index a = 0; a < G; ++a) {
      const Matrix& B = state.B[a];
      pulled.push_back(linalg::congruence(B.transpose(), precision_[cell(0, a)]));
    }
  for (Index k = 0; k < K; ++k) {
    if (!classes[k]) continue;
    state.known[k] = 1;
    Matrix A = Matrix::Zero(d, d);
    Vector b = Vector::Zero(d);
    for (Index a = 0; a < G; ++a) {
      const double w = weights.shares(k, a);
      if (!(w > 0)) continue;
      const Matrix& B = state.B[a];
      const Matrix& P = precision_[cell(k, a)];
      A += w * (tied() ? pulled[a] : linalg::congruence(B.transpose(), P));
      b += w * (B.transpose() * (P * (subgroups_.mean(k, a) - state.m[a])));
    }
    floor_spectrum(A, A.diagonal().cwiseSqrt(), 1e-13);  // its inverse is used
    const Matrix factor = cholesky(A);
    linalg::solve_lower(factor, b);
    linalg::solve_lower_transposed(factor, b);
    state.nu.col(k) = b;
    // Symmetric maps hold one covariance at the identity; tied, there is no other.
    if (tied() || (symmetric && k == state.pinned)) continue;
    Matrix half = Matrix::Identity(d, d);
    linalg::solve_lower(factor, half);
    state.C[k] = linalg::gram(half.transpose());
  }
}

Matrix FullModel::divergences(const State& state) const {
  Matrix cells = Matrix::Zero(subgroups_.n_classes, subgroups_.n_groups);
  for (Index k = 0; k < cells.rows(); ++k)
    for (Index a = 0; a < cells.cols(); ++a)
      if (subgroups_.seen(k, a)) cells(k, a) = divergence(state, k, a);
  return cells;
}

double FullModel::divergence(const State& state, Index k, Index a) const {
  const Matrix scaled = linalg::product(state.B[a], cholesky(state.C[canonical(k)]));
  const Vector residual = state.m[a] + state.B[a] * state.nu.col(k) - subgroups_.mean(k, a);
  const Matrix& P = precision_[cell(k, a)];
  const double log_det = 2 * log_abs_det(scaled);
  return 0.5 * (inner(linalg::product(P, scaled), scaled) + residual.dot(P * residual) -
                static_cast<double>(residual.size()) + log_det_[cell(k, a)] - log_det);
}

void lift(const Subgroups& subgroups, const Solution<FullModel::State>& solution, Index reference,
          IdealResult& result) {
  const FullModel::State& state = solution.state;
  const Index d = subgroups.n_features;
  std::vector<Matrix> E;
  std::vector<Vector> t;
  for (Index a = 0; a < subgroups.n_groups; ++a) {
    E.push_back(linalg::LU(state.B[a]).inverse());
    t.push_back(-E[a] * state.m[a]);
  }
  Frame frame;
  if (reference < 0) {
    const auto moments = group_moments(subgroups);
    frame = least_squares_frame(moments, E, t);
    if (!is_invertible(frame, feature_scale(moments))) {
      frame = {state.B[0], state.m[0]};  // of the heaviest group
    }
  } else {
    frame = {state.B[reference], state.m[reference]};
  }
  for (Index a = 0; a < subgroups.n_groups; ++a) {
    const bool still = a == reference;
    result.linear.push_back(still ? Matrix(Matrix::Identity(d, d))
                                  : linalg::product(frame.linear, E[a]));
    result.offset.push_back(still ? Vector(Vector::Zero(d))
                                  : Vector(frame.linear * t[a] + frame.offset));
  }
  result.canonical_mean = linalg::product(frame.linear, state.nu).colwise() + frame.offset;
  for (const Matrix& C : state.C)
    result.canonical_covariance.push_back(linalg::congruence(frame.linear, C));
}

}  // namespace fairsteer::detail
