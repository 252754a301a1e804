// Dense linear algebra: products, triangles and decompositions, computed by BLAS and LAPACK
// (fairsteer/blas.hpp). Eigen keeps storage, views and elementwise work; no product of two matrices
// and no decomposition of Eigen's is compiled in.
//
// Throughout: matrices are column-major, and a row-major one does not compile (as an operand of a
// product it is read as the transpose that it is). Shapes are checked where they meet,
// std::invalid_argument tells the mismatch. Sizes are computed in 64 bits; what LAPACK's 32-bit
// integers cannot count is std::length_error. Decompositions answer whether they succeeded: a
// matrix with an entry that is not finite never does. Everything may be called from several threads
// at a time.
#pragma once

#include <utility>
#include <vector>

#include "fairsteer/types.hpp"

namespace fairsteer::linalg {

/// A matrix that is read, or the transpose of one: any part of a matrix whose entries lie column by
/// column (or row by row: the transpose). Does not own them.
template <class T>
struct Operand {
  const T* data;
  Index rows;  ///< of the operand, after transposition
  Index cols;
  Index stride;  ///< between the columns in memory
  bool transposed;

  Operand transpose() const {
    Operand other = *this;
    std::swap(other.rows, other.cols);
    other.transposed = !transposed;
    return other;
  }

  template <class Derived>
  Operand(const Eigen::DenseBase<Derived>& matrix)
      : data(matrix.derived().data()),
        rows(matrix.rows()),
        cols(matrix.cols()),
        stride(matrix.derived().outerStride()),
        transposed(bool(Derived::IsRowMajor)) {
    static_assert(bool(Derived::Flags & Eigen::DirectAccessBit),
                  "an expression is evaluated before BLAS reads it: Matrix(expression)");
    static_assert(Derived::InnerStrideAtCompileTime == 1, "the entries of a column lie apart");
  }
};

/// out = factor A B + keep out; `out` shares no memory with A or B. T is float or double.
template <class T>
void gemm(const Operand<T>& A, const Operand<T>& B, Eigen::Ref<MatrixOf<T>> out, T factor, T keep);
/// The lower triangle of out = factor A A^T + keep out, which is not read where `keep` is 0; the
/// rest is left alone.
template <class T>
void syrk(const Operand<T>& A, Eigen::Ref<MatrixOf<T>> out, T factor = 1, T keep = 1);

/// A B
Matrix product(const Operand<double>& A, const Operand<double>& B);
/// out = A B; `out` shares no memory with A or B, and has their shape.
inline void product(const Operand<double>& A, const Operand<double>& B, MatrixRef out) {
  gemm<double>(A, B, out, 1, 0);
}
/// out += factor A B
inline void add_product(const Operand<double>& A, const Operand<double>& B, MatrixRef out,
                        double factor = 1) {
  gemm<double>(A, B, out, factor, 1);
}
/// A A^T
Matrix gram(const Operand<double>& A);
/// A B of a symmetric A of which the lower triangle is read.
Matrix symmetric_product(const ConstMatrixRef& A, const ConstMatrixRef& B);
/// Copies the lower triangle to the upper one.
void mirror(MatrixRef A);
/// A becomes (A + A^T) / 2, symmetric to the last digit.
void symmetrise(MatrixRef A);

// A lower triangle L and a matrix Y that it changes in place; what lies above the diagonal of L is
// not read.
void multiply_lower(const ConstMatrixRef& L, MatrixRef Y);                       ///< L Y
void multiply_lower_transposed(const ConstMatrixRef& L, MatrixRef Y);            ///< L^T Y
void multiply_by_lower(MatrixRef Y, const ConstMatrixRef& L);                    ///< Y L
void multiply_by_lower_transposed(MatrixRef Y, const ConstMatrixRef& L);         ///< Y L^T
void solve_lower(const ConstMatrixRef& L, MatrixRef Y);                          ///< L^{-1} Y
void solve_lower_transposed(const ConstMatrixRef& L, MatrixRef Y);               ///< L^{-T} Y
void solve_lower_on_the_right(MatrixRef Y, const ConstMatrixRef& L);             ///< Y L^{-1}
void solve_lower_transposed_on_the_right(MatrixRef Y, const ConstMatrixRef& L);  ///< Y L^{-T}
/// B A B^T of a symmetric A, symmetric to the last digit.
Matrix congruence(const Operand<double>& B, const Operand<double>& A);
/// L^{-1} A L^{-T} of a symmetric A, symmetric to the last digit.
Matrix solve_congruence(const ConstMatrixRef& L, const ConstMatrixRef& A);

/// A = L L^T of a symmetric positive-definite matrix, of which the lower triangle is read.
class Cholesky {
 public:
  Cholesky() = default;
  explicit Cholesky(Matrix A) { compute(std::move(A)); }

