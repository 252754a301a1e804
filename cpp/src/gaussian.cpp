#include "fairsteer/gaussian.hpp"

#include <cmath>

#include "fairsteer/errors.hpp"

namespace fairsteer {
namespace {

Eigen::SelfAdjointEigenSolver<Matrix> eigen_decomposition(const Matrix& symmetric) {
  Eigen::SelfAdjointEigenSolver<Matrix> solver(symmetric);
  if (solver.info() != Eigen::Success || !solver.eigenvalues().allFinite())
    throw NumericalError("the eigen-decomposition of a covariance did not converge", -1, -1);
  return solver;
}

}  // namespace

Matrix cholesky(const ConstMatrixRef& covariance) {
  if (covariance.size() == 0) return covariance;  // LAPACK refuses an order of zero
  Eigen::LLT<Matrix> factor(covariance);
  if (factor.info() != Eigen::Success) {
    // A covariance at the edge of double precision may come out indefinite by rounding alone.
    const Vector variance = covariance.diagonal();
    if (!(variance.minCoeff() > 0) || !covariance.allFinite())
      throw NumericalError("a covariance is not positive definite", -1, -1);
    Matrix lifted = covariance;
    floor_spectrum(lifted, variance.cwiseSqrt(), 1e-14);
    factor.compute(lifted);
    if (factor.info() != Eigen::Success)
      throw NumericalError("a covariance is not positive definite", -1, -1);
  }
  return factor.matrixL();
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
    if (Eigen::LLT<Eigen::Ref<Matrix>>(shifted).info() == Eigen::Success) return d;
  }
  const auto eigen = eigen_decomposition(scaled);
  const Index rank = (eigen.eigenvalues().array() > floor).count();
  const Vector lifted = eigen.eigenvalues().cwiseMax(floor);
  const Matrix half = eigen.eigenvectors() * lifted.cwiseSqrt().asDiagonal();
  scaled.setZero();
  scaled.selfadjointView<Eigen::Lower>().rankUpdate(half);
  scaled.triangularView<Eigen::StrictlyUpper>() = scaled.transpose();
  covariance = scale.asDiagonal() * scaled * scale.asDiagonal();
  return rank;
}

Diagonaliser diagonalise(const ConstMatrixRef& first, const ConstMatrixRef& second) {
  // With first = L L^T, the eigenvectors W of L^{-1} second L^{-T}: U = L^{-T} W.
  const Matrix factor = cholesky(first);
  const auto lower = factor.triangularView<Eigen::Lower>();
  const Matrix half = lower.solve(Matrix(second));
  const Matrix inner = lower.solve(half.transpose());
  const auto eigen = eigen_decomposition(0.5 * (inner + inner.transpose()));
  return {lower.transpose().solve(eigen.eigenvectors()),
          eigen.eigenvectors().transpose() * factor.transpose(), eigen.eigenvalues()};
}

Matrix transport_map(const ConstMatrixRef& source, const ConstMatrixRef& target) {
  // With source = H H^T: W = H^{-T} (H^T target H)^{1/2} H^{-1}.
  const Matrix factor = cholesky(source);
  const auto lower = factor.triangularView<Eigen::Lower>();
  Matrix inner = lower.transpose() * target;
  inner = inner * lower;
  const auto eigen = eigen_decomposition(0.5 * (inner + inner.transpose()));
  const Vector quarter = eigen.eigenvalues().cwiseMax(0.0).cwiseSqrt().cwiseSqrt();
  Matrix half = eigen.eigenvectors() * quarter.asDiagonal();
  lower.transpose().solveInPlace(half);
  Matrix map = Matrix::Zero(source.rows(), source.cols());
  map.selfadjointView<Eigen::Lower>().rankUpdate(half);
  map.triangularView<Eigen::StrictlyUpper>() = map.transpose();
  return map;
}

SingularValues svd(const ConstMatrixRef& matrix) {
  constexpr int kSquare = Eigen::ComputeFullU | Eigen::ComputeFullV;
  const Eigen::BDCSVD<Matrix> solver(matrix, kSquare);
  if (solver.info() == Eigen::Success && solver.singularValues().allFinite())
    return {solver.matrixU(), solver.singularValues(), solver.matrixV()};
  // Divide and conquer can fail on extreme ratios of singular values; Jacobi does not.
  const Eigen::JacobiSVD<Matrix> slow(matrix, kSquare);
  if (!slow.singularValues().allFinite())
    throw NumericalError("a singular value decomposition did not converge", -1, -1);
  return {slow.matrixU(), slow.singularValues(), slow.matrixV()};
}

