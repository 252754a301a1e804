#include "tied.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "fairsteer/covariances.hpp"
#include "fairsteer/errors.hpp"
#include "frame.hpp"
#include "linalg.hpp"

namespace fairsteer::detail {
namespace {

// Below this a singular value of the whitened class-mean cross-covariance is rounding error, and
// its direction says nothing.
constexpr double kNoInformation = 1e-10;

// Rounds of isometries and frame: mostly a dozen, hundreds where groups hardly vary in some directions.
constexpr int kFrameRounds = 1000;
constexpr double kFrameChange = 1e-13;  // of a round, relative, that is rounding

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
  }
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

namespace {

// T and M of one group's problem, with the shift eliminated.
struct TiedProblem {
  Vector nu_mean, mu_mean;
  Matrix T, M;

  TiedProblem(const Matrix& C, const Matrix& nu, const Matrix& mu, const Vector& w)
      : nu_mean(nu * w), mu_mean(mu * w), T(C) {
    const Matrix centred = nu.colwise() - nu_mean, mu_centred = mu.colwise() - mu_mean;
    const Matrix weighted = centred * w.asDiagonal();
    linalg::add_product(weighted, centred.transpose(), T);
    M = linalg::product(mu_centred, weighted.transpose());
  }
};

}  // namespace

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

namespace {

// Group a in canonical coordinates z: x = centre + H Q (m + X z) with
// X = [U U'] diag(D, O) [V V']^T L_t^{-1}, where U and V hold the directions that carry class
// information and the isometry O of the others is free.
struct Lifted {
  Index d = 0, r = 0, s = 0;  // features, dimension of the span, informative directions
  Matrix L_t;                 // (r, r); identity outside the span
  linalg::QR basis;           // [U U'] among the whitened features
  Matrix V;                   // (r, r); identity outside the span
  Vector x;                   // (s) the diagonal of D
  Matrix O;                   // (d - s, d - s); empty: the identity
  Vector m;                   // (d) among the whitened features

  Matrix factor_to_group(const Matrix& H) const {  // H X
    Matrix Y = left_part(H, x);
    if (r > 0) {
      Matrix span = linalg::product(Y.leftCols(r), V.transpose());
      linalg::solve_lower_on_the_right(span, L_t);
      Y.leftCols(r) = span;
    }
    return Y;
  }
  Matrix factor_to_canonical(const Matrix& H) const {  // H X^{-T}
    Matrix Y = left_part(H, x.cwiseInverse());
    if (r > 0) {
      Matrix span = linalg::product(Y.leftCols(r), V.transpose());
      linalg::multiply_by_lower_transposed(span, L_t);
      Y.leftCols(r) = span;
    }
    return Y;
  }
  Matrix through_inverse(Matrix F) const {  // F X^{-1}
    if (r > 0) {
      Matrix span = V;
      linalg::multiply_lower(L_t, span);
      F.leftCols(r) = linalg::product(F.leftCols(r), span);
      F.leftCols(s) *= x.cwiseInverse().asDiagonal();
    }
    if (O.size() > 0) F.rightCols(d - s) = linalg::product(F.rightCols(d - s), O.transpose());
    basis.multiply_transposed_on_the_right(F);
    return F;
  }
  void solve(Matrix& y) const {  // X^{-1} y
    basis.multiply_transposed(y);
    y.topRows(s) = x.cwiseInverse().asDiagonal() * y.topRows(s);
    if (O.size() > 0) y.bottomRows(d - s) = linalg::product(O.transpose(), y.bottomRows(d - s));
    if (r > 0) {
      Matrix span = linalg::product(V, y.topRows(r));
      linalg::multiply_lower(L_t, span);
      y.topRows(r) = span;
    }
  }
  Matrix span_covariance() const {  // the part of X^{-1} X^{-T} that is not the identity
    Matrix root = V;
    linalg::multiply_lower(L_t, root);
    root.leftCols(s) *= x.cwiseInverse().asDiagonal();
    return linalg::gram(root);
  }

