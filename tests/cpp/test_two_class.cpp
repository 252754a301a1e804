#include <cmath>

#include "fairsteer/covariances.hpp"
#include "problems.hpp"
#include "testing.hpp"
#include "two_class.hpp"

using namespace fairsteer;
using fairsteer::detail::Side;
using fairsteer::detail::TwoClassProblem;
using fairsteer::test::Random;

namespace {

Side side(Random& random, Index d, double weight) {
  const Matrix precision = weight * random.covariance(d).inverse();
  return {weight, precision, random.covariance(d), random.matrix(d, 1), random.matrix(d, 1)};
}

struct Example {
  explicit Example(Index d, std::uint64_t seed)
      : random(seed),
        one(side(random, d, 0.4)),
        other(side(random, d, 0.6)),
        guide(Matrix::Identity(d, d) + 0.1 * random.matrix(d, d)) {}
  Random random;
  Side one, other;
  Matrix guide;
};

// f as theory section 4 states it, with the shift that is best for B.
double objective(const Side& one, const Side& other, const Matrix& B) {
  const Matrix total = one.precision + other.precision;
  const Vector pull =
      one.precision * (one.mu - B * one.nu) + other.precision * (other.mu - B * other.nu);
  const Vector shift = total.ldlt().solve(pull);
  double f = -log_abs_det(B);
  for (const Side* s : {&one, &other}) {
    const Vector residual = shift + B * s->nu - s->mu;
    f += 0.5 * (s->precision * B * s->covariance * B.transpose()).trace() +
         0.5 * residual.dot(s->precision * residual);
  }
  return f;
}

}  // namespace

TEST_CASE("the diagonal problem is that of the group up to a constant") {
  Example example(6, 3);
  const TwoClassProblem problem(example.one, example.other);
  const Matrix B = example.random.matrix(6, 6), D = example.random.matrix(6, 6);
  CHECK_NEAR((problem.from_diagonal(problem.to_diagonal(B)) - B).norm(), 0, 1e-10);
  CHECK_NEAR(problem.value(problem.to_diagonal(B)) - problem.value(problem.to_diagonal(D)),
             objective(example.one, example.other, B) - objective(example.one, example.other, D),
             1e-9);
}

TEST_CASE("no single row can be improved where rows have come to rest") {
  Example example(60, 5);  // two blocks
  const TwoClassProblem problem(example.one, example.other);
  Matrix X = problem.paired(example.guide);
  double before = problem.value(X);
  for (int sweep = 0; sweep < 5; ++sweep) {
    problem.descend_rows(X, 1, {1, 0});
    const double after = problem.value(X);
    CHECK(after < before);
    before = after;
  }
  // The last row that was visited is at its minimum, whatever happened to the inverse on the way.
  for (int i = 0; i < 20; ++i) {
    Matrix moved = X;
    moved.row(59) += 1e-3 * example.random.matrix(1, 60);
    CHECK(problem.value(moved) > before);
  }
}

TEST_CASE("the descent ends where the gradient vanishes and never rises") {
  Example example(20, 7);
  const TwoClassProblem problem(example.one, example.other);
  Matrix X = problem.paired(example.guide);
  const detail::Descent descent = problem.minimise(X, {1000, 1e-14});
  CHECK(descent.converged);
  for (std::size_t i = 1; i < descent.path.size(); ++i)
    CHECK(descent.path[i] <= descent.path[i - 1]);
  CHECK_NEAR(descent.value(), problem.value(X), 1e-12);
  for (int i = 0; i < 20; ++i) {
    const Matrix D = 1e-5 * example.random.matrix(20, 20);
    CHECK_NEAR((problem.value(X + D) - problem.value(X - D)) / 2e-5, 0, 1e-4);
  }
}

TEST_CASE("coincident ratios leave the pairing to the guide") {
  const Index d = 8;
  Random random(11);
  const Matrix C = random.covariance(d), S = random.covariance(d);
  const Vector zero = Vector::Zero(d);
  const Side one{0.4, 0.4 * S.inverse(), C, zero, zero},
      other{0.6, 0.6 * S.inverse(), C, zero, zero};
  const TwoClassProblem problem(one, other);
  const Matrix guide = transport_map(C, S);
  CHECK_NEAR((problem.from_diagonal(problem.paired(guide)) - guide).norm(), 0, 1e-6);
}