namespace {

// D <- (I + D)^{-1/2} - I for a small symmetric D, to the fourth order. Returns a bound on the
// first term that is left out.
double inverse_root_less_one(Matrix& D, Matrix& square) {
  // -1/2 D + 3/8 D^2 - 5/16 D^3 + 35/128 D^4 as a D + b + c (D^2 - 4/7 D + e)^2
  constexpr double c = 35.0 / 128, e = (48.0 / 35 - 16.0 / 49) / 2;
  square.setZero();
  square.selfadjointView<Eigen::Lower>().rankUpdate(D);
  square.triangularView<Eigen::StrictlyUpper>() = square.transpose();
  const double left = 63.0 / 256 * std::pow(square.norm(), 2.5);
  square -= 4.0 / 7 * D;
  square.diagonal().array() += e;
  D *= c * 8.0 / 7 * e - 0.5;
  D.diagonal().array() -= c * e * e;
  D.selfadjointView<Eigen::Lower>().rankUpdate(square, c);
  D.triangularView<Eigen::StrictlyUpper>() = D.transpose();
  return left;
}

// Dynamically weighted Halley iteration with Cholesky factors (Nakatsukasa and Higham 2013): a few
// products and triangular solves. Empty where the matrix is so near to a singular one that the
// factors would cost digits.
Matrix halley_polar_factor(const ConstMatrixRef& matrix) {
  const Index d = matrix.rows();
  Matrix gram = Matrix::Zero(d, d);
  gram.selfadjointView<Eigen::Lower>().rankUpdate(matrix.transpose());
  // The extreme singular values, by a few steps of power iteration from a vector that is orthogonal
  // to nothing in particular: a poor estimate costs an iteration, not accuracy.
  double largest = 0, smallest = 0;
  {
    const Eigen::LLT<Matrix> inverse(gram);
    if (inverse.info() != Eigen::Success) return {};
    Vector up(d);
    for (Index i = 0; i < d; ++i) up[i] = 1 + 0.5 * std::sin(1.0 + 3.7 * static_cast<double>(i));
    Vector down = up;
    for (int step = 0; step < 10; ++step) {
      up = gram.selfadjointView<Eigen::Lower>() * up.normalized();
      down = inverse.solve(down.normalized());
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
      gram.selfadjointView<Eigen::Lower>().rankUpdate(X.transpose());
    }
    // Twice the distance of the singular values from one, in the root of the sum of squares.
    gram.diagonal().array() -= 1;
    double distance = 0;
    for (Index j = 0; j < d; ++j) distance += 2 * gram.col(j).tail(d - j).squaredNorm();
    distance = std::sqrt(distance);
    if (distance <= 1e-12 * static_cast<double>(d)) return X;
    if (distance <= 0.25) {
      // Near the end X (I + D)^{-1/2}, with D = X^T X - I, to the fourth order: products alone.
      gram.triangularView<Eigen::StrictlyUpper>() = gram.transpose();
      const double left = inverse_root_less_one(gram, before);
      X += X * gram;
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
    const Eigen::LLT<Eigen::Ref<Matrix>> factor(gram);
    if (factor.info() != Eigen::Success) return {};
    before = X;
    factor.matrixU().solveInPlace<Eigen::OnTheRight>(X);
    factor.matrixL().solveInPlace<Eigen::OnTheRight>(X);
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
  return decomposition.U * decomposition.V.transpose();
}

double log_abs_det(const ConstMatrixRef& matrix) {
  if (matrix.size() == 0) return 0;
  const Eigen::PartialPivLU<Matrix> factor(matrix);
  return factor.matrixLU().diagonal().array().abs().log().sum();
}

SquareRoot square_root(const ConstMatrixRef& covariance) {
  const auto eigen = eigen_decomposition(covariance);
  if (!(eigen.eigenvalues().minCoeff() > 1e-13 * eigen.eigenvalues().maxCoeff()))
    throw NumericalError(
        "the square root of a covariance is lost to rounding (its condition number exceeds 1e13)",
        -1, -1);
  const Vector root = eigen.eigenvalues().cwiseSqrt();
  const Matrix& vectors = eigen.eigenvectors();
  return {vectors * root.asDiagonal() * vectors.transpose(),
          vectors * root.cwiseInverse().asDiagonal() * vectors.transpose()};
}

}  // namespace fairsteer
