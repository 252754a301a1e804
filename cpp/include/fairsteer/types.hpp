// The matrix types of the core. Nobody spells Eigen::Matrix<...> elsewhere.
#pragma once

#include <Eigen/Core>

namespace fairsteer {

using Index = Eigen::Index;
using Matrix = Eigen::MatrixXd;
using Vector = Eigen::VectorXd;
using Array = Eigen::ArrayXXd;

template <class T>
using MatrixOf = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic>;
template <class T>
using VectorOf = Eigen::Matrix<T, Eigen::Dynamic, 1>;

using MatrixView = Eigen::Map<const Matrix>;
using VectorView = Eigen::Map<const Vector>;
using ConstMatrixRef = Eigen::Ref<const Matrix>;
using MatrixRef = Eigen::Ref<Matrix>;
using ConstVectorRef = Eigen::Ref<const Vector>;

/// Rows of a two-dimensional array in whatever layout the caller has: strides count elements and
/// may be negative; nothing is ever written through the view.
template <class T>
struct RowsView {
  const T* data;
  Index rows;
  Index cols;
  Index row_stride;
  Index col_stride;

  const T* row(Index i) const { return data + i * row_stride; }
};

}  // namespace fairsteer
