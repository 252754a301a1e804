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
  const Eigen::LLT<Matrix> factor(covariance);
  if (factor.info() != Eigen::Success)
    throw NumericalError("a covariance is not positive definite", -1, -1);
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
    if (Eigen::LLT<Matrix>(shifted).info() == Eigen::Success) return d;
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
  const Eigen::BDCSVD<Matrix> solver(matrix, Eigen::ComputeFullU | Eigen::ComputeFullV);
  if (solver.info() != Eigen::Success || !solver.singularValues().allFinite())
    throw NumericalError("a singular value decomposition did not converge", -1, -1);
  return {solver.matrixU(), solver.singularValues(), solver.matrixV()};
}

Matrix polar_factor(const ConstMatrixRef& matrix) {
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
  if (eigen.eigenvalues().minCoeff() <= 0)
    throw NumericalError("a covariance is not positive definite", -1, -1);
  const Vector root = eigen.eigenvalues().cwiseSqrt();
  const Matrix& vectors = eigen.eigenvectors();
  return {vectors * root.asDiagonal() * vectors.transpose(),
          vectors * root.cwiseInverse().asDiagonal() * vectors.transpose()};
}

}  // namespace fairsteer
