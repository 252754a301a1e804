// Every function of linalg against its definition, written out entry by entry.
#include "linalg.hpp"

#include <cmath>
#include <limits>
#include <stdexcept>

#include "kernels.hpp"
#include "problems.hpp"
#include "testing.hpp"

using namespace fairsteer;
using fairsteer::test::Random;

namespace {

constexpr Index kSizes[] = {0, 1, 3, 40, 130};
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The definition, and nothing that the library could share with it.
Matrix times(const Matrix& A, const Matrix& B) {
  Matrix out = Matrix::Zero(A.rows(), B.cols());
  for (Index j = 0; j < B.cols(); ++j)
    for (Index l = 0; l < A.cols(); ++l)
      for (Index i = 0; i < A.rows(); ++i) out(i, j) += A(i, l) * B(l, j);
  return out;
}

double distance(const Matrix& A, const Matrix& B) {
  REQUIRE(A.rows() == B.rows());
  REQUIRE(A.cols() == B.cols());
  return A.size() == 0 ? 0.0 : (A - B).cwiseAbs().maxCoeff();
}

// Well conditioned; NaN above the diagonal shows a routine that reads the wrong triangle.
Matrix lower(Random& random, Index d) {
  Matrix L = random.matrix(d, d) / (1.0 + static_cast<double>(d));
  L.diagonal().array() += 2;
  L.triangularView<Eigen::StrictlyUpper>().setConstant(kNaN);
  return L;
}
Matrix without_upper(Matrix L) {
  L.triangularView<Eigen::StrictlyUpper>().setZero();
  return L;
}
Matrix with_poisoned_upper(Matrix A) {
  A.triangularView<Eigen::StrictlyUpper>().setConstant(kNaN);
  return A;
}

}  // namespace

TEST_CASE("products of matrices, of their transposes and of parts of them") {
  Random random(1);
  for (const Index d : kSizes) {
    const Matrix A = random.matrix(d, d + 2), B = random.matrix(d + 2, d + 5);
    CHECK_NEAR(distance(linalg::product(A, B), times(A, B)), 0, 1e-12);
    const Matrix At = A.transpose(), Bt = B.transpose();
    CHECK_NEAR(distance(linalg::product(At.transpose(), Bt.transpose()), times(A, B)), 0, 1e-12);
    const Matrix large = random.matrix(2 * d + 3, d + 4);
    CHECK_NEAR(distance(linalg::product(large.block(1, 2, d, d + 2), B),
                        times(large.block(1, 2, d, d + 2), B)),
               0, 1e-12);
    Matrix out = Matrix::Constant(2 * d + 3, d + 5, 7);
    linalg::product(A, B, out.middleRows(2, d));
    CHECK_NEAR(distance(out.middleRows(2, d), times(A, B)), 0, 1e-12);
    CHECK((out.topRows(2).array() == 7).all());
    CHECK((out.bottomRows(d + 1).array() == 7).all());
    Matrix sum = Matrix::Ones(d, d + 5);
    linalg::add_product(A, B, sum, -2);
    CHECK_NEAR(distance(sum, Matrix::Ones(d, d + 5) - 2 * times(A, B)), 0, 1e-12);
    const Vector x = random.matrix(d + 2, 1);
    CHECK_NEAR(distance(linalg::product(A, x), times(A, x)), 0, 1e-12);
    CHECK_NEAR(distance(linalg::product(x.transpose(), At), times(x.transpose(), At)), 0, 1e-12);
  }
}

TEST_CASE("a product overwrites what was there, NaN too, unless it is kept") {
  Random random(2);
  for (const Index d : {2, 30}) {
    const Matrix A = random.matrix(d, d), B = random.matrix(d, d);
    Matrix out = Matrix::Constant(d, d, kNaN);
    linalg::product(A, B, out);
    CHECK_NEAR(distance(out, times(A, B)), 0, 1e-12);
  }
}

