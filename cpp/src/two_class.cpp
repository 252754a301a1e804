#include "two_class.hpp"

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>
#include <utility>

namespace fairsteer::detail {
namespace {

constexpr Index kBlock = 48;        // rows whose changes reach the inverse together
constexpr std::size_t kMemory = 5;  // pairs of steps and changes of the gradient
constexpr int kMostHalvings = 34;   // of a step: what is left of it is below 1e-10
constexpr double kFlat = 0.2;       // the least curvature of a pair, relative
constexpr double kTilt = 1e-7;      // of ratios: above what rounding does, below what matters
constexpr Index kStepsPerIteration = 10;

}  // namespace

TwoClassProblem::TwoClassProblem(const Side& one, const Side& other)
    : left_(diagonalise(one.precision + other.precision, other.precision)),
      right_(diagonalise(one.weight * one.covariance + other.weight * other.covariance,
                         other.covariance)),
      a_(left_.values.cwiseMax(0.0).cwiseMin(1.0)),
      c0_((1 - other.weight * right_.values.array()).cwiseMax(0.0) / one.weight),
      c1_(right_.values),
      g_(a_.array() * (1 - a_.array())),
      mu_(left_.inverse * (other.mu - one.mu)),
      nu_(right_.U.transpose() * (other.nu - one.nu)) {
  h_.noalias() = (1 - a_.array()).matrix() * c0_.transpose();
  h_.noalias() += a_ * c1_.transpose();
}

// A slight tilt of both sides, by one generic matrix and by what the guide makes of it, decides the
// bases that coincident ratios leave open, and decides them alike whatever rounding does.
Matrix TwoClassProblem::paired(const Matrix& guide) const {
  const Index d = size();
  const Matrix turn = to_diagonal(guide);
  const Vector ramp = Vector::LinSpaced(d, 0, 1).cwiseSqrt();
  Matrix tilt = linalg::gram(Matrix(left_.U.transpose() * ramp.asDiagonal()));
  tilt *= kTilt / std::max(tilt.cwiseAbs().maxCoeff(), std::numeric_limits<double>::min());
  Matrix C = -linalg::congruence(turn.transpose(), tilt);
  C.diagonal() += c1_;
  tilt.diagonal() += a_;
  const Matrix U = linalg::SymmetricEigen(std::move(tilt)).vectors;
  const Matrix V = linalg::SymmetricEigen(std::move(C)).vectors.rowwise().reverse();
  const Vector mu = U.transpose() * mu_, nu = V.transpose() * nu_;
  const Vector a = U.cwiseAbs2().transpose() * a_, c0 = V.cwiseAbs2().transpose() * c0_,
               c1 = V.cwiseAbs2().transpose() * c1_;
  Vector scale(d);
  for (Index i = 0; i < d; ++i) {
    const double pull = mu[i] * nu[i];
    const double side = std::abs(pull) > kTilt ? pull : U.col(i).dot(turn * V.col(i));
    scale[i] = std::copysign(1 / std::sqrt((1 - a[i]) * c0[i] + a[i] * c1[i]), side);
  }
  return linalg::product(Matrix(U * scale.asDiagonal()), V.transpose());
}

double TwoClassProblem::value(const Matrix& X) const {
  const double log_det = log_abs_det(X);
  if (!std::isfinite(log_det)) return std::numeric_limits<double>::infinity();
  const Vector residual = X * nu_ - mu_;
  return 0.5 * h_.cwiseProduct(X.cwiseAbs2()).sum() + 0.5 * g_.dot(residual.cwiseAbs2()) - log_det;
}

// With u = row i of X^{-T}, det X is linear in the row: y.u in units of the present one. The
// optimum is y = H^{-1} (b + tau u), H = diag(h_i) + g_i nu nu^T and b = g_i mu_i nu, for one of
// the two roots of (u H^{-1} u) tau^2 + (u H^{-1} b) tau - 1 = 0.
void TwoClassProblem::descend_rows(Matrix& X, Index max_sweeps,
                                   const DescentOptions& options) const {
  const Index d = size();
  Matrix rows = X.transpose();  // a row of X is a column here
  Matrix old_rows, columns, moved;
  Vector curvature(d), pull(d), lift(d), y(d), best(d);
  for (Index sweep = 0; sweep < max_sweeps; ++sweep) {
    Matrix inverse = linalg::LU(rows.transpose()).inverse();
    if (!inverse.allFinite()) return;
    double gain = 0;
    for (Index begin = 0; begin < d; begin += kBlock) {
      if (options.stop()) {
        X = rows.transpose();
        return;
      }
      const Index size = std::min(kBlock, d - begin);
      old_rows = rows.middleCols(begin, size);
      columns = inverse.middleCols(begin, size);
      for (Index j = 0; j < size; ++j) {
        const Index i = begin + j;
        curvature = h_.row(i).cwiseInverse();
        // Sherman-Morrison
        const auto solve = [&](auto&& v, Vector& out) {
          out = curvature.cwiseProduct(v);
          const double along = nu_.dot(out);
          const double norm = curvature.dot(nu_.cwiseAbs2());
          out -= (g_[i] * along / (1 + g_[i] * norm)) * curvature.cwiseProduct(nu_);
        };
        const auto objective = [&](const auto& row) {
          const double residual = row.dot(nu_) - mu_[i];
          return 0.5 * (row.cwiseAbs2().dot(h_.row(i).transpose()) + g_[i] * residual * residual) -
                 std::log(std::abs(row.dot(columns.col(j))));
        };
        solve((g_[i] * mu_[i]) * nu_, pull);
        solve(columns.col(j), lift);
        const double a = columns.col(j).dot(lift), b = columns.col(j).dot(pull);
        const double root = std::sqrt(b * b + 4 * a);
        const double large = (b >= 0 ? -(b + root) : root - b) / (2 * a);
        double lowest = objective(rows.col(i));
        const double before = lowest;
        for (const double tau : {large, -1 / (a * large)}) {
          y = pull + tau * lift;
          const double f = objective(y);
          if (!(f < lowest)) continue;
          lowest = f;
          best = y;
        }
        if (!(lowest < before)) continue;
        gain += before - lowest;
        y = best - rows.col(i);
        rows.col(i) = best;
        moved.noalias() = y.transpose() * columns;
        y = columns.col(j) / (1 + moved(0, j));
        columns.noalias() -= y * moved;
      }
      // The columns of the block are up to date; the others follow at once: with Z the changed
      // rows less the old ones, the new inverse is (the old one) - columns Z (the old one).
      old_rows = rows.middleCols(begin, size) - old_rows;
      moved = linalg::product(old_rows.transpose(), inverse);
      linalg::add_product(columns, moved, inverse, -1);
    }
    if (gain < options.tol) break;
  }
  X = rows.transpose();
}

// f in relative steps, X + E X, where the Hessian is nearly that of the pairs (E_ij, E_ji):
//   E -> Gamma o E + E^T + (row i) g_i n_i n^T,   Gamma_ij = sum_l h_il X_jl^2,   n = X nu.
// The first two come apart into 2 x 2 blocks; the last, one rank a row, follows by Woodbury. It is
// the whole Hessian where the rows of X are orthogonal in every h_i, as at the paired start. Known
// from independent component analysis (Ablin, Cardoso and Gramfort 2018).
class TwoClassProblem::Relative {
 public:
  explicit Relative(const TwoClassProblem& problem) : problem_(problem) {}

