#include <pybind11/stl.h>

#include <optional>
#include <vector>

#include "arrays.hpp"
#include "bindings.hpp"
#include "fairsteer/interleave.hpp"
#include "fairsteer/moments.hpp"

namespace fairsteer::bindings {
namespace {

// Keeps the arrays of one accumulator alive and checked, and lends them to the core.
struct SumsArrays {
  SumsArrays(const std::string& covariance, const py::tuple& arrays) {
    if (arrays.size() != 6)
      throw std::invalid_argument("sums must hold 6 arrays, not " + std::to_string(arrays.size()));
    for (std::size_t i = 0; i < 6; ++i) {
      const std::string name = "sums[" + std::to_string(i) + "]";
      if (!py::isinstance<DoubleArray>(arrays[i]))
        throw py::type_error(name + " must be a C-contiguous float64 array");
      array[i] = py::reinterpret_borrow<DoubleArray>(arrays[i]);
      check_aligned(name.c_str(), array[i]);
      if (!array[i].writeable()) throw std::invalid_argument(name + " is read-only");
      for (std::size_t j = 0; j < i; ++j) check_apart(name.c_str(), array[i], "another", array[j]);
    }
    if (array[2].ndim() != 3)
      throw std::invalid_argument("means must have 3 dimensions, not " +
                                  std::to_string(array[2].ndim()));
    const Index K = array[2].shape(0), G = array[2].shape(1), d = array[2].shape(2);
    if (K < 1 || G < 1 || d < 1)
      throw std::invalid_argument("means must have no empty dimension, not shape " +
                                  shape_text(array[2].shape(), 3));
    const MomentShape shape{covariance_model(covariance), K, G, d};
    check_shape("weights", array[0], {K, G});
    check_shape("weight squares", array[1], {K, G});
    check_covariances("scatters", array[3], shape);
    check_shape("cubics", array[4], {K, G, d});
    if (shape.model == CovarianceModel::diagonal)
      check_shape("quartics", array[5], {K, G, d});
    else
      check_shape("quartics", array[5], {K, G});
    sums = {shape,
            array[0].mutable_data(),
            array[1].mutable_data(),
            array[2].mutable_data(),
            array[3].mutable_data(),
            array[4].mutable_data(),
            array[5].mutable_data()};
  }

  DoubleArray array[6];
  MomentSums sums{};
};

void update(const std::string& covariance, const py::tuple& arrays, const py::array& X,
            const CodeArray& classes, const CodeArray& groups,
            const std::optional<DoubleArray>& weights, Index n_threads) {
  const SumsArrays into(covariance, arrays);
  dispatch_rows(X, [&](auto type, const py::array& readable) {
    using T = decltype(type);
    const RowsView<T> rows = rows_view<T>(readable);
    check_shape("class codes", classes, {rows.rows});
    check_shape("group codes", groups, {rows.rows});
    check_aligned("class codes", classes);
    check_aligned("group codes", groups);
    if (weights) {
      check_shape("weights", *weights, {rows.rows});
      check_aligned("weights", *weights);
    }
    for (const DoubleArray& array : into.array) check_apart("sums", array, "X", readable);
    const std::int64_t* k = classes.data();
    const std::int64_t* a = groups.data();
    const double* weight = weights ? weights->data() : nullptr;
    const py::gil_scoped_release release;  // plain buffers from here on
    const Watch watch(handle_signals);
    update_moments<T>(into.sums, rows, k, a, weight, n_threads, &watch);
  });
}

void merge(const std::string& covariance, const py::tuple& arrays, const py::tuple& other_arrays,
           const CodeArray& cells) {
  const SumsArrays into(covariance, arrays);
  const SumsArrays from(covariance, other_arrays);
  check_shape("cells", cells, {from.sums.n_cells()});
  check_aligned("cells", cells);
  const std::int64_t* cell = cells.data();
  const py::gil_scoped_release release;
  merge_moments(into.sums, from.sums, cell);
}

template <class T>
void lay_out_numbers(const py::sequence& columns, py::array& out) {
  using Column = py::array_t<T, py::array::c_style>;
  const Index n = out.shape(0), d = out.shape(1);
  std::vector<Column> held;
  std::vector<const T*> data;
  for (const py::handle column : columns) {
    if (!py::isinstance<Column>(column))
      throw py::type_error("columns must be C-contiguous and have the dtype of out, " +
                           std::string(py::str(out.dtype())));
    held.push_back(py::reinterpret_borrow<Column>(column));
    check_shape("columns", held.back(), {n});
    check_aligned("columns", held.back());
    check_apart("out", out, "a column", held.back());
    data.push_back(held.back().data());
  }
  if (static_cast<Index>(data.size()) != d)
    throw std::invalid_argument("out must have a column for each of " +
                                std::to_string(data.size()) + ", not " + std::to_string(d));
  T* target = static_cast<T*>(out.mutable_data());
  const py::gil_scoped_release release;
  interleave<T>(data.data(), d, n, target, d);
}

void lay_out(const py::sequence& columns, py::array& out) {
  if (out.ndim() != 2)
    throw std::invalid_argument("out must have 2 dimensions, not " + std::to_string(out.ndim()));
  if (!(out.flags() & py::array::c_style)) throw py::type_error("out must be C-contiguous");
  if (!out.writeable()) throw std::invalid_argument("out is read-only");
  check_aligned("out", out);
  if (py::isinstance<py::array_t<float>>(out)) return lay_out_numbers<float>(columns, out);
  if (py::isinstance<py::array_t<double>>(out)) return lay_out_numbers<double>(columns, out);
  throw py::type_error("out must be float32 or float64 in native byte order, not " +
                       std::string(py::str(out.dtype())));
}

}  // namespace

void bind_moments(py::module_& m) {
  m.def("lay_out", &lay_out, py::arg("columns"), py::arg("out").noconvert(),
        "out[i, j] = columns[j][i]: the columns of a table row by row.");
  m.def("update_moments", &update, py::arg("covariance"), py::arg("sums"), py::arg("X"),
        py::arg("classes").noconvert(), py::arg("groups").noconvert(),
        py::arg("weights").noconvert() = py::none(), py::arg("n_threads") = 1,
        "Add rows to (weights, weight_squares, means, scatters, cubics, quartics), in place.");
  m.def("merge_moments", &merge, py::arg("covariance"), py::arg("sums"), py::arg("other"),
        py::arg("cells").noconvert(), "Add the sums of `other`, whose cell c is cells[c] here.");
}

}  // namespace fairsteer::bindings
