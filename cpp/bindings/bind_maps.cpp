#include <type_traits>

#include "arrays.hpp"
#include "bindings.hpp"
#include "fairsteer/maps.hpp"

namespace fairsteer::bindings {
namespace {

void apply(const py::array& X, const CodeArray& codes, const py::array& A, const py::array& b,
           py::array& out, Index n_threads) {
  if (A.ndim() != 3)
    throw std::invalid_argument("A must have 3 dimensions, not " + std::to_string(A.ndim()));
  const Index G = A.shape(0), d = A.shape(1);
  check_shape("A", A, {G, d, d});
  check_shape("b", b, {G, d});
  dispatch_rows(X, [&](auto type) {
    using T = decltype(type);
    using S = std::conditional_t<std::is_same_v<T, double>, double, float>;
    using MapArray = py::array_t<S, py::array::c_style>;
    const RowsView<T> rows = rows_view<T>(X);
    if (rows.cols != d || d == 0)
      throw std::invalid_argument("X must have " + std::to_string(d) + " columns, not " +
                                  std::to_string(rows.cols));
    check_shape("codes", codes, {rows.rows});
    check_shape("out", out, {rows.rows, d});
    if (!out.dtype().is(X.dtype()) || !(out.flags() & py::array::c_style))
      throw py::type_error("out must be C-contiguous and have the dtype of X");
    if (!py::isinstance<MapArray>(A) || !py::isinstance<MapArray>(b))
      throw py::type_error("A and b must be C-contiguous and of the precision of X, " +
                           std::string(py::str(py::dtype::of<S>())));
    T* target = static_cast<T*>(out.mutable_data());
    const std::int64_t* code = codes.data();
    const S* linear = static_cast<const S*>(A.data());
    const S* offset = static_cast<const S*>(b.data());
    const py::gil_scoped_release release;  // plain buffers from here on
    apply_maps<T>(rows, code, G, linear, offset, target, n_threads);
  });
}

}  // namespace

void bind_maps(py::module_& m) {
  m.def("apply_maps", &apply, py::arg("X"), py::arg("codes").noconvert(), py::arg("A").noconvert(),
        py::arg("b").noconvert(), py::arg("out").noconvert(), py::arg("n_threads") = 1,
        "out[i] = A[codes[i]] @ X[i] + b[codes[i]]; rows with a negative code are not written.");
}

}  // namespace fairsteer::bindings