  void linearise(const Matrix& X, Matrix& gradient) {
    const Index d = X.rows();
    const Vector& a = problem_.a_;
    const Vector& g = problem_.g_;
    along_.noalias() = X * problem_.nu_;
    scratch_ = problem_.h_.cwiseProduct(X);
    scratch_.noalias() += g.cwiseProduct(along_ - problem_.mu_) * problem_.nu_.transpose();
    gradient = linalg::product(scratch_, X.transpose());
    gradient.diagonal().array() -= 1;

    scratch_ = X.cwiseAbs2();
    const Vector r0 = scratch_ * problem_.c0_, r1 = scratch_ * problem_.c1_;
    same_.resize(d, d);
    cross_.resize(d, d);
    for (Index j = 0; j < d; ++j) {
      const auto one = (1 - a.array()) * r0[j] + a.array() * r1[j];
      const auto other = r0.array() * (1 - a[j]) + r1.array() * a[j];
      product_ = one * other;
      coupling_ = ((1 - kFlat) * product_).min(1.0);
      same_.col(j) = other / (product_ - coupling_);
      cross_.col(j) = -coupling_.sqrt() / (product_ - coupling_);
      same_(j, j) = 1 / ((1 - a[j]) * r0[j] + a[j] * r1[j] + 1);
      cross_(j, j) = 0;
    }
    // g may be zero: with D = diag(sqrt(g)), I + D (n^T M^{-1} n)_rows D.
    root_ = g.cwiseSqrt();
    scratch_ =
        (root_.cwiseProduct(along_) * along_.cwiseProduct(root_).transpose()).cwiseProduct(cross_);
    scratch_.diagonal() += g.cwiseProduct(same_ * along_.cwiseAbs2());
    scratch_.diagonal().array() += 1;
    schur_.compute(scratch_);
  }

