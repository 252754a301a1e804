// What is done with one or two covariance matrices.
#pragma once

#include "fairsteer/types.hpp"

namespace fairsteer {

/// Lower Cholesky factor, H H^T = covariance; a matrix that rounding alone has made indefinite is
/// lifted by as little as makes it definite. Throws NumericalError (cell unknown) for any other.
Matrix cholesky(const ConstMatrixRef& covariance);

/// Lifts the eigenvalues of a covariance to at least `floor`, measured after dividing every feature
/// by `scale`, so that neither units nor a dominant feature decide. Leaves the matrix untouched
/// when nothing lies below. Returns the number of eigenvalues above the floor (the effective rank).
Index floor_spectrum(MatrixRef covariance, const ConstVectorRef& scale, double floor);

/// U with U^T first U = I and U^T second U = diag(values), values ascending; and its inverse.
struct Diagonaliser {
  Matrix U;
  Matrix inverse;
  Vector values;
};
Diagonaliser diagonalise(const ConstMatrixRef& first, const ConstMatrixRef& second);

/// The symmetric W with W source W = target: the linear part of the optimal-transport map between
/// centred Gaussians (theory: Knott and Smith 1984).
Matrix transport_map(const ConstMatrixRef& source, const ConstMatrixRef& target);

/// The orthogonal matrix O that maximises tr(O^T matrix).
Matrix polar_factor(const ConstMatrixRef& matrix);

/// U diag(s) V^T with square orthogonal U and V; s descending. Throws NumericalError when it fails.
struct SingularValues {
  Matrix U;
  Vector s;
  Matrix V;
};
SingularValues svd(const ConstMatrixRef& matrix);

/// Inverts `n` matrices (d, d), one after the other in memory, in place and on several threads,
/// each of which calls BLAS. Throws NumericalError, its group_index the number of a matrix, when
/// one is singular or not finite: the matrices are spoilt then.
void invert(double* matrices, Index n, Index d, Index n_threads = 1);

/// out[k][a] = B_a C_k B_a^T, symmetric to the last digit, for `n_maps` matrices B and `n`
/// symmetric matrices C, all (d, d) in row-major order; on several threads, each of which calls
/// BLAS.
void map_covariances(const double* maps, Index n_maps, const double* covariances, Index n, Index d,
                     double* out, Index n_threads = 1);

/// log|det|; -infinity for a singular matrix.
double log_abs_det(const ConstMatrixRef& matrix);

/// Symmetric positive-definite square root and its inverse. Throws NumericalError when the
/// condition number leaves them no correct digits.
struct SquareRoot {
  Matrix root;
  Matrix inverse;
};
SquareRoot square_root(const ConstMatrixRef& covariance);

}  // namespace fairsteer
