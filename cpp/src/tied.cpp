#include "tied.hpp"

#include <algorithm>
#include <cmath>

#include "fairsteer/covariances.hpp"
#include "fairsteer/errors.hpp"
#include "linalg.hpp"

namespace fairsteer::detail {
namespace {

// Below this a singular value of the whitened class-mean cross-covariance is rounding error, and
// its direction says nothing.
constexpr double kNoInformation = 1e-10;

}  // namespace

ClosedForm::ClosedForm(const ConstMatrixRef& T, const ConstMatrixRef& M) : L_t(cholesky(T)) {
  Matrix L = M;
  linalg::solve_lower_transposed_on_the_right(L, L_t);
  SingularValues decomposition = svd(L);
  U = std::move(decomposition.U);
  V = std::move(decomposition.V);
  l = std::move(decomposition.s);
  x = 0.5 * (l.array() + (l.array().square() + 4).sqrt());
}

Index ClosedForm::n_informative() const {
  if (l.size() == 0) return 0;
  return (l.array() > kNoInformation * std::max(1.0, l[0])).count();
}

void ClosedForm::complete(Index s, const ConstMatrixRef& pull) {
  const Index rest = U.cols() - s;
  const Matrix inner = linalg::product(U.rightCols(rest).transpose(), pull);
  const Matrix isometry = polar_factor(linalg::product(inner, V.rightCols(rest)));
  U.rightCols(rest) = linalg::product(U.rightCols(rest), isometry);
}

Matrix ClosedForm::map() const {
  // B L_t = U diag(x) V^T
  Matrix B = linalg::product(Matrix(U * x.asDiagonal()), V.transpose());
  linalg::solve_lower_on_the_right(B, L_t);
  return B;
}

TiedModel::TiedModel(const Subgroups& subgroups, const IdealOptions& options)
    : subgroups_(subgroups),
      options_(options),
      rank_(std::min(subgroups.n_features, subgroups.n_classes - 1)) {
  const Index d = subgroups.n_features, K = subgroups.n_classes;
  for (Index a = 0; a < subgroups.n_groups; ++a) {
    options.poll();
    const double before = options.elapsed();
    Group group;
    try {
      group.H = cholesky(subgroups.covariance(0, a));
    } catch (const NumericalError& error) {
      throw NumericalError(error.what(), -1, a);
    }
    group.centre = Vector::Zero(d);
    for (Index k = 0; k < K; ++k) group.centre += subgroups.weight(k, a) * subgroups.mean(k, a);
    group.centre /= subgroups.weight.col(a).sum();
    if (rank_ > 0) {
      Matrix means = Matrix::Zero(d, K);
      Index first = -1;
      for (Index k = 0; k < K; ++k) {
        if (!subgroups.seen(k, a)) continue;
        if (first < 0) first = k;
        means.col(k) = subgroups.mean(k, a) - group.centre;
      }
      linalg::solve_lower(group.H, means);
      Matrix differences = Matrix::Zero(d, K - 1);
      for (Index k = 0, j = 0; k < K; ++k)
        if (k != first) {
          if (subgroups.seen(k, a)) differences.col(j) = means.col(k) - means.col(first);
          ++j;
        }
      group.span = linalg::QR(std::move(differences));
      group.span.multiply_transposed(means);
      group.means = means.topRows(rank_);
    } else {
      group.means = Matrix::Zero(0, K);
    }
    groups_.push_back(std::move(group));
    seconds_a_group_ = std::min(seconds_a_group_, options.elapsed() - before);
  }
}

double TiedModel::seconds_to_lift() const {
  // The isometry of a group is a polar factor, beside which the Cholesky factor of its covariance
  // is little: 10 to 50 times as long for 40 to 768 features.
  constexpr double kLift = 40;
  return kLift * static_cast<double>(groups_.size()) * seconds_a_group_;
}

void TiedModel::start(State& state, Index group) const {
  const Index G = subgroups_.n_groups;
  state.nu = groups_[group].means;
  state.C = Matrix::Identity(rank_, rank_);
  state.B.assign(G, Matrix::Identity(rank_, rank_));
  state.m.assign(G, Vector::Zero(rank_));
  state.origin = group;
  state.known.assign(subgroups_.n_classes, 0);
  for (Index k = 0; k < subgroups_.n_classes; ++k) state.known[k] = subgroups_.seen(k, group);
}

Matrix TiedModel::span_image(Index a) const {
  Matrix image = Matrix::Identity(subgroups_.n_features, rank_);
  groups_[a].span.multiply(image);
  linalg::multiply_lower(groups_[a].H, image);
  return image;
}

void TiedModel::fit_group(State& state, Index a, const Vector& w, double /*tol*/) const {
  if (rank_ == 0) return;
  const TiedProblem problem(state.C, state.nu, groups_[a].means, w);
  ClosedForm closed(problem.T, problem.M);
  const Index s = closed.n_informative();
  if (s < rank_) {
    // A class is missing, or means coincide: directions without information take the isometry that
    // moves points least, never whatever signs a decomposition happens to have.
    const Matrix overlap = linalg::product(span_image(a).transpose(), span_image(state.origin));
    Matrix pull = linalg::product(overlap, state.C);
    linalg::solve_lower_transposed_on_the_right(pull, closed.L_t);
    closed.complete(s, pull);
  }
  state.B[a] = closed.map();
  state.m[a] = problem.mu_mean - state.B[a] * problem.nu_mean;
}

void TiedModel::fit_canonical(State& state, const FamilyWeights& weights,
                              const Mask& classes) const {
  for (Index k = 0; k < subgroups_.n_classes; ++k)
    if (classes[k]) state.known[k] = 1;
  if (rank_ == 0) return;
  std::vector<Matrix> precision;
  precision.reserve(state.B.size());
  for (const Matrix& B : state.B) precision.push_back(linalg::gram(B.transpose()));
  bool all = true;
  for (Index k = 0; k < subgroups_.n_classes; ++k) {
    if (!classes[k]) {
      all = false;
      continue;
    }
    Matrix A = Matrix::Zero(rank_, rank_);
    Vector b = Vector::Zero(rank_);
    for (Index a = 0; a < subgroups_.n_groups; ++a) {
      const double w = weights.shares(k, a);
      A += w * precision[a];
      b += w * state.B[a].transpose() * (groups_[a].means.col(k) - state.m[a]);
    }
    linalg::LU(std::move(A)).solve_in_place(b);
    state.nu.col(k) = b;
  }
  if (!all) return;  // filling in classes that the start does not know: its covariance stands
  Matrix A = Matrix::Zero(rank_, rank_);
  for (Index a = 0; a < subgroups_.n_groups; ++a) A += weights.cells.col(a).sum() * precision[a];
  state.C = linalg::LU(std::move(A)).inverse();
  linalg::symmetrise(state.C);
}

Matrix TiedModel::divergences(const State& state) const {
  const Index K = subgroups_.n_classes, G = subgroups_.n_groups;
  Matrix cells = Matrix::Zero(K, G);
  if (rank_ == 0) return cells;
  const Matrix root = cholesky(state.C);
  for (Index a = 0; a < G; ++a) {
    const Matrix scaled = linalg::product(state.B[a], root);
    const double within =
        0.5 * (scaled.squaredNorm() - static_cast<double>(rank_)) - log_abs_det(scaled);
    const Matrix residuals =
        (linalg::product(state.B[a], state.nu).colwise() + state.m[a]) - groups_[a].means;
    cells.col(a) = 0.5 * residuals.colwise().squaredNorm().transpose();
    cells.col(a).array() += within;
  }
  return cells;
}

}  // namespace fairsteer::detail