  void precondition(const Matrix& R, Matrix& out) {
    blocks(R, out);
    Vector t = root_.cwiseProduct(out * along_);
    schur_.solve_in_place(t);
    t = t.cwiseProduct(root_).eval();
    scratch_.noalias() = t * along_.transpose();
    out -= same_.cwiseProduct(scratch_);
    out -= cross_.cwiseProduct(scratch_.transpose());
  }

 private:
  void blocks(const Matrix& R, Matrix& out) const {
    out = same_.cwiseProduct(R);
    out += cross_.cwiseProduct(R.transpose());
  }

  const TwoClassProblem& problem_;
  Matrix same_, cross_, scratch_;
  Vector along_, root_;
  Eigen::ArrayXd product_, coupling_;
  linalg::Cholesky schur_;
};

Descent TwoClassProblem::minimise(Matrix& X, const DescentOptions& options) const {
  struct Pair {
    Matrix step, change;
    double weight;
  };
  Descent descent;
  double value = this->value(X);
  descent.path = {value};
  const double floor = 1e-14 * std::max(1.0, std::abs(value));  // what double can resolve
  Relative relative(*this);
  Matrix gradient, next_gradient, step, candidate;
  std::deque<Pair> memory;
  std::vector<double> alpha(kMemory);
  relative.linearise(X, gradient);
  double left = 0;
  bool in_time = true;
  for (Index n = 0; n / kStepsPerIteration < options.max_iter; ++n) {
    in_time = !options.stop();
    if (!in_time) break;
    // Two loops over the remembered pairs (Nocedal and Wright, algorithm 7.4).
    candidate = gradient;
    for (std::size_t k = memory.size(); k-- > 0;) {
      alpha[k] = memory[k].weight * inner(memory[k].step, candidate);
      candidate -= alpha[k] * memory[k].change;
    }
    relative.precondition(candidate, step);
    for (std::size_t k = 0; k < memory.size(); ++k)
      step += (alpha[k] - memory[k].weight * inner(memory[k].change, step)) * memory[k].step;
    const double decrement = inner(gradient, step);  // NaN where the step is not finite
    left = 0.5 * decrement;
    if (!(left > std::max(options.tol, floor))) break;

    double length = 1, next = 0;
    const Matrix direction = linalg::product(step, X);
    int halvings = 0;
    for (; halvings < kMostHalvings; ++halvings, length *= 0.5) {
      candidate = X - length * direction;
      next = this->value(candidate);
      if (next <= value - 1e-4 * length * decrement) break;
    }
    if (halvings == kMostHalvings) break;  // rounding has the last word
    X.swap(candidate);
    value = next;
    if ((n + 1) % kStepsPerIteration == 0) descent.path.push_back(value);
    relative.linearise(X, next_gradient);
    Pair pair{-length * step, next_gradient - gradient, 0};
    const double curvature = inner(pair.step, pair.change);
    if (curvature > 0) {
      pair.weight = 1 / curvature;
      if (memory.size() == kMemory) memory.pop_front();
      memory.push_back(std::move(pair));
    }
    gradient.swap(next_gradient);
  }
  if (value < descent.path.back()) descent.path.push_back(value);
  descent.converged =
      in_time && left <= std::max(options.tol, 1e-8 * std::max(1.0, std::abs(value)));
  return descent;
}

}  // namespace fairsteer::detail