 private:
  // H [U U'] diag(scale, O): thin products where O is the identity.
  Matrix left_part(const Matrix& H, const Vector& scale) const {
    if (O.size() == 0) {
      Matrix Y = H;
      basis.multiply_on_the_right(Y);
      Y.leftCols(s) *= scale.asDiagonal();
      return Y;
    }
    Matrix Y = Matrix::Zero(d, d);
    Y.diagonal().head(s) = scale;
    Y.bottomRightCorner(d - s, d - s) = O;
    basis.multiply(Y);
    linalg::multiply_lower(H, Y);
    return Y;
  }
};

}  // namespace

void TiedModel::lift(const Solution<State>& solution, Index reference, IdealResult& result) {
  const Index d = subgroups_.n_features, r = rank_, G = subgroups_.n_groups;
  const Priors& priors = solution.priors;

  // Canonical coordinates with unit covariance: z = (span, complement).
  const Matrix root = cholesky(solution.state.C);
  Matrix nu = solution.state.nu;
  linalg::solve_lower(root, nu);

  const Index anchor = reference < 0 ? 0 : reference;  // the heaviest group comes first
  std::vector<Lifted> lifted(G);
  for (Index a = 0; a < G; ++a) {
    Lifted& to = lifted[a];
    const Group& group = groups_[a];
    to.d = d;
    to.r = r;
    to.m = Vector::Zero(d);
    if (r > 0) {
      const TiedProblem problem(Matrix::Identity(r, r), nu, group.means,
                                class_weights(subgroups_, priors.log_p, a));
      ClosedForm closed(problem.T, problem.M);
      to.s = closed.n_informative();
      if (a == anchor && to.s < r) {
        // A class that the anchor lacks lies where the anchor's map was when the class was found.
        Matrix present = linalg::product(solution.state.B[a], root);
        linalg::multiply_by_lower(present, closed.L_t);
        closed.complete(to.s, present);
        to.s = r;
      }
      to.L_t = closed.L_t;
      to.V = closed.V;
      to.m.head(r) = problem.mu_mean;
      group.span.multiply(to.m);
      Matrix U = Matrix::Zero(d, to.s);
      U.topRows(r) = closed.U.leftCols(to.s);
      group.span.multiply(U);
      to.basis = linalg::QR(std::move(U));
      // Its columns come back up to these signs.
      to.x = closed.x.head(to.s).cwiseProduct(to.basis.diagonal().cwiseSign());
    }
  }

  // z = E x + t with E = X^{-1} H^{-1}; the group's average class mean is the image of the
  // canonical one.
  const auto into_canonical = [&](Index a, Matrix y) {  // E y
    linalg::solve_lower(groups_[a].H, y);
    lifted[a].solve(y);
    return y;
  };
  const auto shift_into_canonical = [&](Index a) {  // t
    Matrix m = lifted[a].m;
    lifted[a].solve(m);
    Vector t = -m - into_canonical(a, groups_[a].centre);
    if (r > 0) t.head(r) += nu * class_weights(subgroups_, priors.log_p, a);
    return t;
  };
  // The isometry that moves the points of group a least when canonical points lie at `frame`.
  const auto least_displacement = [&](Index a, const Matrix& frame) {
    Lifted& to = lifted[a];
    Matrix cross = frame;
    linalg::multiply_lower_transposed(groups_[a].H, cross);  // H^T F
    if (r > 0) {
      // F L_t^{-T} V on the span
      Matrix span = cross.leftCols(r);
      linalg::solve_lower_transposed_on_the_right(span, to.L_t);
      linalg::product(span, to.V, cross.leftCols(r));
    }
    to.basis.multiply_transposed(cross);
    to.O = polar_factor(cross.bottomRightCorner(d - to.s, d - to.s));
  };
  // The frame that moves the points of all groups least, for the present isometries: a regression
  // of x on z.
  const auto fit_frame = [&] {
    Vector x_mean = Vector::Zero(d), z_mean = Vector::Zero(d);
    Matrix xz = Matrix::Zero(d, d);
    // The covariance of z is the identity and a few directions: I + U S U^T, U = (span, means).
    const Index K = subgroups_.n_classes, n_means = G * (K + 1);
    Matrix U = Matrix::Zero(d, r + n_means), S = Matrix::Identity(r + n_means, r + n_means);
    U.topLeftCorner(r, r).setIdentity();
    S.topLeftCorner(r, r) *= -1;
    std::vector<Vector> x_of, z_of;
    for (Index a = 0; a < G; ++a) {
      const double weight = subgroups_.weight.col(a).sum();
      // Within classes: Sigma E^T = H X^{-T}, and E Sigma E^T = X^{-1} X^{-T}.
      if (r > 0) S.topLeftCorner(r, r) += weight * lifted[a].span_covariance();
      xz += weight * lifted[a].factor_to_canonical(groups_[a].H);
      const Matrix between = class_differences(a);
      auto moved = U.middleCols(r + a * (K + 1), K);
      moved = into_canonical(a, between);
      linalg::add_product(between, moved.transpose(), xz);
      x_of.push_back(group_mean(a));
      z_of.push_back(into_canonical(a, x_of.back()) + shift_into_canonical(a));
      x_mean += weight * x_of.back();
      z_mean += weight * z_of.back();
    }
    for (Index a = 0; a < G; ++a) {
      const double weight = subgroups_.weight.col(a).sum();
      const Vector dz = z_of[a] - z_mean;
      xz.noalias() += (weight * (x_of[a] - x_mean)) * dz.transpose();
      U.col(r + a * (K + 1) + K) = std::sqrt(weight) * dz;
    }
    // F (I + U S U^T) = xz
    Frame frame{Matrix(), Vector()};
    if (U.cols() < d / 4) {
      // xz - (xz U) S (I + U^T U S)^{-1} U^T
      Matrix small = Matrix::Identity(U.cols(), U.cols());
      linalg::add_product(linalg::gram(U.transpose()), S, small);
      Matrix left = linalg::product(linalg::product(xz, U), S).transpose();
      linalg::LU(std::move(small)).solve_transposed_in_place(left);
      linalg::add_product(left.transpose(), U.transpose(), xz, -1);
      frame.linear = std::move(xz);
    } else {
      Matrix zz = Matrix::Identity(d, d);
      zz += linalg::congruence(U, S);
      const linalg::Cholesky factor(std::move(zz));
      if (factor.succeeded()) {
        frame.linear = xz.transpose();
        factor.solve_in_place(frame.linear);
        frame.linear.transposeInPlace();
      } else {
        frame.linear = Matrix::Constant(d, d, std::numeric_limits<double>::quiet_NaN());
      }
    }
    frame.offset = x_mean - frame.linear * z_mean;
    return frame;
  };

  // The anchor's own coordinates: u = x for its points. Its isometry only names the complement.
  const auto frame_of_anchor = [&] {
    Frame frame{lifted[anchor].factor_to_group(groups_[anchor].H), Vector()};
    frame.offset = -frame.linear * shift_into_canonical(anchor);
    return frame;
  };
  Frame frame = frame_of_anchor();
  for (Index a = 0; a < G; ++a)
    if (a != anchor) least_displacement(a, frame.linear);
  if (reference < 0) {
    // F = D R, with the standard deviations of the features in D: units do not make it singular.
    const Vector scale = feature_scale();
    const auto relative = [&](const Matrix& F) -> Matrix {
      return scale.cwiseInverse().asDiagonal() * F;
    };
    frame = fit_frame();
    // Two groups: the first isometry is already the best. More: each round moves points less, until
    // the isometries depend on no group's coordinates any more.
    const bool free =
        std::any_of(lifted.begin(), lifted.end(), [&](const Lifted& to) { return to.s < d; });
    double last = std::numeric_limits<double>::infinity();
    for (int round = 0; G > 2 && free && round < kFrameRounds; ++round) {
      if (options_.stop()) {
        result.converged = false;
        break;
      }
      const Matrix before = frame.linear;
      for (Index a = 0; a < G; ++a) least_displacement(a, before);
      frame = fit_frame();
      const double change = relative(frame.linear - before).norm() / relative(frame.linear).norm();
      // What does not shrink any more is rounding.
      if (!(change > kFrameChange) || (change < 1e-9 && change >= last)) break;
      last = change;
    }
    if (!frame.linear.allFinite() ||
        !(linalg::LU(relative(frame.linear)).reciprocal_condition() > 1e-10))
      frame = frame_of_anchor();
  }

  // From here on, what is not needed any more makes room for what comes.
  Matrix canonical = Matrix::Zero(d, subgroups_.n_classes);
  canonical.topRows(r) = nu;
  result.canonical_mean = linalg::product(frame.linear, canonical).colwise() + frame.offset;
  for (Index a = 0; a < G; ++a) {
    if (a == reference) {
      result.linear.push_back(Matrix::Identity(d, d));
      result.offset.push_back(Vector::Zero(d));
      continue;
    }
    result.offset.push_back(frame.linear * shift_into_canonical(a) + frame.offset);
    Matrix linear = lifted[a].through_inverse(frame.linear);
    lifted[a].O.resize(0, 0);
    linalg::solve_lower_on_the_right(linear, groups_[a].H);
    groups_[a].H.resize(0, 0);
    result.linear.push_back(std::move(linear));
  }
  result.canonical_covariance.push_back(linalg::gram(frame.linear));
}

Vector TiedModel::group_mean(Index a) const {
  Vector mean = Vector::Zero(subgroups_.n_features);
  for (Index k = 0; k < subgroups_.n_classes; ++k)
    mean += subgroups_.weight(k, a) / subgroups_.weight.col(a).sum() * subgroups_.mean(k, a);
  return mean;
}

Matrix TiedModel::class_differences(Index a) const {
  const Vector mean = group_mean(a);
  Matrix differences = Matrix::Zero(subgroups_.n_features, subgroups_.n_classes);
  for (Index k = 0; k < subgroups_.n_classes; ++k)
    if (subgroups_.seen(k, a))
      differences.col(k) = std::sqrt(subgroups_.weight(k, a)) * (subgroups_.mean(k, a) - mean);
  return differences;
}

Vector TiedModel::feature_scale() const {
  const Index d = subgroups_.n_features, G = subgroups_.n_groups;
  Vector mean = Vector::Zero(d), variance = Vector::Zero(d);
  for (Index a = 0; a < G; ++a) mean += subgroups_.weight.col(a).sum() * group_mean(a);
  for (Index a = 0; a < G; ++a) {
    const double weight = subgroups_.weight.col(a).sum();
    variance += weight * subgroups_.covariance(0, a).diagonal();
    variance += weight * (group_mean(a) - mean).cwiseAbs2();
    variance += class_differences(a).rowwise().squaredNorm();
  }
  return (variance.array() > 0).select(variance.cwiseSqrt(), 1.0);
}

}  // namespace fairsteer::detail
