// The arrays that cross the border: exact dtype, C order, no conversion, every shape checked here,
// because the core indexes by them.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "fairsteer/types.hpp"

namespace fairsteer::bindings {

namespace py = pybind11;

using DoubleArray = py::array_t<double, py::array::c_style>;
using CodeArray = py::array_t<std::int64_t, py::array::c_style>;

inline std::string shape_text(const Index* shape, Index ndim) {
  std::string text = "(";
  for (Index i = 0; i < ndim; ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + (ndim == 1 ? ",)" : ")");
}

/// Throws std::invalid_argument unless `array` has exactly this shape.
inline void check_shape(const char* name, const py::array& array,
                        std::initializer_list<Index> shape) {
  bool same = array.ndim() == static_cast<Index>(shape.size());
  for (Index i = 0; same && i < array.ndim(); ++i) same = array.shape(i) == shape.begin()[i];
  if (!same)
    throw std::invalid_argument(std::string(name) + " must have shape " +
                                shape_text(shape.begin(), static_cast<Index>(shape.size())) +
                                ", not " + shape_text(array.shape(), array.ndim()));
}

/// A view of the rows of a two-dimensional float array in any layout.
template <class T>
RowsView<T> rows_view(const py::array& array) {
  const auto size = static_cast<Index>(sizeof(T));
  if (array.strides(0) % size != 0 || array.strides(1) % size != 0)
    throw std::invalid_argument("X must have strides that are multiples of its item size");
  return {static_cast<const T*>(array.data()), array.shape(0), array.shape(1),
          array.strides(0) / size, array.strides(1) / size};
}

/// For a Watch: runs the handlers of pending signals and throws what they raise.
inline void handle_signals() {
  const py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

/// Calls `function` with a value of the row type of `array`: Eigen::half, float or double.
template <class Function>
void dispatch_rows(const py::array& array, Function function) {
  if (array.ndim() != 2)
    throw std::invalid_argument("X must have 2 dimensions, not " + std::to_string(array.ndim()));
  if (array.dtype().kind() == 'f' && array.dtype().byteorder() != '>') {
    switch (array.itemsize()) {
      case 2:
        return function(Eigen::half());
      case 4:
        return function(float());
      case 8:
        return function(double());
      default:
        break;
    }
  }
  throw py::type_error("X must be float16, float32 or float64 in native byte order, not " +
                       std::string(py::str(array.dtype())));
}

}  // namespace fairsteer::bindings
