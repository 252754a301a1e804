#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "fairsteer/covariances.hpp"
#include "frame.hpp"
#include "linalg.hpp"
#include "tied.hpp"

namespace fairsteer::detail {
namespace {

constexpr double kFrameChange = 1e-13;  // of a round of isometries and frame, relative: rounding

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

/// From the spans to d dimensions. Canonical coordinates have unit covariance there: z = (span,
/// complement).
class TiedModel::Lifting {
 public:
  Lifting(TiedModel& model, const Solution<State>& solution, Index reference)
      : model_(model),
        subgroups_(model.subgroups_),
        log_p_(solution.priors.log_p),
        d_(subgroups_.n_features),
        r_(model.rank_),
        reference_(reference),
        anchor_(reference < 0 ? 0 : reference),
        nu_(solution.state.nu) {
    const Matrix root = cholesky(solution.state.C);
    linalg::solve_lower(root, nu_);
    for (Index a = 0; a < subgroups_.n_groups; ++a)
      lifted_.push_back(lift_group(a, linalg::product(solution.state.B[a], root)));
  }

  /// u = F z + f: the anchor's own coordinates, or those that move the points of all groups least.
  Frame nearest_frame() {
    const double before = model_.options_.elapsed();
    Frame frame = frame_of_anchor();
    for (Index a = 0; a < subgroups_.n_groups; ++a)
      if (a != anchor_) displace_least(a, frame.linear);
    return reference_ < 0 ? least_squares_frame(before) : frame;
  }

  /// What is not needed any more makes room for what comes.
  void write(const Frame& frame, IdealResult& result) {
    Matrix canonical = Matrix::Zero(d_, subgroups_.n_classes);
    canonical.topRows(r_) = nu_;
    result.canonical_mean = linalg::product(frame.linear, canonical).colwise() + frame.offset;
    for (Index a = 0; a < subgroups_.n_groups; ++a) {
      if (a == reference_) {
        result.linear.push_back(Matrix::Identity(d_, d_));
        result.offset.push_back(Vector::Zero(d_));
        continue;
      }
      model_.options_.poll();
      result.offset.push_back(frame.linear * shift_into_canonical(a) + frame.offset);
      Matrix linear = lifted_[a].through_inverse(frame.linear);
      lifted_[a].O.resize(0, 0);
      linalg::solve_lower_on_the_right(linear, model_.groups_[a].H);
      model_.groups_[a].H.resize(0, 0);
      result.linear.push_back(std::move(linear));
    }
    result.canonical_covariance.push_back(linalg::gram(frame.linear));
    result.moves_least = !cut_short_;
    if (cut_short_) result.converged = false;
  }

 private:
  // `present`: the map of the solution, from canonical coordinates of unit covariance.
  Lifted lift_group(Index a, Matrix present) const {
    const Group& group = model_.groups_[a];
    Lifted to;
    to.d = d_;
    to.r = r_;
    to.m = Vector::Zero(d_);
    if (r_ == 0) return to;
    const TiedProblem problem(Matrix::Identity(r_, r_), nu_, group.means,
                              class_weights(subgroups_, log_p_, a));
    ClosedForm closed(problem.T, problem.M);
    to.s = closed.n_informative();
    if (a == anchor_ && to.s < r_) {
      // A class that the anchor lacks lies where the anchor's map was when the class was found.
      linalg::multiply_by_lower(present, closed.L_t);
      closed.complete(to.s, present);
      to.s = r_;
    }
    to.L_t = closed.L_t;
    to.V = closed.V;
    to.m.head(r_) = problem.mu_mean;
    group.span.multiply(to.m);
    Matrix U = Matrix::Zero(d_, to.s);
    U.topRows(r_) = closed.U.leftCols(to.s);
    group.span.multiply(U);
    to.basis = linalg::QR(std::move(U));
    // Its columns come back up to these signs.
    to.x = closed.x.head(to.s).cwiseProduct(to.basis.diagonal().cwiseSign());
    return to;
  }

