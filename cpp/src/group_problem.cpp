#include "group_problem.hpp"

#include <cmath>
#include <limits>

#include "fairsteer/covariances.hpp"
#include "fairsteer/errors.hpp"
#include "linalg.hpp"
#include "newton.hpp"
#include "vectorwise_descent.hpp"

namespace fairsteer::detail {
namespace {

// f over symmetric positive-definite S. The Hessian at an ideal distribution is close to
// D -> 2 S^{-1} D S^{-1}, whose inverse is the preconditioner.
class SymmetricObjective {
 public:
  explicit SymmetricObjective(const GroupProblem& problem) : problem_(problem) {}

  double value(const Matrix& S) {
    const linalg::Cholesky factor(S);
    if (!factor.succeeded()) return std::numeric_limits<double>::infinity();
    problem_.quadratic(S, quadratic_);
    return 0.5 * inner(S, quadratic_) - inner(S, problem_.linear()) - factor.log_det();
  }
  void linearise(const Matrix& S) {
    S_ = S;
    inverse_ = linalg::Cholesky(S).inverse();
    problem_.quadratic(S, gradient_);
    gradient_ -= problem_.linear();
    linalg::symmetrise(gradient_);
    gradient_ -= inverse_;
  }
  const Matrix& gradient() const { return gradient_; }
  void product(const Matrix& D, Matrix& out) {
    problem_.quadratic(D, out);
    linalg::symmetrise(out);
    scratch_ = linalg::product(inverse_, D);
    linalg::add_product(scratch_, inverse_, out);
  }
  void precondition(const Matrix& R, Matrix& out) {
    scratch_ = linalg::product(S_, R);
    out.resize(R.rows(), R.cols());
    linalg::gemm<double>(scratch_, S_, out, 0.5, 0);
  }

 private:
  const GroupProblem& problem_;
  Matrix S_, inverse_, gradient_, quadratic_, scratch_;
};

// f over invertible X, in coordinates where sum_k P_k = I and the average of S_k is I, so that the
// tied model's Hessian D -> D + X^{-T} D^T X^{-T} is close. In the singular basis of X it falls
// apart into 2 x 2 blocks; directions that are flat there (rotations) are lifted.
class AffineObjective {
 public:
  explicit AffineObjective(const GroupProblem& problem) : problem_(problem) {}

  double value(const Matrix& X) {
    const double log_det = log_abs_det(X);
    if (!std::isfinite(log_det)) return std::numeric_limits<double>::infinity();
    problem_.quadratic(X, quadratic_);
    return 0.5 * inner(X, quadratic_) - inner(X, problem_.linear()) - log_det;
  }
  void linearise(const Matrix& X) {
    const SingularValues decomposition = svd(X);
    U_ = decomposition.U;
    V_ = decomposition.V;
    const Vector inverse = decomposition.s.cwiseInverse();
    inverse_transpose_ = linalg::product(Matrix(U_ * inverse.asDiagonal()), V_.transpose());
    coupling_ = inverse * inverse.transpose();
    problem_.quadratic(X, gradient_);
    gradient_ -= problem_.linear();
    gradient_ -= inverse_transpose_;
  }
  const Matrix& gradient() const { return gradient_; }
  void product(const Matrix& D, Matrix& out) {
    problem_.quadratic(D, out);
    scratch_ = linalg::product(inverse_transpose_, D.transpose());
    linalg::add_product(scratch_, inverse_transpose_, out);
  }
  void precondition(const Matrix& R, Matrix& out) {
    const Matrix rotated = linalg::product(linalg::product(U_.transpose(), R), V_);
    const Array symmetric = 0.5 * (rotated + rotated.transpose()).array() / (1 + coupling_.array());
    const Array skew =
        0.5 * (rotated - rotated.transpose()).array() / (1 - coupling_.array()).max(kFlat);
    scratch_ = (symmetric + skew).matrix();
    out = linalg::product(linalg::product(U_, scratch_), V_.transpose());
  }

