// A private submodule that lets a test compare each routine bound in scipy_blas.cpp with
// scipy.linalg.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <Eigen/Dense>
#include <string>
#include <utility>

#include "bindings.hpp"

namespace py = pybind11;

namespace fairsteer::bindings {
namespace {

template <class T>
using Array = py::array_t<T, py::array::f_style>;
template <class T>
using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic>;
template <class T>
using Vector = Eigen::Matrix<T, Eigen::Dynamic, 1>;

template <class T>
Matrix<T> read(const Array<T>& array) {
  const auto cols = array.ndim() == 2 ? array.shape(1) : 1;
  return Eigen::Map<const Matrix<T>>(array.data(), array.shape(0), cols);
}

template <class T, class Expression>
Array<T> write(const Expression& expression) {
  Array<T> array({expression.rows(), expression.cols()});
  Eigen::Map<Matrix<T>>(array.mutable_data(), expression.rows(), expression.cols()) = expression;
  return array;
}

template <class T>
void bind_for(py::module_& m) {
  // A wrong order or type is an error here, never a copy.
  const auto first = py::arg("a").noconvert();
  const auto second = py::arg("b").noconvert();

  m.def(
      "gemm",
      [](const Array<T>& a, const Array<T>& b) {
        return write<T>(Matrix<T>(read<T>(a) * read<T>(b)));
      },
      first, second);
  m.def(
      "gemv",
      [](const Array<T>& a, const Array<T>& b) {
        const Matrix<T> matrix = read<T>(a);
        const Vector<T> vector = read<T>(b).col(0);
        return write<T>(Vector<T>(matrix * vector));
      },
      first, second);
  m.def(
      "symm",
      [](const Array<T>& a, const Array<T>& b) {
        const Matrix<T> matrix = read<T>(a);
        return write<T>(Matrix<T>(matrix.template selfadjointView<Eigen::Lower>() * read<T>(b)));
      },
      first, second);
  m.def(
      "symv",
      [](const Array<T>& a, const Array<T>& b) {
        const Matrix<T> matrix = read<T>(a);
        const Vector<T> vector = read<T>(b).col(0);
        return write<T>(Vector<T>(matrix.template selfadjointView<Eigen::Lower>() * vector));
      },
      first, second);
  m.def(
      "syrk",
      [](const Array<T>& a) {
        const Matrix<T> matrix = read<T>(a);
        Matrix<T> result = Matrix<T>::Zero(matrix.rows(), matrix.rows());
        result.template selfadjointView<Eigen::Lower>().rankUpdate(matrix);
        return write<T>(result);
      },
      first);
  m.def(
      "trmm",
      [](const Array<T>& a, const Array<T>& b) {
        const Matrix<T> matrix = read<T>(a);
        return write<T>(Matrix<T>(matrix.template triangularView<Eigen::Lower>() * read<T>(b)));
      },
      first, second);
  m.def(
      "trmv",
      [](const Array<T>& a, const Array<T>& b) {
        const Matrix<T> matrix = read<T>(a);
        const Vector<T> vector = read<T>(b).col(0);
        return write<T>(Vector<T>(matrix.template triangularView<Eigen::Lower>() * vector));
      },
      first, second);
  m.def(
      "trsm",
      [](const Array<T>& a, const Array<T>& b) {
        const Matrix<T> matrix = read<T>(a);
        return write<T>(
            Matrix<T>(matrix.template triangularView<Eigen::Lower>().solve(read<T>(b))));
      },
      first, second);
  m.def(
      "cholesky",
      [](const Array<T>& a) {
        const Eigen::LLT<Matrix<T>> factor(read<T>(a));
        return std::pair(factor.info() == Eigen::Success, write<T>(Matrix<T>(factor.matrixL())));
      },
      first);
  m.def(
      "eigh",
      [](const Array<T>& a) {
        const Eigen::SelfAdjointEigenSolver<Matrix<T>> solver(read<T>(a));
        const bool success = solver.info() == Eigen::Success;
        return py::make_tuple(success, write<T>(solver.eigenvalues()),
                              write<T>(solver.eigenvectors()));
      },
      first);
  m.def(
      "svd",
      [](const Array<T>& a) {
        const Eigen::JacobiSVD<Matrix<T>> svd(read<T>(a),
                                              Eigen::ComputeThinU | Eigen::ComputeThinV);
        return py::make_tuple(write<T>(svd.matrixU()), write<T>(svd.singularValues()),
                              write<T>(svd.matrixV()));
      },
      first);
  m.def(
      "divide_and_conquer_svd",
      [](const Array<T>& a) {
        const Eigen::BDCSVD<Matrix<T>> svd(read<T>(a), Eigen::ComputeThinU | Eigen::ComputeThinV);
        return py::make_tuple(write<T>(svd.matrixU()), write<T>(svd.singularValues()),
                              write<T>(svd.matrixV()));
      },
      first);
  m.def(
      "lu_solve",
      [](const Array<T>& a, const Array<T>& b) {
        return write<T>(Matrix<T>(Eigen::PartialPivLU<Matrix<T>>(read<T>(a)).solve(read<T>(b))));
      },
      first, second);
  m.def(
      "row_major_lu",  // what the LAPACK layer must refuse
      [](const Array<T>& a) {
        using RowMajor = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
        return write<T>(Matrix<T>(Eigen::PartialPivLU<RowMajor>(read<T>(a)).matrixLU()));
      },
      first);
  m.def(
      "qr_solve",
      [](const Array<T>& a, const Array<T>& b) {
        return write<T>(Matrix<T>(Eigen::HouseholderQR<Matrix<T>>(read<T>(a)).solve(read<T>(b))));
      },
      first, second);
  m.def(
      "pivoted_qr_solve",
      [](const Array<T>& a, const Array<T>& b) {
        return write<T>(
            Matrix<T>(Eigen::ColPivHouseholderQR<Matrix<T>>(read<T>(a)).solve(read<T>(b))));
      },
      first, second);
}

}  // namespace

void bind_blas(py::module_& m) {
  py::module_ blas = m.def_submodule(
      "_blas",
      "Eigen's products and solvers, for the tests. Arrays: Fortran order, float32 or float64.");
  bind_for<float>(blas);
  bind_for<double>(blas);
}

}  // namespace fairsteer::bindings