  // z = E x + t with E = X^{-1} H^{-1}; the group's average class mean is the image of the
  // canonical one.
  Matrix into_canonical(Index a, Matrix y) const {  // E y
    linalg::solve_lower(model_.groups_[a].H, y);
    lifted_[a].solve(y);
    return y;
  }
  Vector shift_into_canonical(Index a) const {  // t
    Matrix m = lifted_[a].m;
    lifted_[a].solve(m);
    Vector t = -m - into_canonical(a, model_.groups_[a].centre);
    if (r_ > 0) t.head(r_) += nu_ * class_weights(subgroups_, log_p_, a);
    return t;
  }

  // Takes the isometry that moves the points of group a least when canonical points lie at `frame`.
  void displace_least(Index a, const Matrix& frame) {
    model_.options_.poll();
    Lifted& to = lifted_[a];
    Matrix cross = frame;
    linalg::multiply_lower_transposed(model_.groups_[a].H, cross);  // H^T F
    if (r_ > 0) {
      // F L_t^{-T} V on the span
      Matrix span = cross.leftCols(r_);
      linalg::solve_lower_transposed_on_the_right(span, to.L_t);
      linalg::product(span, to.V, cross.leftCols(r_));
    }
    to.basis.multiply_transposed(cross);
    to.O = polar_factor(cross.bottomRightCorner(d_ - to.s, d_ - to.s));
  }

  // u = x for the anchor's points. Its isometry only names the complement.
  Frame frame_of_anchor() const {
    Frame frame{lifted_[anchor_].factor_to_group(model_.groups_[anchor_].H), Vector()};
    frame.offset = -frame.linear * shift_into_canonical(anchor_);
    return frame;
  }

  // Isometries and frame in turn. Two groups: the first isometry is already the best. More: each
  // round moves points less, until the isometries depend on no group's coordinates any more: mostly
  // a dozen, hundreds where groups hardly vary in some directions. `begin`: when the first
  // isometries were begun.
  Frame least_squares_frame(double begin) {
    // F = D R, with the standard deviations of the features in D: units do not make it singular.
    const Vector inverse_scale = feature_scale().cwiseInverse();
    const auto relative = [&](const Matrix& F) -> Matrix { return inverse_scale.asDiagonal() * F; };
    const bool free =
        std::any_of(lifted_.begin(), lifted_.end(), [this](const Lifted& to) { return to.s < d_; });
    Frame frame = regress();
    double last = std::numeric_limits<double>::infinity();
    double rate = 1;  // of the last change to the one before
    const bool settled = subgroups_.n_groups <= 2 || !free;
    for (Index round = 0; !settled; ++round) {
      const double now = model_.options_.elapsed();
      // Rounds may be used up, or less time be left than the last one took.
      if (round == model_.options_.max_iter || model_.options_.stop(now - begin)) {
        // Changes shrink geometrically: what is left is a geometric series.
        cut_short_ = !(last * rate <= model_.options_.tol * (1 - rate));
        break;
      }
      begin = now;
      const Matrix before = frame.linear;
      for (Index a = 0; a < subgroups_.n_groups; ++a) displace_least(a, before);
      frame = regress();
      const double change = relative(frame.linear - before).norm() / relative(frame.linear).norm();
      // What does not shrink any more is rounding.
      if (!(change > kFrameChange) || (change < 1e-9 && change >= last)) break;
      rate = change / last;
      last = change;
    }
    if (!frame.linear.allFinite() ||
        !(linalg::LU(relative(frame.linear)).reciprocal_condition() > 1e-10))
      return frame_of_anchor();
    return frame;
  }

  // The regression of x on z, for the present isometries: F cov(z) = cov(x, z). The covariance of z
  // is the identity and a few directions: I + U diag(S, I) U^T, U = (span, means).
  Frame regress() const {
    const Index K = subgroups_.n_classes, G = subgroups_.n_groups;
    Vector x_mean = Vector::Zero(d_), z_mean = Vector::Zero(d_);
    Matrix xz = Matrix::Zero(d_, d_);
    Matrix S = -Matrix::Identity(r_, r_);
    Matrix means = Matrix::Zero(d_, G * (K + 1));
    std::vector<Vector> x_of, z_of;
    for (Index a = 0; a < G; ++a) {
      model_.options_.poll();
      const double weight = subgroups_.weight.col(a).sum();
      // Within classes: Sigma E^T = H X^{-T}, and E Sigma E^T = X^{-1} X^{-T}.
      if (r_ > 0) S += weight * lifted_[a].span_covariance();
      xz += weight * lifted_[a].factor_to_canonical(model_.groups_[a].H);
      const Matrix between = class_differences(a);
      auto moved = means.middleCols(a * (K + 1), K);
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
      means.col(a * (K + 1) + K) = std::sqrt(weight) * dz;
    }
    Frame frame{divide(std::move(xz), S, means), Vector()};
    frame.offset = x_mean - frame.linear * z_mean;
    return frame;
  }