TEST_CASE("products in single precision") {
  Random random(3);
  const MatrixOf<float> A = random.matrix(30, 20).cast<float>(),
                        B = random.matrix(20, 9).cast<float>();
  MatrixOf<float> out = MatrixOf<float>::Ones(30, 9);
  linalg::gemm<float>(A, B, out, 2, 3);
  const Matrix expected = 2 * times(A.cast<double>(), B.cast<double>()) + 3 * Matrix::Ones(30, 9);
  CHECK_NEAR(distance(out.cast<double>(), expected), 0, 1e-4);
  MatrixOf<float> square = MatrixOf<float>::Zero(30, 30);
  linalg::syrk<float>(A, square);
  const Matrix gram = times(A.cast<double>(), A.transpose().cast<double>());
  CHECK_NEAR(distance(without_upper(square.cast<double>()), without_upper(gram)), 0, 1e-4);
}

TEST_CASE("rank updates write the lower triangle alone") {
  Random random(4);
  for (const Index d : kSizes) {
    const Matrix A = random.matrix(d, d + 4), expected = times(A, A.transpose());
    CHECK_NEAR(distance(linalg::gram(A), expected), 0, 1e-12);
    CHECK_NEAR(distance(linalg::gram(Matrix(A.transpose()).transpose()), expected), 0, 1e-12);
    Matrix out = Matrix::Constant(d, d, 5);
    linalg::syrk<double>(A, out, -1);
    CHECK_NEAR(distance(without_upper(out), without_upper(Matrix::Constant(d, d, 5) - expected)), 0,
               1e-12);
    for (Index j = 1; j < d; ++j) CHECK(out(0, j) == 5);
    out.setConstant(kNaN);
    linalg::syrk<double>(A, out, 1, 0);  // what is there is not read
    CHECK_NEAR(distance(without_upper(out), without_upper(expected)), 0, 1e-12);
  }
}

TEST_CASE("a lower triangle is added to, read and copied to the upper one") {
  Random random(4);
  for (const Index d : {1, 7, 8, 9, 40, 67}) {
    const Matrix A = random.covariance(d), x = random.matrix(d, 1);
    Matrix lower = with_poisoned_upper(A), y(d, 1);
    detail::symmetric_times(lower.data(), d, x.data(), y.data());
    CHECK_NEAR(distance(y, times(A, x)), 0, 1e-12);
    detail::add_outer(x.data(), -2, d, lower.data());
    CHECK_NEAR(distance(without_upper(lower), without_upper(A - 2 * times(x, x.transpose()))), 0,
               1e-12);
    for (Index j = 1; j < d; ++j) CHECK(std::isnan(lower(0, j)));
    linalg::mirror(lower);
    CHECK(without_upper(lower) == without_upper(lower.transpose()));
    CHECK(lower == lower.transpose());
    Matrix part = Matrix::Constant(d + 2, d, 5);
    part.topRows(d) = with_poisoned_upper(A);
    linalg::mirror(part.topRows(d));
    CHECK(without_upper(part.topRows(d)) == without_upper(A));
    CHECK(part.topRows(d) == part.topRows(d).transpose());
    CHECK((part.bottomRows(2).array() == 5).all());
  }
}

TEST_CASE("symmetric products read the lower triangle") {
  Random random(5);
  for (const Index d : kSizes) {
    const Matrix A = random.covariance(d), B = random.matrix(d, 3), R = random.matrix(d + 1, d);
    CHECK_NEAR(distance(linalg::symmetric_product(with_poisoned_upper(A), B), times(A, B)), 0,
               1e-12);
    const Matrix congruent = linalg::congruence(R, A);
    CHECK_NEAR(distance(congruent, times(times(R, A), R.transpose())), 0, 1e-11);
    CHECK(congruent == congruent.transpose());
  }
}

