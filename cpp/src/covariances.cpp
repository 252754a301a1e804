#include "fairsteer/covariances.hpp"

#include <algorithm>
#include <cmath>

#include "fairsteer/errors.hpp"
#include "linalg.hpp"
#include "parallel.hpp"

namespace fairsteer {
namespace {

linalg::SymmetricEigen eigen_decomposition(Matrix symmetric) {
  linalg::SymmetricEigen eigen(std::move(symmetric));
  if (!eigen.succeeded)
    throw NumericalError("the eigen-decomposition of a covariance did not converge", -1, -1);
  return eigen;
}

}  // namespace

Matrix cholesky(const ConstMatrixRef& covariance) {
  linalg::Cholesky factor{Matrix(covariance)};
  if (!factor.succeeded()) {
    // A covariance at the edge of double precision may come out indefinite by rounding alone.
    const Vector variance = covariance.diagonal();
    if (!(variance.minCoeff() > 0) || !covariance.allFinite())
      throw NumericalError("a covariance is not positive definite", -1, -1);
    Matrix lifted = covariance;
    floor_spectrum(lifted, variance.cwiseSqrt(), 1e-14);
    if (!factor.compute(std::move(lifted)))
      throw NumericalError("a covariance is not positive definite", -1, -1);
  }
  return std::move(factor).lower();
}

Index floor_spectrum(MatrixRef covariance, const ConstVectorRef& scale, double floor) {
  const Index d = covariance.rows();
  const Vector inverse_scale = scale.cwiseInverse();
  Matrix scaled = inverse_scale.asDiagonal() * covariance * inverse_scale.asDiagonal();
  // Positive definite after subtracting the floor: no eigenvalue lies below it. A third of the
  // price of one step of the decomposition, and the common case.
  {
    Matrix shifted = scaled;
    shifted.diagonal().array() -= floor;
    if (linalg::Cholesky(std::move(shifted)).succeeded()) return d;
  }
  auto eigen = eigen_decomposition(std::move(scaled));
  const Index rank = (eigen.values.array() > floor).count();
  eigen.vectors *= eigen.values.cwiseMax(floor).cwiseSqrt().asDiagonal();
  covariance = scale.asDiagonal() * linalg::gram(eigen.vectors) * scale.asDiagonal();
  return rank;
}

Diagonaliser diagonalise(const ConstMatrixRef& first, const ConstMatrixRef& second) {
  // With first = L L^T, the eigenvectors W of L^{-1} second L^{-T}: U = L^{-T} W.
  const Matrix L = cholesky(first);
  auto eigen = eigen_decomposition(linalg::solve_congruence(L, second));
  Matrix inverse = eigen.vectors.transpose();
  linalg::multiply_by_lower_transposed(inverse, L);
  linalg::solve_lower_transposed(L, eigen.vectors);
  return {std::move(eigen.vectors), std::move(inverse), std::move(eigen.values)};
}

Matrix transport_map(const ConstMatrixRef& source, const ConstMatrixRef& target) {
  // With source = H H^T: W = H^{-T} (H^T target H)^{1/2} H^{-1}.
  const Matrix H = cholesky(source);
  Matrix inner = target;
  linalg::multiply_lower_transposed(H, inner);
  linalg::multiply_by_lower(inner, H);
  linalg::symmetrise(inner);
  auto eigen = eigen_decomposition(std::move(inner));
  Matrix& half = eigen.vectors;
  half *= eigen.values.cwiseMax(0.0).cwiseSqrt().cwiseSqrt().asDiagonal();
  linalg::solve_lower_transposed(H, half);
  return linalg::gram(half);
}

SingularValues svd(const ConstMatrixRef& matrix) {
  linalg::SVD decomposition(matrix);
  if (!decomposition.succeeded)
    throw NumericalError("a singular value decomposition did not converge", -1, -1);
  return {std::move(decomposition.U), std::move(decomposition.values), std::move(decomposition.V)};
}

namespace {

// D <- (I + D)^{-1/2} - I for a small symmetric D, to the fourth order. Returns a bound on the
// first term that is left out.
double inverse_root_less_one(Matrix& D, Matrix& square) {
  // -1/2 D + 3/8 D^2 - 5/16 D^3 + 35/128 D^4 as a D + b + c (D^2 - 4/7 D + e)^2
  constexpr double c = 35.0 / 128, e = (48.0 / 35 - 16.0 / 49) / 2;
  square = linalg::gram(D);
  const double left = 63.0 / 256 * std::pow(square.norm(), 2.5);
  square -= 4.0 / 7 * D;
  square.diagonal().array() += e;
  D *= c * 8.0 / 7 * e - 0.5;
  D.diagonal().array() -= c * e * e;
  linalg::syrk<double>(square, D, c);
  linalg::mirror(D);
  return left;
}

// Dynamically weighted Halley iteration with Cholesky factors (Nakatsukasa and Higham 2013): a few
// products and triangular solves. Empty where the matrix is so near to a singular one that the
// factors would cost digits.
Matrix halley_polar_factor(const ConstMatrixRef& matrix) {
  const Index d = matrix.rows();
  Matrix gram = Matrix::Zero(d, d);
  linalg::syrk<double>(matrix.transpose(), gram);
  // The extreme singular values, by a few steps of power iteration from a vector that is orthogonal
  // to nothing in particular: a poor estimate costs an iteration, not accuracy.
  double largest = 0, smallest = 0;
  {
    const linalg::Cholesky inverse(gram);
    if (!inverse.succeeded()) return {};
    Vector up(d);
    for (Index i = 0; i < d; ++i) up[i] = 1 + 0.5 * std::sin(1.0 + 3.7 * static_cast<double>(i));
    Vector down = up;
    for (int step = 0; step < 10; ++step) {
      up = linalg::symmetric_product(gram, up.normalized());
      down.normalize();
      inverse.solve_in_place(down);
    }
    largest = std::sqrt(up.norm());
    smallest = 1 / std::sqrt(down.norm());
  }
  if (!(largest > 0) || !std::isfinite(largest)) return {};
  const double scale = 1 / (1.05 * largest);
  double l = std::min(0.9 * smallest * scale, 1.0);
  if (!(l > 1e-6)) return {};
  Matrix X = scale * matrix, before(d, d);
  gram *= scale * scale;
  for (int round = 0; round < 20; ++round) {
    if (round > 0) {
      gram.setZero();
      linalg::syrk<double>(X.transpose(), gram);
    }
    // Twice the distance of the singular values from one, in the root of the sum of squares.
    gram.diagonal().array() -= 1;
    double distance = 0;
    for (Index j = 0; j < d; ++j) distance += 2 * gram.col(j).tail(d - j).squaredNorm();
    distance = std::sqrt(distance);
    if (distance <= 1e-12 * static_cast<double>(d)) return X;
    if (distance <= 0.25) {
      // Near the end X (I + D)^{-1/2}, with D = X^T X - I, to the fourth order: products alone.
      linalg::mirror(gram);
      const double left = inverse_root_less_one(gram, before);
      before = X;
      linalg::add_product(before, gram, X);
      if (left <= 1e-15) return X;
      continue;
    }
    const double l2 = l * l;
    const double g = std::cbrt(std::max(0.0, 4 * (1 - l2) / (l2 * l2)));
    const double a =
        std::sqrt(1 + g) +
        0.5 * std::sqrt(std::max(0.0, 8 - 4 * g + 8 * (2 - l2) / (l2 * std::sqrt(1 + g))));
    const double b = 0.25 * (a - 1) * (a - 1), c = a + b - 1;
    // X <- b/c X + (a - b/c) X (I + c X^T X)^{-1}
    gram *= c;
    gram.diagonal().array() += 1 + c;
    linalg::Cholesky factor;
    if (!factor.compute(std::move(gram))) return {};
    before = X;
    linalg::solve_lower_transposed_on_the_right(X, factor.packed());
    linalg::solve_lower_on_the_right(X, factor.packed());
    gram = std::move(factor).packed();
    X = (b / c) * before + (a - b / c) * X;
    l = std::min(1.0, l * (a + b * l2) / (1 + c * l2));
  }
  return {};
}

}  // namespace

Matrix polar_factor(const ConstMatrixRef& matrix) {
  constexpr Index kSmall = 48;  // a decomposition costs nothing here, and has every digit
  if (matrix.rows() > kSmall) {
    Matrix factor = halley_polar_factor(matrix);
    if (factor.size() > 0) return factor;
  }
  if (matrix.size() == 0) return matrix;
  const SingularValues decomposition = svd(matrix);
  return linalg::product(decomposition.U, decomposition.V.transpose());
}

double log_abs_det(const ConstMatrixRef& matrix) { return linalg::LU(matrix).log_abs_det(); }

void invert(double* matrices, Index n, Index d, Index n_threads) {
  detail::for_each_task(n, n_threads, [&](Index i, Index) {
    Eigen::Map<Matrix> matrix(matrices + i * d * d, d, d);
    linalg::LU factors{Matrix(matrix)};
    if (!factors.invertible())
      throw NumericalError("a matrix is singular or not finite, and has no inverse", -1, i);
    matrix = std::move(factors).inverse();
  });
}

void map_covariances(const double* maps, Index n_maps, const double* covariances, Index n, Index d,
                     double* out, Index n_threads) {
  detail::for_each_task(n * n_maps, n_threads, [&](Index task, Index) {
    const Index k = task / n_maps, a = task % n_maps;
    // Row-major storage read as column-major is the transpose.
    const MatrixView map(maps + a * d * d, d, d), covariance(covariances + k * d * d, d, d);
    Eigen::Map<Matrix>(out + task * d * d, d, d) = linalg::congruence(map.transpose(), covariance);
  });
}

SquareRoot square_root(const ConstMatrixRef& covariance) {
  const auto eigen = eigen_decomposition(covariance);
  if (!(eigen.values.minCoeff() > 1e-13 * eigen.values.maxCoeff()))
    throw NumericalError(
        "the square root of a covariance is lost to rounding (its condition number exceeds 1e13)",
        -1, -1);
  const Vector quarter = eigen.values.cwiseSqrt().cwiseSqrt();
  return {linalg::gram(Matrix(eigen.vectors * quarter.asDiagonal())),
          linalg::gram(Matrix(eigen.vectors * quarter.cwiseInverse().asDiagonal()))};
}

}  // namespace fairsteer