  // xz (I + U diag(S, I) U^T)^{-1}, U = (the first coordinates, means); NaN where that is no
  // covariance.
  static Matrix divide(Matrix xz, const Matrix& S, const Matrix& means) {
    const Index d = means.rows(), r = S.rows(), n = r + means.cols();
    if (n < d / 4) {
      // xz - (xz U) T (I + U^T U T)^{-1} U^T, T = diag(S, I)
      Matrix U = Matrix::Identity(d, n), T = Matrix::Identity(n, n);
      U.rightCols(means.cols()) = means;
      T.topLeftCorner(r, r) = S;
      Matrix small = Matrix::Identity(n, n);
      linalg::add_product(linalg::gram(U.transpose()), T, small);
      Matrix left = linalg::product(linalg::product(xz, U), T).transpose();
      linalg::LU(std::move(small)).solve_transposed_in_place(left);
      linalg::add_product(left.transpose(), U.transpose(), xz, -1);
      return xz;
    }
    // T is never formed here: its size is the square of the number of groups.
    Matrix zz = Matrix::Identity(d, d) + linalg::gram(means);
    zz.topLeftCorner(r, r) += S;
    const linalg::Cholesky factor(std::move(zz));
    if (!factor.succeeded())
      return Matrix::Constant(d, d, std::numeric_limits<double>::quiet_NaN());
    xz.transposeInPlace();
    factor.solve_in_place(xz);
    xz.transposeInPlace();
    return xz;
  }

  Vector group_mean(Index a) const {
    Vector mean = Vector::Zero(d_);
    for (Index k = 0; k < subgroups_.n_classes; ++k)
      mean += subgroups_.weight(k, a) / subgroups_.weight.col(a).sum() * subgroups_.mean(k, a);
    return mean;
  }

  // Class means of a group minus its mean, times the roots of their weights: (d, K).
  Matrix class_differences(Index a) const {
    const Vector mean = group_mean(a);
    Matrix differences = Matrix::Zero(d_, subgroups_.n_classes);
    for (Index k = 0; k < subgroups_.n_classes; ++k)
      if (subgroups_.seen(k, a))
        differences.col(k) = std::sqrt(subgroups_.weight(k, a)) * (subgroups_.mean(k, a) - mean);
    return differences;
  }

  // Standard deviations of the features over all groups; 1 where there is none.
  Vector feature_scale() const {
    const Index G = subgroups_.n_groups;
    Vector mean = Vector::Zero(d_), variance = Vector::Zero(d_);
    for (Index a = 0; a < G; ++a) mean += subgroups_.weight.col(a).sum() * group_mean(a);
    for (Index a = 0; a < G; ++a) {
      const double weight = subgroups_.weight.col(a).sum();
      variance += weight * subgroups_.covariance(0, a).diagonal();
      variance += weight * (group_mean(a) - mean).cwiseAbs2();
      variance += class_differences(a).rowwise().squaredNorm();
    }
    return (variance.array() > 0).select(variance.cwiseSqrt(), 1.0);
  }

  TiedModel& model_;
  const Subgroups& subgroups_;
  const Vector& log_p_;
  const Index d_, r_;      // features, dimension of the span
  const Index reference_;  // negative: none
  const Index anchor_;     // the reference, or the heaviest group, which comes first
  Matrix nu_;              // (r, K)
  std::vector<Lifted> lifted_;
  bool cut_short_ = false;  // isometries and frame did not come to rest in time
};

void TiedModel::lift(const Solution<State>& solution, Index reference, IdealResult& result) {
  Lifting lifting(*this, solution, reference);
  lifting.write(lifting.nearest_frame(), result);
}

}  // namespace fairsteer::detail
