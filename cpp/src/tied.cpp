#include "tied.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "fairsteer/errors.hpp"
#include "fairsteer/gaussian.hpp"
#include "frame.hpp"

namespace fairsteer::detail {
namespace {

// Below this a singular value of the whitened class-mean cross-covariance is rounding error, and
// its direction says nothing.
constexpr double kNoInformation = 1e-10;

// Rounds of isometries and frame. They converge linearly, and mostly within a few tens.
constexpr int kFrameRounds = 1000;
constexpr double kFrameChange = 1e-13;  // of a round, relative, that is rounding

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

Index ClosedForm::n_informative() const {
  if (l.size() == 0) return 0;
  return (l.array() > kNoInformation * std::max(1.0, l[0])).count();
}

Matrix ClosedForm::map() const {
  // B L_t = U diag(x) V^T
  return L_t.transpose()
      .triangularView<Eigen::Upper>()
      .solve(V * x.asDiagonal() * U.transpose())
      .transpose();
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

void TiedModel::fit_canonical(State& state, const FamilyWeights& weights,
                              const Mask& classes) const {
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
      const double w = weights.shares(k, a);
      A += w * precision[a];
      b += w * state.B[a].transpose() * (groups_[a].means.col(k) - state.m[a]);
    }
    state.nu.col(k) = A.ldlt().solve(b);
  }
  if (!all) return;  // filling in classes that the start does not know: its covariance stands
  Matrix A = Matrix::Zero(rank_, rank_);
  for (Index a = 0; a < subgroups_.n_groups; ++a) A += weights.cells.col(a).sum() * precision[a];
  state.C = A.ldlt().solve(Matrix::Identity(rank_, rank_));
  state.C = 0.5 * (state.C + state.C.transpose()).eval();
}

Matrix TiedModel::divergences(const State& state) const {
  const Index K = subgroups_.n_classes, G = subgroups_.n_groups;
  Matrix cells = Matrix::Zero(K, G);
  if (rank_ == 0) return cells;
  const Matrix root = cholesky(state.C);
  for (Index a = 0; a < G; ++a) {
    const Matrix scaled = state.B[a] * root;
    const double within =
        0.5 * (scaled.squaredNorm() - static_cast<double>(rank_)) - log_abs_det(scaled);
    const Matrix residuals = ((state.B[a] * state.nu).colwise() + state.m[a]) - groups_[a].means;
    cells.col(a) = 0.5 * residuals.colwise().squaredNorm().transpose();
    cells.col(a).array() += within;
  }
  return cells;
}

namespace {

// The orthogonal matrix whose first columns span given ones: I - W T W^T, a product of reflections
// that is applied by two thin products.
class Reflections {
 public:
  explicit Reflections(const Matrix& columns) : sign_(columns.cols()) {
    if (columns.cols() == 0) return;
    const Eigen::HouseholderQR<Matrix> qr(columns);
    const Index s = columns.cols();
    W_ = qr.matrixQR();
    sign_ = W_.diagonal().head(s).cwiseSign();
    W_.triangularView<Eigen::StrictlyUpper>().setZero();
    W_.diagonal().setOnes();
    T_ = Matrix::Zero(s, s);
    for (Index j = 0; j < s; ++j) {
      const double tau = qr.hCoeffs()[j];
      const Vector inner = W_.leftCols(j).transpose() * W_.col(j);
      T_.col(j).head(j) = T_.topLeftCorner(j, j).triangularView<Eigen::Upper>() * inner;
      T_.col(j).head(j) *= -tau;
      T_(j, j) = tau;
    }
  }

  /// The columns come back up to these signs.
  const Vector& sign() const { return sign_; }
  void apply_on_the_left(Matrix& Y) const {  // Q Y
    if (T_.size() == 0) return;
    const Matrix inner = T_ * (W_.transpose() * Y);
    Y.noalias() -= W_ * inner;
  }
  void apply_transpose_on_the_left(Matrix& Y) const {  // Q^T Y
    if (T_.size() == 0) return;
    const Matrix inner = T_.transpose() * (W_.transpose() * Y);
    Y.noalias() -= W_ * inner;
  }
  void apply_on_the_right(Matrix& Y) const {  // Y Q
    if (T_.size() == 0) return;
    const Matrix inner = (Y * W_) * T_;
    Y.noalias() -= inner * W_.transpose();
  }
  void apply_transpose_on_the_right(Matrix& Y) const {  // Y Q^T
    if (T_.size() == 0) return;
    const Matrix inner = (Y * W_) * T_.transpose();
    Y.noalias() -= inner * W_.transpose();
  }

