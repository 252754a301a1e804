#include "linalg.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>

#include "fairsteer/blas.hpp"
#include "kernels.hpp"

namespace fairsteer::blas {

Library& library() noexcept {
  static Library loaded;
  return loaded;
}

}  // namespace fairsteer::blas

namespace fairsteer::linalg {
namespace {

constexpr Index kMostOf32Bits = std::numeric_limits<int>::max();

// Below this sum of the three sizes a product costs less than the call.
constexpr Index kSmallProduct = 20;

int to_int(Index size) {
  if (size > kMostOf32Bits)
    throw std::length_error("a matrix of " + std::to_string(size) +
                            " rows or columns is larger than the 32-bit integers of BLAS count");
  return static_cast<int>(size);
}

// Leading dimensions must be positive, of an empty matrix too.
int leading(Index stride) { return to_int(std::max<Index>(stride, 1)); }

// From the answer to a query for it.
int workspace_size(const char* what, Index order, Index least, double answer) {
  return check_workspace(what, order, std::max(least, static_cast<Index>(std::ceil(answer))));
}

template <class T>
std::unique_ptr<T[]> workspace(Index size) {
  return std::unique_ptr<T[]>(new T[static_cast<std::size_t>(std::max<Index>(size, 1))]);
}

std::string shape(Index rows, Index cols) {
  return std::to_string(rows) + " x " + std::to_string(cols);
}

void check(bool agree, const char* function, Index rows, Index cols, Index other_rows,
           Index other_cols) {
  if (!agree)
    throw std::invalid_argument(std::string(function) + ": a matrix of shape " + shape(rows, cols) +
                                " does not fit one of shape " + shape(other_rows, other_cols));
}

void check_square(const char* function, Index rows, Index cols) {
  if (rows != cols)
    throw std::invalid_argument(std::string(function) + ": a matrix of shape " + shape(rows, cols) +
                                " is not square");
}

bool lower_is_finite(const Matrix& A) {
  // A sum is finite unless something in it is not, or it overflows: then entry by entry.
  for (Index j = 0; j < A.cols(); ++j) {
    const auto column = A.col(j).tail(A.rows() - j);
    if (!std::isfinite(column.sum()) && !column.allFinite()) return false;
  }
  return true;
}

bool is_finite(const ConstMatrixRef& A) {
  for (Index j = 0; j < A.cols(); ++j)
    if (!std::isfinite(A.col(j).sum()) && !A.col(j).allFinite()) return false;
  return true;
}

const blas::Library& library() { return blas::library(); }

const blas::Gemm<float>& gemm_of(float) { return library().sgemm; }
const blas::Gemm<double>& gemm_of(double) { return library().dgemm; }
const blas::Syrk<float>& syrk_of(float) { return library().ssyrk; }
const blas::Syrk<double>& syrk_of(double) { return library().dsyrk; }

template <class T>
T entry(const Operand<T>& A, Index i, Index j) {
  return A.transposed ? A.data[j + i * A.stride] : A.data[i + j * A.stride];
}

void triangular(const blas::Triangular& routine, const char* function, char side, char transposed,
                const ConstMatrixRef& L, MatrixRef Y, double factor = 1) {
  check_square(function, L.rows(), L.cols());
  check(L.rows() == (side == 'L' ? Y.rows() : Y.cols()), function, L.rows(), L.cols(), Y.rows(),
        Y.cols());
  if (Y.size() == 0) return;
  const char lower = 'L', not_unit = 'N';
  const int m = to_int(Y.rows()), n = to_int(Y.cols());
  const int ldl = leading(L.outerStride()), ldy = leading(Y.outerStride());
  routine(&side, &lower, &transposed, &not_unit, &m, &n, &factor, L.data(), &ldl, Y.data(), &ldy);
}

}  // namespace

template <class T>
void gemm(const Operand<T>& A, const Operand<T>& B, Eigen::Ref<MatrixOf<T>> out, T factor, T keep) {
  check(A.cols == B.rows, "product", A.rows, A.cols, B.rows, B.cols);
  check(A.rows == out.rows() && B.cols == out.cols(), "product", A.rows, B.cols, out.rows(),
        out.cols());
  const Index m = A.rows, n = B.cols, k = A.cols;
  if (m + n + k < kSmallProduct) {
    for (Index j = 0; j < n; ++j)
      for (Index i = 0; i < m; ++i) {
        T sum = 0;
        for (Index l = 0; l < k; ++l) sum += entry(A, i, l) * entry(B, l, j);
        out(i, j) = keep == 0 ? factor * sum : factor * sum + keep * out(i, j);
      }
    return;
  }
  if (m == 0 || n == 0) return;
  const char a = A.transposed ? 'T' : 'N', b = B.transposed ? 'T' : 'N';
  const int rows = to_int(m), cols = to_int(n), inner = to_int(k);
  const int lda = leading(A.stride), ldb = leading(B.stride), ldc = leading(out.outerStride());
  gemm_of(T())(&a, &b, &rows, &cols, &inner, &factor, A.data, &lda, B.data, &ldb, &keep, out.data(),
               &ldc);
}

template <class T>
void syrk(const Operand<T>& A, Eigen::Ref<MatrixOf<T>> out, T factor, T keep) {
  check(A.rows == out.rows() && A.rows == out.cols(), "rank update", A.rows, A.cols, out.rows(),
        out.cols());
  if (A.rows == 0 || (A.cols == 0 && keep == T(1))) return;
  const char lower = 'L', transposed = A.transposed ? 'T' : 'N';
  const int n = to_int(A.rows), k = to_int(A.cols), lda = leading(A.stride);
  const int ldc = leading(out.outerStride());
  syrk_of(T())(&lower, &transposed, &n, &k, &factor, A.data, &lda, &keep, out.data(), &ldc);
}

template void gemm(const Operand<float>&, const Operand<float>&, Eigen::Ref<MatrixOf<float>>, float,
                   float);
template void gemm(const Operand<double>&, const Operand<double>&, Eigen::Ref<MatrixOf<double>>,
                   double, double);
template void syrk(const Operand<float>&, Eigen::Ref<MatrixOf<float>>, float, float);
template void syrk(const Operand<double>&, Eigen::Ref<MatrixOf<double>>, double, double);

Matrix product(const Operand<double>& A, const Operand<double>& B) {
  Matrix out(A.rows, B.cols);
  product(A, B, out);
  return out;
}

Matrix gram(const Operand<double>& A) {
  Matrix out = Matrix::Zero(A.rows, A.rows);
  syrk<double>(A, out);
  mirror(out);
  return out;
}

Matrix symmetric_product(const ConstMatrixRef& A, const ConstMatrixRef& B) {
  check_square("symmetric product", A.rows(), A.cols());
  check(A.cols() == B.rows(), "symmetric product", A.rows(), A.cols(), B.rows(), B.cols());
  Matrix out(A.rows(), B.cols());
  if (out.size() == 0) return out;
  const char left = 'L', lower = 'L';
  const int m = to_int(B.rows()), n = to_int(B.cols());
  const int lda = leading(A.outerStride()), ldb = leading(B.outerStride());
  const double one = 1, zero = 0;
  library().dsymm(&left, &lower, &m, &n, &one, A.data(), &lda, B.data(), &ldb, &zero, out.data(),
                  &m);
  return out;
}

void mirror(MatrixRef A) { detail::mirror_lower(A.data(), A.outerStride(), A.rows()); }

void multiply_lower(const ConstMatrixRef& L, MatrixRef Y) {
  triangular(library().dtrmm, "triangular product", 'L', 'N', L, Y);
}
void multiply_lower_transposed(const ConstMatrixRef& L, MatrixRef Y) {
  triangular(library().dtrmm, "triangular product", 'L', 'T', L, Y);
}
void multiply_by_lower(MatrixRef Y, const ConstMatrixRef& L) {
  triangular(library().dtrmm, "triangular product", 'R', 'N', L, Y);
}
void multiply_by_lower_transposed(MatrixRef Y, const ConstMatrixRef& L) {
  triangular(library().dtrmm, "triangular product", 'R', 'T', L, Y);
}
void solve_lower(const ConstMatrixRef& L, MatrixRef Y) {
  triangular(library().dtrsm, "triangular solve", 'L', 'N', L, Y);
}
void solve_lower_transposed(const ConstMatrixRef& L, MatrixRef Y) {
  triangular(library().dtrsm, "triangular solve", 'L', 'T', L, Y);
}
void solve_lower_on_the_right(MatrixRef Y, const ConstMatrixRef& L) {
  triangular(library().dtrsm, "triangular solve", 'R', 'N', L, Y);
}
void solve_lower_transposed_on_the_right(MatrixRef Y, const ConstMatrixRef& L) {
  triangular(library().dtrsm, "triangular solve", 'R', 'T', L, Y);
}

Matrix congruence(const Operand<double>& B, const Operand<double>& A) {
  Matrix out(B.rows, B.rows);
  product(product(B, A), B.transpose(), out);
  symmetrise(out);
  return out;
}

Matrix solve_congruence(const ConstMatrixRef& L, const ConstMatrixRef& A) {
  Matrix whole = A;
  solve_lower(L, whole);
  solve_lower_transposed_on_the_right(whole, L);
  symmetrise(whole);
  return whole;
}

void symmetrise(MatrixRef A) {
  check_square("symmetrise", A.rows(), A.cols());
  constexpr Index kTile = 32;
  const Index d = A.rows();
  for (Index j0 = 0; j0 < d; j0 += kTile)
    for (Index i0 = j0; i0 < d; i0 += kTile)
      for (Index j = j0; j < std::min(d, j0 + kTile); ++j)
        for (Index i = std::max(i0, j + 1); i < std::min(d, i0 + kTile); ++i)
          A(j, i) = A(i, j) = 0.5 * (A(i, j) + A(j, i));
}

bool Cholesky::compute(Matrix A) {
  check_square("Cholesky factor", A.rows(), A.cols());
  factor_ = std::move(A);
  succeeded_ = false;
  if (!lower_is_finite(factor_)) return false;
  const char lower = 'L';
  const int n = to_int(factor_.rows()), lda = leading(n);
  int info = 0;
  library().dpotrf(&lower, &n, factor_.data(), &lda, &info);
  return succeeded_ = info == 0;
}

Matrix Cholesky::lower() const& { return factor_.triangularView<Eigen::Lower>(); }

Matrix Cholesky::lower() && {
  factor_.triangularView<Eigen::StrictlyUpper>().setZero();
  return std::move(factor_);
}

double Cholesky::log_det() const { return 2 * factor_.diagonal().array().log().sum(); }

void Cholesky::solve_in_place(MatrixRef Y) const {
  check(factor_.rows() == Y.rows(), "Cholesky solve", factor_.rows(), factor_.cols(), Y.rows(),
        Y.cols());
  if (Y.size() == 0) return;
  const char lower = 'L';
  const int n = to_int(Y.rows()), columns = to_int(Y.cols()), ldy = leading(Y.outerStride());
  int info = 0;
  library().dpotrs(&lower, &n, &columns, factor_.data(), &n, Y.data(), &ldy, &info);
}

Matrix Cholesky::inverse() const {
  Matrix inverse = factor_;
  const char lower = 'L';
  const int n = to_int(inverse.rows()), lda = leading(n);
  int info = 0;
  library().dpotri(&lower, &n, inverse.data(), &lda, &info);
  mirror(inverse);
  return inverse;
}

LU::LU(Matrix A) : factors_(std::move(A)) {
  check_square("triangular factors", factors_.rows(), factors_.cols());
  finite_ = is_finite(factors_);
  if (!finite_) return;
  norm_ = factors_.size() == 0 ? 0.0 : factors_.cwiseAbs().colwise().sum().maxCoeff();
  const int n = to_int(factors_.rows()), lda = leading(n);
  pivots_.resize(static_cast<std::size_t>(n));
  int info = 0;
  library().dgetrf(&n, &n, factors_.data(), &lda, pivots_.data(), &info);
  invertible_ = info == 0;
}

double LU::log_abs_det() const {
  if (!finite_) return std::numeric_limits<double>::quiet_NaN();
  return factors_.diagonal().array().abs().log().sum();
}

double LU::reciprocal_condition() const {
  if (!invertible_) return 0;
  const char norm = '1';
  const int n = to_int(factors_.rows()), lda = leading(n);
  const auto work = workspace<double>(4 * factors_.rows());
  const auto integers = workspace<int>(factors_.rows());
  double answer = 0;
  int info = 0;
  library().dgecon(&norm, &n, factors_.data(), &lda, &norm_, &answer, work.get(), integers.get(),
                   &info);
  return answer;
}

void LU::solve(char transposed, MatrixRef Y) const {
  check(factors_.rows() == Y.rows(), "solve", factors_.rows(), factors_.cols(), Y.rows(), Y.cols());
  if (!invertible_) {
    Y.setConstant(std::numeric_limits<double>::quiet_NaN());
    return;
  }
  if (Y.size() == 0) return;
  const int n = to_int(Y.rows()), columns = to_int(Y.cols()), ldy = leading(Y.outerStride());
  int info = 0;
  library().dgetrs(&transposed, &n, &columns, factors_.data(), &n, pivots_.data(), Y.data(), &ldy,
                   &info);
}

Matrix LU::inverse() const& { return LU(*this).take_inverse(); }
Matrix LU::inverse() && { return take_inverse(); }

Matrix LU::take_inverse() {
  if (!invertible_)
    factors_.setConstant(std::numeric_limits<double>::quiet_NaN());
  else if (factors_.size() > 0) {
    const int n = to_int(factors_.rows());
    double answer = 0;
    int size = -1, info = 0;
    library().dgetri(&n, factors_.data(), &n, pivots_.data(), &answer, &size, &info);
    size = workspace_size("the inverse", n, n, answer);
    const auto work = workspace<double>(size);
    library().dgetri(&n, factors_.data(), &n, pivots_.data(), work.get(), &size, &info);
  }
  invertible_ = finite_ = false;  // the factors are gone
  return std::move(factors_);
}

QR::QR(Matrix A) : packed_(std::move(A)), tau_(std::min(packed_.rows(), packed_.cols())) {
  if (packed_.size() == 0) return;
  const int m = to_int(packed_.rows()), n = to_int(packed_.cols());
  double answer = 0;
  int size = -1, info = 0;
  library().dgeqrf(&m, &n, packed_.data(), &m, tau_.data(), &answer, &size, &info);
  size = workspace_size("the orthogonal factor", m, n, answer);
  const auto work = workspace<double>(size);
  library().dgeqrf(&m, &n, packed_.data(), &m, tau_.data(), work.get(), &size, &info);
}

void QR::apply(char side, char transposed, MatrixRef Y) const {
  const Index order = side == 'L' ? Y.rows() : Y.cols();
  if (tau_.size() == 0) return;
  check(packed_.rows() == order, "orthogonal product", packed_.rows(), packed_.rows(), Y.rows(),
        Y.cols());
  if (Y.size() == 0) return;
  const int m = to_int(Y.rows()), n = to_int(Y.cols()), k = to_int(tau_.size());
  const int lda = leading(packed_.rows()), ldy = leading(Y.outerStride());
  double answer = 0;
  int size = -1, info = 0;
  library().dormqr(&side, &transposed, &m, &n, &k, packed_.data(), &lda, tau_.data(), Y.data(),
                   &ldy, &answer, &size, &info);
  size = workspace_size("the orthogonal product", order, std::max(m, n), answer);
  const auto work = workspace<double>(size);
  library().dormqr(&side, &transposed, &m, &n, &k, packed_.data(), &lda, tau_.data(), Y.data(),
                   &ldy, work.get(), &size, &info);
}

Index eigen_workspace(Index order) { return 1 + order * (6 + 2 * order); }
Index svd_workspace(Index order) { return order * (7 + 4 * order); }

int check_workspace(const char* what, Index order, Index size) {
  if (size > kMostOf32Bits)
    throw std::length_error(
        std::string(what) + " of a matrix of order " + std::to_string(order) +
        " needs a workspace of " + std::to_string(size) +
        " numbers, more than the 32-bit integers of LAPACK count; use fewer features");
  return static_cast<int>(size);
}

SymmetricEigen::SymmetricEigen(Matrix A) : values(A.rows()), vectors(std::move(A)) {
  check_square("eigen-decomposition", vectors.rows(), vectors.cols());
  const Index order = vectors.rows();
  const int least = check_workspace("the eigen-decomposition", order, eigen_workspace(order));
  if (!lower_is_finite(vectors)) return;
  const char job = 'V', lower = 'L';
  const int n = to_int(order), lda = leading(n);
  double answer = 0;
  int size = -1, integer_size = -1, integers_wanted = 0, info = 0;
  library().dsyevd(&job, &lower, &n, vectors.data(), &lda, values.data(), &answer, &size,
                   &integers_wanted, &integer_size, &info);
  size = workspace_size("the eigen-decomposition", order, least, answer);
  integer_size = std::max(integers_wanted, to_int(3 + 5 * order));
  const auto work = workspace<double>(size);
  const auto integers = workspace<int>(integer_size);
  library().dsyevd(&job, &lower, &n, vectors.data(), &lda, values.data(), work.get(), &size,
                   integers.get(), &integer_size, &info);
  succeeded = info == 0 && values.allFinite();
}

SVD::SVD(const ConstMatrixRef& A) : U(A.rows(), A.rows()), values(A.rows()), V() {
  check_square("singular value decomposition", A.rows(), A.cols());
  const Index order = A.rows();
  const int least =
      check_workspace("the singular value decomposition", order, svd_workspace(order));
  Matrix transposed(order, order);  // V^T
  if (!is_finite(A)) return;
  const char job = 'A';
  const int n = to_int(order), ld = leading(n);
  {
    Matrix copy = A;
    double answer = 0;
    int size = -1, info = 0;
    const auto integers = workspace<int>(8 * order);
    library().dgesdd(&job, &n, &n, copy.data(), &ld, values.data(), U.data(), &ld,
                     transposed.data(), &ld, &answer, &size, integers.get(), &info);
    size = workspace_size("the singular value decomposition", order, least, answer);
    const auto work = workspace<double>(size);
    library().dgesdd(&job, &n, &n, copy.data(), &ld, values.data(), U.data(), &ld,
                     transposed.data(), &ld, work.get(), &size, integers.get(), &info);
    succeeded = info == 0 && values.allFinite();
  }
  if (!succeeded) {
    // Divide and conquer can fail on extreme ratios of singular values; QR steps do not.
    Matrix copy = A;
    double answer = 0;
    int size = -1, info = 0;
    library().dgesvd(&job, &job, &n, &n, copy.data(), &ld, values.data(), U.data(), &ld,
                     transposed.data(), &ld, &answer, &size, &info);
    size = workspace_size("the singular value decomposition", order, 5 * order, answer);
    const auto work = workspace<double>(size);
    library().dgesvd(&job, &job, &n, &n, copy.data(), &ld, values.data(), U.data(), &ld,
                     transposed.data(), &ld, work.get(), &size, &info);
    succeeded = info == 0 && values.allFinite();
  }
  V = transposed.transpose();
}

}  // namespace fairsteer::linalg
