#include <pybind11/stl.h>

#include <optional>

#include "arrays.hpp"
#include "bindings.hpp"
#include "fairsteer/check.hpp"
#include "fairsteer/posterior.hpp"

namespace fairsteer::bindings {
namespace {

DoubleArray to_array(const Vector& vector) {
  DoubleArray array(vector.size());
  Eigen::Map<Vector>(array.mutable_data(), vector.size()) = vector;
  return array;
}

// The columns of the matrix, one after the other.
DoubleArray columns(const Matrix& matrix) {
  DoubleArray array({matrix.cols(), matrix.rows()});
  Eigen::Map<Matrix>(array.mutable_data(), matrix.rows(), matrix.cols()) = matrix;
  return array;
}

PosteriorOptions options_of(const char* function, bool free_shares, Index max_iter, double tol) {
  check_at_least(function, "max_iter", max_iter, 1);
  if (!(tol > 0)) refuse(function, "tol", "be positive", tol);
  PosteriorOptions options;
  options.free_shares = free_shares;
  options.max_iter = max_iter;
  options.tol = tol;
  return options;
}

template <class Solve>
PosteriorResult interruptible(PosteriorOptions& options, Solve solve) {
  const py::gil_scoped_release release;
  const Watch watch(handle_signals);
  options.watch = &watch;
  return solve();
}

py::dict to_dict(const PosteriorResult& result) {
  py::dict out;
  out["shares"] = to_array(result.weight);
  out["group_divergence"] = to_array(result.group_divergence);
  out["kl_divergence"] = result.divergence;
  out["gap"] = result.gap;
  out["target_law"] = to_array(result.target_law);
  out["log_ratio"] = columns(result.log_ratio);
  out["n_iter"] = result.n_iter;
  out["converged"] = result.converged;
  return out;
}

py::dict solve(const DoubleArray& source, const DoubleArray& target, const DoubleArray& laws,
               const DoubleArray& shares, const std::string& intervention, Index reference,
               bool free_shares, Index max_iter, double tol) {
  if (laws.ndim() != 2)
    throw std::invalid_argument("laws must have 2 dimensions, not " + std::to_string(laws.ndim()));
  const Index G = laws.shape(0), S = laws.shape(1);
  check_shape("source", source, {S});
  if (target.ndim() != 1)
    throw std::invalid_argument("target must have 1 dimension, not " +
                                std::to_string(target.ndim()));
  const Index T = target.shape(0);
  check_shape("shares", shares, {G});
  for (const auto& [name, array] : {std::pair{"source", &source}, std::pair{"target", &target},
                                    std::pair{"laws", &laws}, std::pair{"shares", &shares}})
    check_aligned(name, *array);
  PosteriorLaws given{VectorView(source.data(), S), VectorView(target.data(), T),
                      MatrixView(laws.data(), S, G), VectorView(shares.data(), G)};
  const char* function = "nearest_ideal_posterior";
  PosteriorOptions options = options_of(function, free_shares, max_iter, tol);
  if (intervention == "affirmative") {
    options.intervention = Intervention::affirmative;
    options.reference = reference;
  } else if (intervention != "all_subgroups") {
    throw std::invalid_argument("intervention must be 'all_subgroups' or 'affirmative', not '" +
                                intervention + "'");
  }
  const PosteriorResult result =
      interruptible(options, [&] { return nearest_ideal_posterior(given, options); });
  py::dict out = to_dict(result);
  out["posterior"] = columns(result.posterior);
  return out;
}

py::dict solve_cells(const DoubleArray& cost, const DoubleArray& laws, const DoubleArray& shares,
                     const std::optional<DoubleArray>& common, bool free_shares, Index max_iter,
                     double tol) {
  if (cost.ndim() != 3)
    throw std::invalid_argument("cost must have 3 dimensions, not " + std::to_string(cost.ndim()));
  const Index G = cost.shape(0), S = cost.shape(1), T = cost.shape(2);
  check_shape("laws", laws, {G, S});
  check_shape("shares", shares, {G});
  if (common) check_shape("common", *common, {T});
  for (const auto& [name, array] :
       {std::pair{"cost", &cost}, std::pair{"laws", &laws}, std::pair{"shares", &shares}})
    check_aligned(name, *array);
  CellLaws given{{}, MatrixView(laws.data(), S, G), VectorView(shares.data(), G)};
  for (Index a = 0; a < G; ++a) given.cost.emplace_back(MatrixView(cost.data() + a * S * T, T, S));
  if (common) {
    check_aligned("common", *common);
    given.common = VectorView(common->data(), T);
  }
  PosteriorOptions options = options_of("nearest_ideal_cells", free_shares, max_iter, tol);
  const PosteriorResult result =
      interruptible(options, [&] { return nearest_ideal_cells(given, options); });
  py::dict out = to_dict(result);
  DoubleArray plan({G, S, T});
  for (Index a = 0; a < G; ++a)
    Eigen::Map<Matrix>(plan.mutable_data() + a * S * T, T, S) =
        result.plan[static_cast<std::size_t>(a)];
  out["plan"] = plan;
  return out;
}

}  // namespace

void bind_posterior(py::module_& m) {
  m.def("nearest_ideal_posterior", &solve, py::arg("source").noconvert(),
        py::arg("target").noconvert(), py::arg("laws").noconvert(), py::arg("shares").noconvert(),
        py::arg("intervention"), py::arg("reference"), py::arg("free_shares"), py::arg("max_iter"),
        py::arg("tol"),
        "The nearest ideal distribution of laws (G, S) of a posterior on grids of logits.");
  m.def("nearest_ideal_cells", &solve_cells, py::arg("cost").noconvert(),
        py::arg("laws").noconvert(), py::arg("shares").noconvert(),
        py::arg("common").noconvert().none(true), py::arg("free_shares"), py::arg("max_iter"),
        py::arg("tol"),
        "The nearest ideal distribution of laws (G, S) of cells, by costs (G, S, T) of targets.");
}

}  // namespace fairsteer::bindings
