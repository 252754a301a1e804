// The arrays that cross the border: exact dtype, C order, no conversion, every shape checked here,
// because the core indexes by them.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <utility>

#include "fairsteer/moments.hpp"
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

/// The same for the covariances, or the scatters, of a model.
inline void check_covariances(const char* name, const py::array& array, const MomentShape& shape) {
  const Index K = shape.n_classes, G = shape.n_groups, d = shape.n_features;
  switch (shape.model) {
    case CovarianceModel::tied:
      return check_shape(name, array, {G, d, d});
    case CovarianceModel::full:
      return check_shape(name, array, {K, G, d, d});
    case CovarianceModel::diagonal:
      return check_shape(name, array, {K, G, d});
  }
}

/// A view of the rows of a two-dimensional float array in any layout.
template <class T>
RowsView<T> rows_view(const py::array& array) {
  const auto size = static_cast<Index>(sizeof(T));
  return {static_cast<const T*>(array.data()), array.shape(0), array.shape(1),
          array.strides(0) / size, array.strides(1) / size};
}

/// For a Watch: runs the handlers of pending signals and throws what they raise.
inline void handle_signals() {
  const py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

/// Throws std::invalid_argument for an array whose numbers lie at odd addresses.
inline void check_aligned(const char* name, const py::array& array) {
  if (!(array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_))
    throw std::invalid_argument(std::string(name) + " must be aligned");
}

/// First byte of an array, and the one after its last.
inline std::pair<const char*, const char*> byte_bounds(const py::array& array) {
  const char* low = static_cast<const char*>(array.data());
  const char* high = low + array.itemsize();
  for (Index i = 0; i < array.ndim(); ++i) {
    if (array.shape(i) == 0) return {low, low};
    const Index reach = (array.shape(i) - 1) * array.strides(i);
    (reach < 0 ? low : high) += reach;
  }
  return {low, high};
}

/// Throws std::invalid_argument for arrays whose memory overlaps.
inline void check_apart(const char* name, const py::array& array, const char* other_name,
                        const py::array& other) {
  const auto [low, high] = byte_bounds(array);
  const auto [other_low, other_high] = byte_bounds(other);
  if (std::max(low, other_low) < std::min(high, other_high))
    throw std::invalid_argument(std::string(name) + " must not share memory with " + other_name);
}

inline const bool kLittleEndian = [] {
  const std::uint16_t one = 1;
  unsigned char first = 0;
  std::memcpy(&first, &one, 1);
  return first == 1;
}();

/// Calls `function` with a value of the row type of `array`, Eigen::half, float or double, and with
/// the array: a copy where its numbers lie at odd addresses or strides, as in fields of records.
template <class Function>
void dispatch_rows(const py::array& array, Function function) {
  if (array.ndim() != 2)
    throw std::invalid_argument("X must have 2 dimensions, not " + std::to_string(array.ndim()));
  const py::dtype type = array.dtype();
  const char order = type.byteorder();
  const bool native = order == '=' || order == (kLittleEndian ? '<' : '>');
  if (type.kind() == 'f' && native && array.itemsize() <= 8) {
    py::array readable = array;
    bool regular = (array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0;
    for (Index i = 0; i < 2; ++i) regular = regular && array.strides(i) % array.itemsize() == 0;
    if (!regular) readable = array.attr("copy")("C");
    switch (array.itemsize()) {
      case 2:
        return function(Eigen::half(), readable);
      case 4:
        return function(float(), readable);
      case 8:
        return function(double(), readable);
      default:
        break;
    }
  }
  throw py::type_error("X must be float16, float32 or float64 in native byte order, not " +
                       std::string(py::str(type)));
}

}  // namespace fairsteer::bindings