TEST_CASE("products with a triangle and solutions from both sides") {
  Random random(6);
  for (const Index d : kSizes) {
    const Matrix L = lower(random, d), full = without_upper(L), Y = random.matrix(d, d + 3),
                 Z = random.matrix(d + 3, d);
    const auto changed = [](const Matrix& before, auto change) {
      Matrix after = before;
      change(after);
      return after;
    };
    using linalg::solve_lower, linalg::multiply_lower;
    CHECK_NEAR(distance(changed(Y, [&](Matrix& y) { multiply_lower(L, y); }), times(full, Y)), 0,
               1e-12);
    CHECK_NEAR(distance(changed(Y, [&](Matrix& y) { linalg::multiply_lower_transposed(L, y); }),
                        times(full.transpose(), Y)),
               0, 1e-12);
    CHECK_NEAR(
        distance(changed(Z, [&](Matrix& y) { linalg::multiply_by_lower(y, L); }), times(Z, full)),
        0, 1e-12);
    CHECK_NEAR(distance(changed(Z, [&](Matrix& y) { linalg::multiply_by_lower_transposed(y, L); }),
                        times(Z, full.transpose())),
               0, 1e-12);
    CHECK_NEAR(distance(times(full, changed(Y, [&](Matrix& y) { solve_lower(L, y); })), Y), 0,
               1e-12);
    CHECK_NEAR(distance(times(full.transpose(),
                              changed(Y, [&](Matrix& y) { linalg::solve_lower_transposed(L, y); })),
                        Y),
               0, 1e-12);
    CHECK_NEAR(
        distance(
            times(changed(Z, [&](Matrix& y) { linalg::solve_lower_on_the_right(y, L); }), full), Z),
        0, 1e-12);
    CHECK_NEAR(
        distance(
            times(changed(Z, [&](Matrix& y) { linalg::solve_lower_transposed_on_the_right(y, L); }),
                  full.transpose()),
            Z),
        0, 1e-12);
    Vector y = random.matrix(d, 1);
    const Vector before = y;
    solve_lower(L, y);
    CHECK_NEAR(distance(times(full, y), before), 0, 1e-12);
    const Matrix A = random.covariance(d), inner = linalg::solve_congruence(L, A);
    CHECK_NEAR(distance(times(times(full, inner), full.transpose()), A), 0, 1e-12);
    CHECK(inner == inner.transpose());
  }
}

TEST_CASE("Cholesky factors") {
  Random random(7);
  for (const Index d : kSizes) {
    const Matrix A = random.covariance(d), Y = random.matrix(d, 3);
    const linalg::Cholesky factor(with_poisoned_upper(A));
    REQUIRE(factor.succeeded());
    const Matrix L = factor.lower();
    CHECK(L == without_upper(L));
    CHECK_NEAR(distance(times(L, L.transpose()), A), 0, 1e-12);
    Matrix X = Y;
    factor.solve_in_place(X);
    CHECK_NEAR(distance(times(A, X), Y), 0, 1e-9);
    const Matrix inverse = factor.inverse();
    CHECK_NEAR(distance(times(A, inverse), Matrix::Identity(d, d)), 0, 1e-9);
    CHECK(inverse == inverse.transpose());
    CHECK_NEAR(factor.log_det(), 2 * L.diagonal().array().log().sum(), 1e-12);
    if (d > 0) CHECK(!linalg::Cholesky(Matrix(-A)).succeeded());
  }
}

