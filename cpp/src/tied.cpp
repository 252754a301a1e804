#include "tied.hpp"

#include <cmath>

#include "fairsteer/errors.hpp"
#include "fairsteer/gaussian.hpp"
#include "frame.hpp"

namespace fairsteer::detail {
namespace {

// Below this a singular value of the whitened class-mean cross-covariance is rounding error, and
// its direction says nothing.
constexpr double kNoInformation = 1e-10;

// The frame is only a choice of coordinates: more rounds than this change nothing that matters.
constexpr int kFrameRounds = 10;

}  // namespace

ClosedForm::ClosedForm(const ConstMatrixRef& T, const ConstMatrixRef& M) : L_t(cholesky(T)) {
  // L = M L_t^{-T}, so L^T solves L_t L^T = M^T.
  const Matrix L = L_t.triangularView<Eigen::Lower>().solve(Matrix(M.transpose())).transpose();
  const SingularValues decomposition = svd(L);
  U = decomposition.U;
  V = decomposition.V;
  l = decomposition.s;
  x = 0.5 * (l.array() + (l.array().square() + 4).sqrt());
}

Index ClosedForm::n_informative() const { return (l.array() > kNoInformation).count(); }

Matrix ClosedForm::map() const {
  // B L_t = U diag(x) V^T
  return L_t.transpose()
      .triangularView<Eigen::Upper>()
      .solve(V * x.asDiagonal() * U.transpose())
      .transpose();
}

TiedModel::TiedModel(const Subgroups& subgroups)
    : subgroups_(subgroups), rank_(std::min(subgroups.n_features, subgroups.n_classes - 1)) {
  const Index d = subgroups.n_features, K = subgroups.n_classes;
  for (Index a = 0; a < subgroups.n_groups; ++a) {
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
      group.H.triangularView<Eigen::Lower>().solveInPlace(means);
      Matrix differences = Matrix::Zero(d, K - 1);
      for (Index k = 0, j = 0; k < K; ++k)
        if (k != first) {
          if (subgroups.seen(k, a)) differences.col(j) = means.col(k) - means.col(first);
          ++j;
        }
      group.span.compute(differences);
      Matrix rotated = group.span.householderQ().transpose() * means;
      group.means = rotated.topRows(rank_);
    } else {
      group.means = Matrix::Zero(0, K);
    }
    groups_.push_back(std::move(group));
  }
}

void TiedModel::start(State& state, Index group) const {
  const Index G = subgroups_.n_groups;
  state.nu = groups_[group].means;
  state.C = Matrix::Identity(rank_, rank_);
  state.B.assign(G, Matrix::Identity(rank_, rank_));
  state.m.assign(G, Vector::Zero(rank_));
  state.known.assign(subgroups_.n_classes, 0);
  for (Index k = 0; k < subgroups_.n_classes; ++k) state.known[k] = subgroups_.seen(k, group);
}

namespace {

// T and M of one group's problem, with the shift eliminated.
struct TiedProblem {
  Vector nu_mean, mu_mean;
  Matrix T, M;

  TiedProblem(const Matrix& C, const Matrix& nu, const Matrix& mu, const Vector& w)
      : nu_mean(nu * w), mu_mean(mu * w), T(C) {
    const Matrix weighted = (nu.colwise() - nu_mean) * w.asDiagonal();
    T.noalias() += weighted * (nu.colwise() - nu_mean).transpose();
    M = (mu.colwise() - mu_mean) * weighted.transpose();
  }
};

}  // namespace

void TiedModel::fit_group(State& state, Index a, const Vector& w, double /*tol*/) const {
  if (rank_ == 0) return;
  const TiedProblem problem(state.C, state.nu, groups_[a].means, w);
  state.B[a] = ClosedForm(problem.T, problem.M).map();
  state.m[a] = problem.mu_mean - state.B[a] * problem.nu_mean;
}

void TiedModel::fit_canonical(State& state, const Matrix& weight, const Mask& classes) const {
  for (Index k = 0; k < subgroups_.n_classes; ++k)
    if (classes[k]) state.known[k] = 1;
  if (rank_ == 0) return;
  std::vector<Matrix> precision;
  for (const Matrix& B : state.B) precision.push_back(B.transpose() * B);
  bool all = true;
  for (Index k = 0; k < subgroups_.n_classes; ++k) {
    if (!classes[k]) {
      all = false;
      continue;
    }
    Matrix A = Matrix::Zero(rank_, rank_);
    Vector b = Vector::Zero(rank_);
    for (Index a = 0; a < subgroups_.n_groups; ++a) {
      const double w = weight(k, a);
      A += w * precision[a];
      b += w * state.B[a].transpose() * (groups_[a].means.col(k) - state.m[a]);
    }
    if (A.trace() > 0) state.nu.col(k) = A.ldlt().solve(b);
  }
  if (!all) return;  // filling in classes that the start does not know: its covariance stands
  Matrix A = Matrix::Zero(rank_, rank_);
  for (Index a = 0; a < subgroups_.n_groups; ++a) A += weight.col(a).sum() * precision[a];
  state.C = (A / weight.sum()).ldlt().solve(Matrix::Identity(rank_, rank_));
  state.C = 0.5 * (state.C + state.C.transpose()).eval();
}