 private:
  Matrix W_, T_;
  Vector sign_;
};

// Y <- H Y for a lower triangle H: columns some at a time, in place but for these.
void multiply_lower(const Matrix& H, Matrix& Y) {
  constexpr Index kColumns = 256;
  for (Index j = 0; j < Y.cols(); j += kColumns) {
    auto some = Y.middleCols(j, std::min(kColumns, Y.cols() - j));
    some = (H.triangularView<Eigen::Lower>() * some).eval();
  }
}

// Group a in canonical coordinates z: x = centre + H Q (m + X z) with
// X = [U U'] diag(D, O) [V V']^T L_t^{-1}, where U and V hold the directions that carry class
// information and the isometry O of the others is free.
struct Lifted {
  Index d = 0, r = 0, s = 0;        // features, dimension of the span, informative directions
  Matrix L_t;                       // (r, r); identity outside the span
  Reflections basis{Matrix(0, 0)};  // [U U'] among the whitened features
  Matrix V;                         // (r, r); identity outside the span
  Vector x;                         // (s) the diagonal of D
  Matrix O;                         // (d - s, d - s); empty: the identity
  Vector m;                         // (d) among the whitened features

  Matrix factor_to_group(const Matrix& H) const {  // H X
    Matrix Y = left_part(H, x);
    if (r > 0) {
      const Matrix span = V * Y.leftCols(r).transpose();
      Y.leftCols(r) = L_t.transpose().triangularView<Eigen::Upper>().solve(span).transpose();
    }
    return Y;
  }
  Matrix factor_to_canonical(const Matrix& H) const {  // H X^{-T}
    Matrix Y = left_part(H, x.cwiseInverse());
    if (r > 0) {
      const Matrix span = V * Y.leftCols(r).transpose();
      Y.leftCols(r) = (L_t.triangularView<Eigen::Lower>() * span).transpose();
    }
    return Y;
  }
  Matrix through_inverse(Matrix F) const {  // F X^{-1}
    if (r > 0) {
      const Matrix span = L_t.triangularView<Eigen::Lower>() * V;
      F.leftCols(r) *= span;
      F.leftCols(s) *= x.cwiseInverse().asDiagonal();
    }
    if (O.size() > 0) F.rightCols(d - s) *= O.transpose();
    basis.apply_transpose_on_the_right(F);
    return F;
  }
  void solve(Matrix& y) const {  // X^{-1} y
    basis.apply_transpose_on_the_left(y);
    y.topRows(s) = x.cwiseInverse().asDiagonal() * y.topRows(s);
    if (O.size() > 0) y.bottomRows(d - s) = (O.transpose() * y.bottomRows(d - s)).eval();
    if (r > 0) {
      const Matrix span = V * y.topRows(r);
      y.topRows(r) = L_t.triangularView<Eigen::Lower>() * span;
    }
  }
  Matrix span_covariance() const {  // the part of X^{-1} X^{-T} that is not the identity
    Vector variance = Vector::Ones(r);
    variance.head(s) = x.cwiseAbs2().cwiseInverse();
    const Matrix root = L_t.triangularView<Eigen::Lower>() * V;
    return root * variance.asDiagonal() * root.transpose();
  }

 private:
  // H [U U'] diag(scale, O): thin products where O is the identity.
  Matrix left_part(const Matrix& H, const Vector& scale) const {
    if (O.size() == 0) {
      Matrix Y = H;
      basis.apply_on_the_right(Y);
      Y.leftCols(s) *= scale.asDiagonal();
      return Y;
    }
    Matrix Y = Matrix::Zero(d, d);
    Y.diagonal().head(s) = scale;
    Y.bottomRightCorner(d - s, d - s) = O;
    basis.apply_on_the_left(Y);
    multiply_lower(H, Y);
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
  root.triangularView<Eigen::Lower>().solveInPlace(nu);

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
      const ClosedForm closed(problem.T, problem.M);
      to.s = closed.n_informative();
      to.L_t = closed.L_t;
      to.V = closed.V;
      to.m.head(r) = problem.mu_mean;
      to.m = group.span.householderQ() * to.m;
      Matrix U = Matrix::Zero(d, to.s);
      U.topRows(r) = closed.U.leftCols(to.s);
      to.basis = Reflections(Matrix(group.span.householderQ() * U));
      to.x = closed.x.head(to.s).cwiseProduct(to.basis.sign());
    }
  }