TEST_CASE("triangular factors with exchanged rows") {
  Random random(8);
  for (const Index d : kSizes) {
    Matrix A = random.matrix(d, d);
    A.rowwise().reverseInPlace();
    A += 4.0 * static_cast<double>(d) *
         Matrix::Identity(d, d).rowwise().reverse();  // rows must be exchanged
    const Matrix Y = random.matrix(d, 3);
    const linalg::LU factors(A);
    REQUIRE(factors.invertible());
    Matrix X = Y;
    factors.solve_in_place(X);
    CHECK_NEAR(distance(times(A, X), Y), 0, 1e-10);
    X = Y;
    factors.solve_transposed_in_place(X);
    CHECK_NEAR(distance(times(A.transpose(), X), Y), 0, 1e-10);
    CHECK_NEAR(distance(times(A, factors.inverse()), Matrix::Identity(d, d)), 0, 1e-10);
    CHECK_NEAR(distance(times(A, linalg::LU(A).inverse()), Matrix::Identity(d, d)), 0, 1e-10);
    if (d > 0)
      CHECK_NEAR(factors.log_abs_det(),
                 Eigen::PartialPivLU<Matrix>(A).matrixLU().diagonal().array().abs().log().sum(),
                 1e-10);
  }
  Matrix diagonal = Matrix::Identity(30, 30);
  diagonal(3, 3) = 1e-7;
  CHECK_NEAR(linalg::LU(diagonal).reciprocal_condition() / 1e-7, 1, 1e-6);
  CHECK_NEAR(linalg::LU(diagonal).log_abs_det(), std::log(1e-7), 1e-12);
  diagonal(3, 3) = 0;
  const linalg::LU singular(diagonal);
  CHECK(!singular.invertible());
  CHECK(singular.log_abs_det() == -kInfinity);
  CHECK(singular.reciprocal_condition() == 0);
  CHECK(singular.inverse().array().isNaN().all());
  Vector y = Vector::Ones(30);
  singular.solve_in_place(y);
  CHECK(y.array().isNaN().all());
}

TEST_CASE("orthogonal factors, applied from both sides") {
  Random random(9);
  for (const Index rows : {1, 3, 40, 130})
    for (const Index cols : {Index{0}, Index{1}, rows / 2, rows, rows + 3}) {
      const Matrix A = random.matrix(rows, cols);
      const linalg::QR factor(A);
      Matrix Q = Matrix::Identity(rows, rows);
      factor.multiply(Q);
      CHECK_NEAR(distance(times(Q.transpose(), Q), Matrix::Identity(rows, rows)), 0, 1e-12);
      Matrix R = A;
      factor.multiply_transposed(R);
      CHECK_NEAR(distance(R, times(Q.transpose(), A)), 0, 1e-12);
      if (cols > 0)
        CHECK_NEAR(R.triangularView<Eigen::StrictlyLower>().toDenseMatrix().cwiseAbs().maxCoeff(),
                   0, 1e-12);
      CHECK_NEAR(distance(R.diagonal(), factor.diagonal()), 0, 1e-12);
      const Matrix Y = random.matrix(4, rows);
      Matrix right = Y;
      factor.multiply_on_the_right(right);
      CHECK_NEAR(distance(right, times(Y, Q)), 0, 1e-12);
      factor.multiply_transposed_on_the_right(right);
      CHECK_NEAR(distance(right, Y), 0, 1e-12);
    }
}

TEST_CASE("eigen-decompositions") {
  Random random(10);
  for (const Index d : kSizes) {
    const Matrix A = random.covariance(d);
    const linalg::SymmetricEigen eigen(with_poisoned_upper(A));
    REQUIRE(eigen.succeeded);
    const Matrix& V = eigen.vectors;
    CHECK_NEAR(distance(times(V.transpose(), V), Matrix::Identity(d, d)), 0, 1e-12);
    CHECK_NEAR(distance(times(V * eigen.values.asDiagonal(), V.transpose()), A), 0, 1e-12);
    for (Index i = 1; i < d; ++i) CHECK(eigen.values[i] >= eigen.values[i - 1]);
  }
}