double TiedModel::divergence(const State& state, Index k, Index a) const {
  if (rank_ == 0) return 0;
  const Matrix scaled = state.B[a] * cholesky(state.C);
  const Vector residual = state.m[a] + state.B[a] * state.nu.col(k) - groups_[a].means.col(k);
  const double log_det = log_abs_det(scaled);
  return 0.5 * (scaled.squaredNorm() - static_cast<double>(rank_) + residual.squaredNorm()) -
         log_det;
}

void TiedModel::lift(const Solution<State>& solution, Index reference, IdealResult& result) const {
  const Index d = subgroups_.n_features, r = rank_, G = subgroups_.n_groups;
  const Priors& priors = solution.priors;

  // Canonical coordinates with unit covariance: z = (span, complement).
  const Matrix root = cholesky(solution.state.C);
  Matrix nu = solution.state.nu;
  root.triangularView<Eigen::Lower>().solveInPlace(nu);

  // Group a: x = centre + H Q (m + X z) with X = (U D V^T + U' O V'^T) L_t^{-1}, where U, V hold
  // the directions that carry class information and O is free.
  struct Lifted {
    Matrix L_t;                          // (r, r); identity on the complement
    Eigen::HouseholderQR<Matrix> basis;  // of U within the whitened features: [U U']
    Matrix V;  // (r, r) [V V'] within the span; identity on the complement
    Vector x;  // (s)
    Matrix O;  // (d - s, d - s)
    Vector m;
    Index s = 0;
  };
  std::vector<Lifted> lifted(G);
  for (Index a = 0; a < G; ++a) {
    Lifted& to = lifted[a];
    const Group& group = groups_[a];
    const Vector w = class_weights(subgroups_, priors.p, a);
    to.m = Vector::Zero(d);
    if (r > 0) {
      const TiedProblem problem(Matrix::Identity(r, r), nu, group.means, w);
      const ClosedForm closed(problem.T, problem.M);
      to.s = closed.n_informative();
      to.L_t = closed.L_t;
      to.V = closed.V;
      to.x = closed.x.head(to.s);
      // The offset within the span; the whole of X is applied to nu below, once O is known.
      to.m.head(r) = problem.mu_mean;
      if (to.s > 0) {
        Matrix U = Matrix::Zero(d, to.s);
        U.topRows(r) = closed.U.leftCols(to.s);
        U = (group.span.householderQ() * U).eval();
        to.basis.compute(U);
        // Householder fixes U only up to the sign of its columns.
        const Vector sign = to.basis.matrixQR().diagonal().head(to.s).cwiseSign();
        to.x = to.x.cwiseProduct(sign);
      }
      to.m = group.span.householderQ() * to.m;
    } else {
      to.L_t = to.V = Matrix(0, 0);
    }
    to.O = Matrix::Identity(d - to.s, d - to.s);
  }

  // X_a applied to a matrix in canonical coordinates, and its inverse applied to whitened features.
  const auto to_group = [&](const Lifted& to, Matrix z) {
    if (r > 0) {
      Matrix top = to.L_t.triangularView<Eigen::Lower>().solve(z.topRows(r));
      z.topRows(r) = to.V.transpose() * top;
    }
    z.topRows(to.s) = to.x.asDiagonal() * z.topRows(to.s);
    z.bottomRows(d - to.s) = (to.O * z.bottomRows(d - to.s)).eval();
    if (to.s > 0) z.applyOnTheLeft(to.basis.householderQ());
    return z;
  };
  const auto to_canonical = [&](const Lifted& to, Matrix y) {
    if (to.s > 0) y.applyOnTheLeft(to.basis.householderQ().adjoint());
    y.topRows(to.s) = to.x.cwiseInverse().asDiagonal() * y.topRows(to.s);
    y.bottomRows(d - to.s) = (to.O.transpose() * y.bottomRows(d - to.s)).eval();
    if (r > 0) {
      const Matrix top = to.V * y.topRows(r);
      y.topRows(r) = to.L_t.triangularView<Eigen::Lower>() * top;
    }
    return y;
  };
  // z = E x + t
  std::vector<Matrix> E(lifted.size());
  std::vector<Vector> t(lifted.size());
  const auto invert = [&](Index a) {
    const Lifted& to = lifted[a];
    Matrix inverse = Matrix::Identity(d, d);
    groups_[a].H.triangularView<Eigen::Lower>().solveInPlace(inverse);
    E[a] = to_canonical(to, inverse);
    // The group's average class mean is the image of the canonical one.
    Vector z = Vector::Zero(d);
    if (r > 0) z.head(r) = nu * class_weights(subgroups_, priors.p, a);
    t[a] = z - to_canonical(to, to.m) - E[a] * groups_[a].centre;
  };
  // The isometry that moves the points of group a least when canonical points lie at `frame`.
  const auto least_displacement = [&](Index a, const Matrix& frame) {
    Lifted& to = lifted[a];
    Matrix cross = groups_[a].H.transpose().triangularView<Eigen::Upper>() * frame;  // H^T F
    if (r > 0) {
      // F L_t^{-T} V on the span
      const Matrix left = cross.leftCols(r).transpose();
      const Matrix solved = to.L_t.triangularView<Eigen::Lower>().solve(left);
      cross.leftCols(r) = solved.transpose() * to.V;
    }
    if (to.s > 0) cross.applyOnTheLeft(to.basis.householderQ().adjoint());
    to.O = polar_factor(cross.bottomRightCorner(d - to.s, d - to.s));
  };

  Index anchor = reference;
  if (anchor < 0) subgroups_.weight.colwise().sum().maxCoeff(&anchor);
  // The anchor's own coordinates: u = x for its points. Its isometry only names the complement.
  Frame frame;
  const auto anchor_frame = [&] {
    frame.linear = groups_[anchor].H.triangularView<Eigen::Lower>() *
                   to_group(lifted[anchor], Matrix::Identity(d, d));
    invert(anchor);
    frame.offset = -frame.linear * t[anchor];
  };
  anchor_frame();
  for (Index a = 0; a < G; ++a) {
    if (a != anchor) least_displacement(a, frame.linear);
    invert(a);
  }
  if (reference < 0) {
    const auto moments = group_moments(subgroups_);
    const Vector scale = feature_scale(moments);
    Frame fitted = least_squares_frame(moments, E, t);
    // Two groups: the first isometry is already the best. More: each round moves points less.
    for (int round = 0; G > 2 && r < d && round < kFrameRounds; ++round) {
      const Matrix before = fitted.linear;
      for (Index a = 0; a < G; ++a) {
        least_displacement(a, fitted.linear);
        invert(a);
      }
      fitted = least_squares_frame(moments, E, t);
      const auto relative = [&](const Matrix& F) {
        return (scale.cwiseInverse().asDiagonal() * F).eval();
      };
      if (relative(fitted.linear - before).norm() <= 1e-6 * relative(fitted.linear).norm()) break;
    }
    if (is_invertible(fitted, scale))
      frame = std::move(fitted);
    else
      anchor_frame();
  }

  const Eigen::PartialPivLU<Matrix> frame_factor(frame.linear);
  const Matrix frame_inverse = frame_factor.inverse();
  for (Index a = 0; a < G; ++a) {
    if (a == reference) {
      result.linear.push_back(Matrix::Identity(d, d));
      result.offset.push_back(Vector::Zero(d));
      result.inverse_linear.push_back(Matrix::Identity(d, d));
      result.inverse_offset.push_back(Vector::Zero(d));
      continue;
    }
    result.linear.push_back(frame.linear * E[a]);
    result.offset.push_back(frame.linear * t[a] + frame.offset);
    result.inverse_linear.push_back(groups_[a].H.triangularView<Eigen::Lower>() *
                                    to_group(lifted[a], frame_inverse));
    result.inverse_offset.push_back(-result.inverse_linear[a] * result.offset[a]);
  }
  Matrix canonical = Matrix::Zero(d, subgroups_.n_classes);
  canonical.topRows(r) = nu;
  result.canonical_mean = (frame.linear * canonical).colwise() + frame.offset;
  Matrix covariance = Matrix::Zero(d, d);
  covariance.selfadjointView<Eigen::Lower>().rankUpdate(frame.linear);
  covariance.triangularView<Eigen::StrictlyUpper>() = covariance.transpose();
  result.canonical_covariance = {covariance};
}

}  // namespace fairsteer::detail