  /// False, and nothing else may be asked then, unless A is finite and positive definite.
  bool compute(Matrix A);
  bool succeeded() const { return succeeded_; }

  /// L; zeros above.
  Matrix lower() const&;
  Matrix lower() &&;
  /// L in the lower triangle; above it lies anything.
  const Matrix& packed() const& { return factor_; }
  Matrix packed() && { return std::move(factor_); }
  double log_det() const;  ///< of A
  void solve_in_place(MatrixRef Y) const;
  Matrix inverse() const;  ///< symmetric to the last digit

 private:
  Matrix factor_;
  bool succeeded_ = false;
};

/// Triangular factors of a square matrix, rows exchanged.
class LU {
 public:
  explicit LU(Matrix A);

  /// False when A is exactly singular or not finite: solutions and inverse are NaN then.
  bool invertible() const { return invertible_; }
  double log_abs_det() const;           ///< -infinity when singular, NaN when A is not finite
  double reciprocal_condition() const;  ///< estimated, in the 1-norm; 0 when not invertible

  void solve_in_place(MatrixRef Y) const { solve('N', Y); }             ///< A^{-1} Y
  void solve_transposed_in_place(MatrixRef Y) const { solve('T', Y); }  ///< A^{-T} Y
  Matrix inverse() const&;
  Matrix inverse() &&;

 private:
  void solve(char transposed, MatrixRef Y) const;
  Matrix take_inverse();

  Matrix factors_;
  std::vector<int> pivots_;
  double norm_ = 0;
  bool finite_ = false, invertible_ = false;
};

/// A = Q R with orthogonal Q, a product of reflections that is never formed.
class QR {
 public:
  QR() = default;
  explicit QR(Matrix A);

  /// The diagonal of R.
  Vector diagonal() const { return packed_.diagonal(); }
  void multiply(MatrixRef Y) const { apply('L', 'N', Y); }                          ///< Q Y
  void multiply_transposed(MatrixRef Y) const { apply('L', 'T', Y); }               ///< Q^T Y
  void multiply_on_the_right(MatrixRef Y) const { apply('R', 'N', Y); }             ///< Y Q
  void multiply_transposed_on_the_right(MatrixRef Y) const { apply('R', 'T', Y); }  ///< Y Q^T

 private:
  void apply(char side, char transposed, MatrixRef Y) const;

  Matrix packed_;
  Vector tau_;
};

/// A = vectors diag(values) vectors^T of a symmetric matrix, of which the lower triangle is read;
/// values ascending.
struct SymmetricEigen {
  explicit SymmetricEigen(Matrix A);

  Vector values;
  Matrix vectors;
  bool succeeded = false;
};

/// A = U diag(values) V^T with square orthogonal U and V; values descending.
struct SVD {
  explicit SVD(const ConstMatrixRef& A);

  Matrix U;
  Vector values;
  Matrix V;
  bool succeeded = false;
};

/// The numbers that LAPACK wants as workspace for a matrix of this order. It counts them in 32
/// bits, which overflow: its own answer would be gigabytes too small.
Index eigen_workspace(Index order);
Index svd_workspace(Index order);
/// Throws std::length_error for a workspace that LAPACK cannot be told of; `what` is computed.
int check_workspace(const char* what, Index order, Index size);

}  // namespace fairsteer::linalg