TEST_CASE("singular value decompositions") {
  Random random(11);
  for (const Index d : kSizes) {
    Matrix A = random.matrix(d, d);
    if (d > 2) A.col(1) = A.col(0);  // singular
    const linalg::SVD svd(A);
    REQUIRE(svd.succeeded);
    CHECK_NEAR(distance(times(svd.U.transpose(), svd.U), Matrix::Identity(d, d)), 0, 1e-12);
    CHECK_NEAR(distance(times(svd.V.transpose(), svd.V), Matrix::Identity(d, d)), 0, 1e-12);
    CHECK_NEAR(distance(times(svd.U * svd.values.asDiagonal(), svd.V.transpose()), A), 0, 1e-11);
    for (Index i = 1; i < d; ++i) CHECK(svd.values[i] <= svd.values[i - 1]);
  }
}

TEST_CASE("a value that is not finite never looks like an answer") {
  Random random(12);
  for (const double value : {kNaN, kInfinity, -kInfinity}) {
    Matrix A = random.covariance(40);
    A(5, 2) = A(2, 5) = value;
    CHECK(!linalg::Cholesky(A).succeeded());
    CHECK(!linalg::SymmetricEigen(A).succeeded);
    CHECK(!linalg::SVD(A).succeeded);
    const linalg::LU factors(A);
    CHECK(!factors.invertible());
    CHECK(std::isnan(factors.log_abs_det()));
    CHECK(factors.inverse().array().isNaN().all());
  }
  // Finite, although its sums are not.
  Matrix large = Matrix::Constant(3, 3, 1e308);
  CHECK(linalg::SymmetricEigen(Matrix(large * 1e-10)).succeeded);
  CHECK(linalg::LU(Matrix(Matrix::Identity(3, 3) * 1e308 + 0.5 * large)).invertible());
}

TEST_CASE("shapes that do not fit are refused") {
  const Matrix A = Matrix::Ones(3, 4), B = Matrix::Ones(3, 4), square = Matrix::Identity(4, 4);
  Matrix out = Matrix::Ones(3, 3), Y = Matrix::Ones(3, 2);
  CHECK_THROWS_AS(linalg::product(A, B), std::invalid_argument);
  CHECK_THROWS_AS(linalg::product(A, square, out), std::invalid_argument);
  CHECK_THROWS_AS(linalg::syrk<double>(square, out), std::invalid_argument);
  CHECK_THROWS_AS(linalg::solve_lower(square, Y), std::invalid_argument);
  CHECK_THROWS_AS(linalg::solve_lower(A, Y), std::invalid_argument);
  CHECK_THROWS_AS(linalg::symmetric_product(square, Y), std::invalid_argument);
  CHECK_THROWS_AS(linalg::Cholesky{A}, std::invalid_argument);
  CHECK_THROWS_AS(linalg::LU{A}, std::invalid_argument);
  CHECK_THROWS_AS(linalg::SymmetricEigen{A}, std::invalid_argument);
  CHECK_THROWS_AS(linalg::SVD{A}, std::invalid_argument);
  CHECK_THROWS_AS(linalg::Cholesky(square).solve_in_place(Y), std::invalid_argument);
  CHECK_THROWS_AS(linalg::LU(square).solve_in_place(Y), std::invalid_argument);
  CHECK_THROWS_AS(linalg::QR(square).multiply(Y), std::invalid_argument);
}

// LAPACK would compute these in 32 bits and answer a workspace that is gigabytes too small.
TEST_CASE("workspaces are counted in 64 bits and refused where LAPACK cannot count them") {
  CHECK(linalg::eigen_workspace(32766) == 1 + 6 * Index{32766} + 2 * Index{32766} * 32766);
  CHECK_NOTHROW(linalg::check_workspace("x", 32766, linalg::eigen_workspace(32766)));
  CHECK_THROWS_WITH_AS(
      linalg::check_workspace("the eigen-decomposition", 32767, linalg::eigen_workspace(32767)),
      "the eigen-decomposition of a matrix of order 32767 needs a workspace of 2147549181 "
      "numbers, more than the 32-bit integers of LAPACK count; use fewer features",
      std::length_error);
  CHECK_THROWS_AS(linalg::check_workspace("x", 23170, linalg::svd_workspace(23170)),
                  std::length_error);
}
