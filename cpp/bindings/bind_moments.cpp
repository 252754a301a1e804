#include <pybind11/stl.h>

#include <optional>

#include "arrays.hpp"
#include "bindings.hpp"
#include "fairsteer/moments.hpp"

namespace fairsteer::bindings {
namespace {

CovarianceModel parse_model(const std::string& name) {
  if (name == "tied") return CovarianceModel::tied;
  if (name == "full") return CovarianceModel::full;
  if (name == "diagonal") return CovarianceModel::diagonal;
  throw std::invalid_argument("covariance must be 'tied', 'full' or 'diagonal', not '" + name +
                              "'");
}

// Keeps the arrays of one accumulator alive and checked, and lends them to the core.
struct SumsArrays {
  SumsArrays(const std::string& covariance, const py::tuple& arrays) {
    if (arrays.size() != 6)
      throw std::invalid_argument("sums must hold 6 arrays, not " + std::to_string(arrays.size()));
    for (std::size_t i = 0; i < 6; ++i) {
      if (!py::isinstance<DoubleArray>(arrays[i]))
        throw py::type_error("sums[" + std::to_string(i) +
                             "] must be a C-contiguous float64 array");
      array[i] = py::reinterpret_borrow<DoubleArray>(arrays[i]);
      if (!array[i].writeable())
        throw std::invalid_argument("sums[" + std::to_string(i) + "] is read-only");
    }
    if (array[2].ndim() != 3)
      throw std::invalid_argument("means must have 3 dimensions, not " +
                                  std::to_string(array[2].ndim()));
    sums.model = parse_model(covariance);
    sums.n_classes = array[2].shape(0);
    sums.n_groups = array[2].shape(1);
    sums.n_features = array[2].shape(2);
    const Index K = sums.n_classes, G = sums.n_groups, d = sums.n_features;
    if (K < 1 || G < 1 || d < 1)
      throw std::invalid_argument("means must have no empty dimension, not shape " +
                                  shape_text(array[2].shape(), 3));
    check_shape("weights", array[0], {K, G});
    check_shape("weight squares", array[1], {K, G});
    check_shape("cubics", array[4], {K, G, d});
    switch (sums.model) {
      case CovarianceModel::tied:
        check_shape("scatters", array[3], {G, d, d});
        check_shape("quartics", array[5], {K, G});
        break;
      case CovarianceModel::full:
        check_shape("scatters", array[3], {K, G, d, d});
        check_shape("quartics", array[5], {K, G});
        break;
      case CovarianceModel::diagonal:
        check_shape("scatters", array[3], {K, G, d});
        check_shape("quartics", array[5], {K, G, d});
        break;
    }
    sums.weight = array[0].mutable_data();
    sums.weight_square = array[1].mutable_data();
    sums.mean = array[2].mutable_data();
    sums.scatter = array[3].mutable_data();
    sums.cubic = array[4].mutable_data();
    sums.quartic = array[5].mutable_data();
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
    if (rows.cols != into.sums.n_features)
      throw std::invalid_argument("X must have " + std::to_string(into.sums.n_features) +
                                  " columns, not " + std::to_string(rows.cols));
    check_shape("class codes", classes, {rows.rows});
    check_shape("group codes", groups, {rows.rows});
    if (weights) check_shape("weights", *weights, {rows.rows});
    const std::int64_t* k = classes.data();
    const std::int64_t* a = groups.data();
    const double* weight = weights ? weights->data() : nullptr;
    const py::gil_scoped_release release;  // plain buffers from here on
    update_moments<T>(into.sums, rows, k, a, weight, n_threads);
  });
}

void merge(const std::string& covariance, const py::tuple& arrays, const py::tuple& other_arrays,
           const CodeArray& cells) {
  const SumsArrays into(covariance, arrays);
  const SumsArrays from(covariance, other_arrays);
  if (into.sums.n_features != from.sums.n_features)
    throw std::invalid_argument("moments of " + std::to_string(from.sums.n_features) +
                                " features cannot be merged into " +
                                std::to_string(into.sums.n_features));
  check_shape("cells", cells, {from.sums.n_cells()});
  for (Index c = 0; c < from.sums.n_cells(); ++c) {
    const std::int64_t cell = cells.data()[c];
    if (cell < 0 || cell >= into.sums.n_cells())
      throw std::invalid_argument("cells must lie in [0, " + std::to_string(into.sums.n_cells()) +
                                  "), not " + std::to_string(cell));
  }
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
