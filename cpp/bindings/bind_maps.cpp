#include <type_traits>

#include "arrays.hpp"
#include "bindings.hpp"
#include "fairsteer/maps.hpp"

namespace fairsteer::bindings {
namespace {

// Which maps the arrays hold, by their dimensions.
MapKind kind_of(const py::object& A) {
  if (A.is_none()) return MapKind::translation;
  const Index ndim = py::cast<py::array>(A).ndim();
  if (ndim == 2) return MapKind::diagonal;
  if (ndim == 3) return MapKind::dense;
  throw std::invalid_argument("apply_maps: A must have 2 or 3 dimensions, not " +
                              std::to_string(ndim));
}

template <class S>
const S* numbers(const char* name, const py::object& object, std::initializer_list<Index> shape) {
  using MapArray = py::array_t<S, py::array::c_style>;
  if (!py::isinstance<MapArray>(object))
    throw py::type_error(std::string(name) + " must be C-contiguous and of the precision of X, " +
                         std::string(py::str(py::dtype::of<S>())));
  const auto array = py::reinterpret_borrow<py::array>(object);
  check_shape(name, array, shape);
  check_aligned(name, array);
  return static_cast<const S*>(array.data());
}

void apply(const py::array& X, const CodeArray& codes, const py::object& A, const py::object& c,
           const py::object& b, py::array& out, Index n_threads) {
  const MapKind kind = kind_of(A);
  if (!py::isinstance<py::array>(b) || py::cast<py::array>(b).ndim() != 2)
    throw std::invalid_argument("apply_maps: b must be an array with 2 dimensions");
  const Index G = py::cast<py::array>(b).shape(0), d = py::cast<py::array>(b).shape(1);
  check_aligned("codes", codes);
  check_aligned("out", out);
  dispatch_rows(X, [&](auto type, const py::array& readable) {
    using T = decltype(type);
    using S = MapScalar<T>;
    const RowsView<T> rows = rows_view<T>(readable);
    MapsView<S> maps{kind, G, d, nullptr, nullptr, numbers<S>("b", b, {G, d})};
    if (kind == MapKind::dense) maps.linear = numbers<S>("A", A, {G, d, d});
    if (kind == MapKind::diagonal) maps.linear = numbers<S>("A", A, {G, d});
    if (kind != MapKind::translation) maps.centre = numbers<S>("c", c, {G, d});
    check_shape("codes", codes, {rows.rows});
    check_shape("out", out, {rows.rows, rows.cols});
    if (!out.dtype().equal(readable.dtype()) || !(out.flags() & py::array::c_style))
      throw py::type_error("out must be C-contiguous and have the dtype of X");
    T* target = static_cast<T*>(out.mutable_data());
    check_apart("out", out, "X", readable);
    const std::int64_t* code = codes.data();
    const py::gil_scoped_release release;  // plain buffers from here on
    const Watch watch(handle_signals);
    apply_maps<T>(rows, code, maps, target, n_threads, &watch);
  });
}

}  // namespace

void bind_maps(py::module_& m) {
  m.def("apply_maps", &apply, py::arg("X"), py::arg("codes").noconvert(), py::arg("A"),
        py::arg("c"), py::arg("b"), py::arg("out").noconvert(), py::arg("n_threads") = 1,
        "out[i] = A[codes[i]] (X[i] - c[codes[i]]) + b[codes[i]], A dense, diagonal or (with c) "
        "None; rows with a "
        "negative code are not written.");
}

}  // namespace fairsteer::bindings
