#include <pybind11/stl.h>

#include <optional>

#include "arrays.hpp"
#include "bindings.hpp"
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

}  // namespace

void bind_moments(py::module_& m) {
  m.def("update_moments", &update, py::arg("covariance"), py::arg("sums"), py::arg("X"),
        py::arg("classes").noconvert(), py::arg("groups").noconvert(),
        py::arg("weights").noconvert() = py::none(), py::arg("n_threads") = 1,
        "Add rows to (weights, weight_squares, means, scatters, cubics, quartics), in place.");
  m.def("merge_moments", &merge, py::arg("covariance"), py::arg("sums"), py::arg("other"),
        py::arg("cells").noconvert(), "Add the sums of `other`, whose cell c is cells[c] here.");
}

}  // namespace fairsteer::bindings