 private:
  static constexpr double kFlat = 0.1;
  const GroupProblem& problem_;
  Matrix U_, V_, inverse_transpose_, coupling_, gradient_, quadratic_, scratch_;
};

}  // namespace

GroupProblem::GroupProblem(std::vector<Term> terms, Matrix linear, Vector target)
    : terms_(std::move(terms)), J_(std::move(linear)), target_(std::move(target)) {
  total_ = Matrix::Zero(J_.rows(), J_.cols());
  nu_.resize(J_.rows(), static_cast<Index>(terms_.size()));
  for (Index k = 0; k < nu_.cols(); ++k) {
    total_ += terms_[k].precision;
    nu_.col(k) = terms_[k].nu;
  }
  if (!factor_.compute(total_))
    throw NumericalError("the precisions of a group do not sum to a positive definite matrix", -1,
                         -1);
}

GroupProblem GroupProblem::transformed(const Matrix& R) const {
  std::vector<Term> terms;
  terms.reserve(terms_.size());
  for (const Term& term : terms_)
    terms.push_back({term.precision, linalg::congruence(R, term.second_moment), R * term.nu});
  return {std::move(terms), linalg::product(J_, R.transpose()), target_};
}

Vector GroupProblem::shift(const Matrix& B) const {
  Vector sum = target_;
  for (const Term& term : terms_) sum -= term.precision * (B * term.nu);
  factor_.solve_in_place(sum);
  return sum;
}

void GroupProblem::quadratic(const Matrix& B, Matrix& out) const {
  const Index d = J_.rows();
  out.setZero(d, d);
  scratch_.resize(d, d);
  moved_.resize(d, static_cast<Index>(terms_.size()));
  Vector sum = Vector::Zero(d);
  for (Index k = 0; k < moved_.cols(); ++k) {
    const Term& term = terms_[k];
    linalg::product(B, term.second_moment, scratch_);
    linalg::add_product(term.precision, scratch_, out);
    sum.noalias() += term.precision * (B * term.nu);
  }
  factor_.solve_in_place(sum);
  const Vector delta = -sum;
  for (Index k = 0; k < moved_.cols(); ++k) moved_.col(k).noalias() = terms_[k].precision * delta;
  linalg::add_product(moved_, nu_.transpose(), out);
}

double GroupProblem::value(const Matrix& B) const { return AffineObjective(*this).value(B); }

Descent GroupProblem::minimise_symmetric(Matrix& B, const DescentOptions& options) const {
  SymmetricObjective objective(*this);
  return minimise(objective, B, options);
}

void GroupProblem::descend(Matrix& X, Index sweeps, const DescentOptions& options) const {
  const Index d = J_.rows();
  // Rows couple through the precisions: in the eigenbasis of the heaviest (of two classes, since
  // they sum to the identity here, in that of both) they do so least.
  const Term* heaviest = &terms_.front();
  for (const Term& term : terms_)
    if (term.precision.trace() > heaviest->precision.trace()) heaviest = &term;
  const Matrix basis = diagonalise(Matrix::Identity(d, d), heaviest->precision).U;
  RowProblem rows;
  Vector mean = target_;
  factor_.solve_in_place(mean);
  Matrix linear(d, d + 1);
  linear.leftCols(d) = J_;
  linear.col(d) = target_;
  for (const Term& term : terms_) {
    rows.precision.push_back(linalg::congruence(basis.transpose(), term.precision));
    Matrix moment(d + 1, d + 1);
    moment << term.second_moment, term.nu, term.nu.transpose(), 1;
    rows.second_moment.push_back(std::move(moment));
    linear.leftCols(d) += (term.precision * mean) * term.nu.transpose();
  }
  rows.linear = linalg::product(basis.transpose(), linear);
  Matrix Y(d, d + 1);
  Y << X, shift(X);
  Y = linalg::product(basis.transpose(), Y);
  descend_rows(rows, Y, sweeps, {options.max_iter, 1e-4, options.watch, options.after});
  linalg::product(basis, Y.leftCols(d), X);
}

Descent GroupProblem::minimise_affine(Matrix& B, Index sweeps,
                                      const DescentOptions& options) const {
  // X = L_p B L_s with L_p^T L_p = sum_k P_k and L_s L_s^T the average second moment.
  const Index d = J_.rows();
  Matrix average = Matrix::Zero(d, d);
  double weight = 0;
  for (const Term& term : terms_) {
    const double w = term.precision.trace();
    average += w * term.second_moment;
    weight += w;
  }
  const Matrix L_s = cholesky(average / weight);
  const Matrix& L_p = factor_.packed();  // its transpose is the whitener
  std::vector<Term> terms;
  for (const Term& term : terms_) {
    terms.push_back({linalg::solve_congruence(L_p, term.precision),
                     linalg::solve_congruence(L_s, term.second_moment), term.nu});
    linalg::solve_lower(L_s, terms.back().nu);
  }
  Matrix linear = J_;  // L_p^{-1} J L_s^{-T}
  linalg::solve_lower(L_p, linear);
  linalg::solve_lower_transposed_on_the_right(linear, L_s);
  Vector target = target_;
  linalg::solve_lower(L_p, target);
  const GroupProblem whitened(std::move(terms), std::move(linear), std::move(target));
  Matrix X = B;
  linalg::multiply_lower_transposed(L_p, X);
  linalg::multiply_by_lower(X, L_s);
  if (sweeps > 0) whitened.descend(X, sweeps, options);
  AffineObjective objective(whitened);
  const Descent descent = minimise(objective, X, options);
  // B = L_p^{-T} X L_s^{-1}
  linalg::solve_lower_on_the_right(X, L_s);
  linalg::solve_lower_transposed(L_p, X);
  B = std::move(X);
  return descent;
}

}  // namespace fairsteer::detail
