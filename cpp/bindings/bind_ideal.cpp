#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "arrays.hpp"
#include "bindings.hpp"
#include "fairsteer/check.hpp"
#include "fairsteer/covariances.hpp"
#include "fairsteer/errors.hpp"
#include "fairsteer/ideal.hpp"

namespace fairsteer::bindings {
namespace {

// Every matrix is given up when it has been written.
DoubleArray to_array(std::vector<Matrix>&& matrices) {
  const auto n = static_cast<Index>(matrices.size());
  const Index d = matrices.empty() ? 0 : matrices[0].rows();
  DoubleArray array({n, d, d});
  for (Index i = 0; i < n; ++i) {  // written row by row: NumPy's order
    Eigen::Map<Matrix>(array.mutable_data() + i * d * d, d, d) = matrices[i].transpose();
    matrices[i].resize(0, 0);
  }
  return array;
}

DoubleArray to_array(const std::vector<Vector>& vectors) {
  const auto n = static_cast<Index>(vectors.size());
  const Index d = vectors.empty() ? 0 : vectors[0].size();
  DoubleArray array({n, d});
  for (Index i = 0; i < n; ++i) Eigen::Map<Vector>(array.mutable_data() + i * d, d) = vectors[i];
  return array;
}

// (rows, columns) in row-major order
DoubleArray to_array(const Matrix& matrix) {
  DoubleArray array({matrix.rows(), matrix.cols()});
  Eigen::Map<Matrix>(array.mutable_data(), matrix.cols(), matrix.rows()) = matrix.transpose();
  return array;
}

DoubleArray to_array(const Vector& vector) {
  DoubleArray array(vector.size());
  Eigen::Map<Vector>(array.mutable_data(), vector.size()) = vector;
  return array;
}

py::dict project(const std::string& covariance, const DoubleArray& weights,
                 const DoubleArray& means, const DoubleArray& covariances,
                 const std::string& intervention, Index reference, const std::string& alignment,
                 Index max_iter, double tol, double max_time) {
  if (means.ndim() != 3)
    throw std::invalid_argument("means must have 3 dimensions, not " +
                                std::to_string(means.ndim()));
  const Index K = means.shape(0), G = means.shape(1), d = means.shape(2);
  if (K < 1 || G < 1 || d < 1)
    throw std::invalid_argument("means must have no empty dimension, not shape " +
                                shape_text(means.shape(), 3));
  check_shape("weights", weights, {K, G});
  check_covariances("covariances", covariances, {covariance_model(covariance), K, G, d});
  for (const auto& [name, array] : {std::pair{"weights", &weights}, std::pair{"means", &means},
                                    std::pair{"covariances", &covariances}})
    check_aligned(name, *array);
  Subgroups subgroups{
      covariance_model(covariance), K, G, d, Matrix(K, G), means.data(), covariances.data()};
  for (Index k = 0; k < K; ++k)
    for (Index a = 0; a < G; ++a) subgroups.weight(k, a) = weights.at(k, a);
  check_not_negative("nearest_ideal", "weight", subgroups.weight.data(), K * G);
  if (std::isinf(subgroups.weight.sum())) subgroups.weight /= subgroups.weight.maxCoeff();
  if (subgroups.weight.sum() > 0) subgroups.weight /= subgroups.weight.sum();

  IdealOptions options;
  if (intervention == "affirmative") {
    options.intervention = Intervention::affirmative;
    if (reference < 0 || reference >= G)
      throw std::invalid_argument("reference must lie in [0, " + std::to_string(G) + "), not " +
                                  std::to_string(reference));
    options.reference = reference;
  } else if (intervention != "all_subgroups") {
    throw std::invalid_argument("intervention must be 'all_subgroups' or 'affirmative', not '" +
                                intervention + "'");
  }
  if (alignment == "symmetric")
    options.alignment = Alignment::symmetric;
  else if (alignment != "affine")
    throw std::invalid_argument("alignment must be 'affine' or 'symmetric', not '" + alignment +
                                "'");
  check_at_least("nearest_ideal", "max_iter", max_iter, 1);
  check_not_negative("nearest_ideal", "tol", &tol, 1);
  if (!(max_time >= 0)) refuse("nearest_ideal", "max_time", "not be negative", max_time);
  options.max_iter = max_iter;
  options.tol = tol;

  IdealResult result;
  {
    const py::gil_scoped_release release;  // arrays are read through plain pointers
    const Watch watch(handle_signals, max_time);
    options.watch = &watch;
    result = nearest_ideal(subgroups, options);
  }
  py::dict out;
  out["class_prior"] = to_array(result.class_prior);
  out["group_prior"] = to_array(result.group_prior);
  out["cell_divergence"] = to_array(result.cell_divergence);
  out["kl_divergence"] = result.divergence;
  if (subgroups.model == CovarianceModel::diagonal) {
    std::vector<Vector> scales;
    for (const Matrix& scale : result.linear) scales.emplace_back(scale.col(0));
    out["linear"] = to_array(scales);
  } else {
    out["linear"] = to_array(std::move(result.linear));
  }
  out["offset"] = to_array(result.offset);
  out["canonical_means"] = to_array(Matrix(result.canonical_mean.transpose()));
  if (subgroups.model == CovarianceModel::diagonal)
    out["canonical_covariances"] = to_array(Matrix(result.canonical_covariance[0].transpose()));
  else
    out["canonical_covariances"] = to_array(std::move(result.canonical_covariance));
  out["objective_path"] = DoubleArray(static_cast<py::ssize_t>(result.objective_path.size()),
                                      result.objective_path.data());
  out["n_iter"] = result.n_iter;
  out["converged"] = result.converged;
  out["moves_least"] = result.moves_least;
  return out;
}

py::array_t<Index> floor_spectra(DoubleArray& covariances, const DoubleArray& scale, double floor) {
  if (covariances.ndim() != 3)
    throw std::invalid_argument("covariances must have 3 dimensions, not " +
                                std::to_string(covariances.ndim()));
  const Index n = covariances.shape(0), d = covariances.shape(1);
  check_shape("covariances", covariances, {n, d, d});
  check_shape("scale", scale, {d});
  check_aligned("covariances", covariances);
  check_aligned("scale", scale);
  check_at_least("floor_spectra", "the order of a covariance", d, 1);
  check_finite("floor_spectra", "covariances", covariances.data(), n * d * d);
  check_finite("floor_spectra", "scale", scale.data(), d);
  for (Index j = 0; j < d; ++j)
    if (!(scale.data()[j] > 0)) refuse("floor_spectra", "scale", "be positive", scale.data()[j]);
  check_not_negative("floor_spectra", "floor", &floor, 1);
  py::array_t<Index> ranks(n);
  double* data = covariances.mutable_data();
  Index* rank = ranks.mutable_data();
  const VectorView scales(scale.data(), d);
  {
    const py::gil_scoped_release release;
    const Watch watch(handle_signals);
    for (Index i = 0; i < n && !watch.stop(); ++i)
      rank[i] = floor_spectrum(Eigen::Map<Matrix>(data + i * d * d, d, d), scales, floor);
  }
  return ranks;
}

DoubleArray transport(const DoubleArray& source, const DoubleArray& target) {
  if (source.ndim() != 2)
    throw std::invalid_argument("source must have 2 dimensions, not " +
                                std::to_string(source.ndim()));
  const Index d = source.shape(0);
  check_shape("source", source, {d, d});
  check_shape("target", target, {d, d});
  check_aligned("source", source);
  check_aligned("target", target);
  check_at_least("transport_map", "the order of source", d, 1);
  check_finite("transport_map", "source", source.data(), d * d);
  check_finite("transport_map", "target", target.data(), d * d);
  Matrix map;
  {
    const py::gil_scoped_release release;
    map = transport_map(MatrixView(source.data(), d, d), MatrixView(target.data(), d, d));
    if (!map.allFinite()) throw NumericalError("a transport map is not finite", -1, -1);
  }
  return to_array(map);
}

DoubleArray inverses(const DoubleArray& matrices, Index n_threads) {
  if (matrices.ndim() != 3)
    throw std::invalid_argument("matrices must have 3 dimensions, not " +
                                std::to_string(matrices.ndim()));
  const Index n = matrices.shape(0), d = matrices.shape(1);
  check_shape("matrices", matrices, {n, d, d});
  check_aligned("matrices", matrices);
  DoubleArray out({n, d, d});
  double* data = out.mutable_data();
  const double* from = matrices.data();
  const py::gil_scoped_release release;
  std::copy_n(from, n * d * d, data);
  invert(data, n, d, n_threads);
  for (Index i = 0; i < n; ++i)
    if (!MatrixView(data + i * d * d, d, d).allFinite())
      throw NumericalError("the inverse of a matrix is not finite", -1, i);
  return out;
}

DoubleArray mapped_covariances(const DoubleArray& maps, const DoubleArray& covariances,
                               Index n_threads) {
  if (maps.ndim() != 3 || covariances.ndim() != 3)
    throw std::invalid_argument("maps and covariances must have 3 dimensions, not " +
                                std::to_string(maps.ndim()) + " and " +
                                std::to_string(covariances.ndim()));
  const Index G = maps.shape(0), n = covariances.shape(0), d = maps.shape(1);
  check_shape("maps", maps, {G, d, d});
  check_shape("covariances", covariances, {n, d, d});
  check_aligned("maps", maps);
  check_aligned("covariances", covariances);
  DoubleArray out({n, G, d, d});
  double* data = out.mutable_data();
  const double *B = maps.data(), *C = covariances.data();
  const py::gil_scoped_release release;
  map_covariances(B, G, C, n, d, data, n_threads);
  for (Index i = 0; i < n * G; ++i)
    if (!MatrixView(data + i * d * d, d, d).allFinite())
      throw NumericalError("a covariance after its map is not finite", i / G, i % G);
  return out;
}

}  // namespace

void bind_ideal(py::module_& m) {
  static py::exception<NumericalError> error(
      m, "NumericalError", py::module_::import("numpy.linalg").attr("LinAlgError"));
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const NumericalError& e) {
      PyErr_SetObject(error.ptr(), py::make_tuple(e.what(), e.class_index, e.group_index).ptr());
    }
  });
  m.def(
      "nearest_ideal", &project, py::arg("covariance"), py::arg("weights").noconvert(),
      py::arg("means").noconvert(), py::arg("covariances").noconvert(), py::arg("intervention"),
      py::arg("reference"), py::arg("alignment"), py::arg("max_iter"), py::arg("tol"),
      py::arg("max_time") = std::numeric_limits<double>::infinity(),
      "The nearest ideal distribution of K x G Gaussians; covariances must be positive definite.");
  m.def(
      "floor_spectra", &floor_spectra, py::arg("covariances").noconvert(),
      py::arg("scale").noconvert(), py::arg("floor"),
      "Lift eigenvalues below `floor` (after division by `scale`), in place; the effective ranks.");
  m.def("invert", &inverses, py::arg("matrices").noconvert(), py::arg("n_threads") = 1,
        "The inverse of every matrix; NumericalError's group is the number of a singular one.");
  m.def("map_covariances", &mapped_covariances, py::arg("maps").noconvert(),
        py::arg("covariances").noconvert(), py::arg("n_threads") = 1,
        "out[k, a] = maps[a] @ covariances[k] @ maps[a].T, symmetric to the last digit.");
  m.def("transport_map", &transport, py::arg("source").noconvert(), py::arg("target").noconvert(),
        "The symmetric W with W source W = target.");
}

}  // namespace fairsteer::bindings