  // z = E x + t with E = X^{-1} H^{-1}; the group's average class mean is the image of the
  // canonical one.
  const auto into_canonical = [&](Index a, Matrix y) {  // E y
    groups_[a].H.triangularView<Eigen::Lower>().solveInPlace(y);
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
    Matrix cross = groups_[a].H.transpose().triangularView<Eigen::Upper>() * frame;  // H^T F
    if (r > 0) {
      // F L_t^{-T} V on the span
      const Matrix left = cross.leftCols(r).transpose();
      const Matrix solved = to.L_t.triangularView<Eigen::Lower>().solve(left);
      cross.leftCols(r) = solved.transpose() * to.V;
    }
    to.basis.apply_transpose_on_the_left(cross);
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
      xz.noalias() += between * moved.transpose();
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
      const Matrix small = Matrix::Identity(U.cols(), U.cols()) + (U.transpose() * U) * S;
      const Matrix left = (xz * U) * S;
      const Matrix solved = Eigen::PartialPivLU<Matrix>(small.transpose()).solve(left.transpose());
      xz.noalias() -= solved.transpose() * U.transpose();
      frame.linear = std::move(xz);
    } else {
      Matrix zz = Matrix::Identity(d, d);
      zz += U * S * U.transpose();
      const Eigen::LLT<Matrix> factor(0.5 * (zz + zz.transpose()));
      if (factor.info() == Eigen::Success)
        frame.linear = factor.solve(xz.transpose()).transpose();
      else
        frame.linear = Matrix::Constant(d, d, std::numeric_limits<double>::quiet_NaN());
    }
    frame.offset = x_mean - frame.linear * z_mean;
    return frame;
  };

  const Index anchor = reference < 0 ? 0 : reference;  // the heaviest group comes first
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
    const bool free = std::any_of(lifted.begin(), lifted.end(),
                                  [&](const Lifted& to) { return to.s < d; });
    double last = std::numeric_limits<double>::infinity();
    for (int round = 0; G > 2 && free && round < kFrameRounds && !options_.stop(); ++round) {
      const Matrix before = frame.linear;
      for (Index a = 0; a < G; ++a) least_displacement(a, before);
      frame = fit_frame();
      const double change =
          relative(frame.linear - before).norm() / relative(frame.linear).norm();
      // What does not shrink any more is rounding.
      if (!(change > kFrameChange) || (change < 1e-9 && change >= last)) break;
      last = change;
    }
    if (!frame.linear.allFinite() ||
        !(Eigen::PartialPivLU<Matrix>(relative(frame.linear)).rcond() > 1e-10))
      frame = frame_of_anchor();
  }

  // From here on, what is not needed any more makes room for what comes.
  Matrix canonical = Matrix::Zero(d, subgroups_.n_classes);
  canonical.topRows(r) = nu;
  result.canonical_mean = (frame.linear * canonical).colwise() + frame.offset;
  for (Index a = 0; a < G; ++a) {
    if (a == reference) {
      result.linear.push_back(Matrix::Identity(d, d));
      result.offset.push_back(Vector::Zero(d));
      continue;
    }
    result.offset.push_back(frame.linear * shift_into_canonical(a) + frame.offset);
    Matrix linear = lifted[a].through_inverse(frame.linear);
    lifted[a].O.resize(0, 0);
    groups_[a].H.triangularView<Eigen::Lower>().solveInPlace<Eigen::OnTheRight>(linear);
    groups_[a].H.resize(0, 0);
    result.linear.push_back(std::move(linear));
  }
  Matrix covariance = Matrix::Zero(d, d);
  covariance.selfadjointView<Eigen::Lower>().rankUpdate(frame.linear);
  covariance.triangularView<Eigen::StrictlyUpper>() = covariance.transpose();
  result.canonical_covariance.push_back(std::move(covariance));
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
