#include <pybind11/pybind11.h>

#include <Eigen/Core>
#include <string>

#include "bindings.hpp"
#include "scipy_blas.hpp"

namespace py = pybind11;

namespace {

py::dict build_info() {
  const auto dotted = [](int major, int minor, int patch) {
    return std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(patch);
  };
  py::dict info;
  info["compiler"] = FAIRSTEER_COMPILER;
  info["flags"] = FAIRSTEER_FLAGS;
  info["build_type"] = FAIRSTEER_BUILD_TYPE;
  info["eigen"] = dotted(EIGEN_WORLD_VERSION, EIGEN_MAJOR_VERSION, EIGEN_MINOR_VERSION);
  info["pybind11"] =
      dotted(PYBIND11_VERSION_MAJOR, PYBIND11_VERSION_MINOR, PYBIND11_VERSION_HEX >> 8 & 0xFF);
  info["simd"] = Eigen::SimdInstructionSetsInUse();
  return info;
}

}  // namespace

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.doc() = "The C++ core of fairsteer: arrays in, arrays out.";
  fairsteer::scipy_blas::load();
  m.def("build_info", &build_info,
        "How this module was built: compiler, flags, build_type, eigen, pybind11, simd.");
  fairsteer::bindings::bind_moments(m);
  fairsteer::bindings::bind_ideal(m);
  fairsteer::bindings::bind_maps(m);
  fairsteer::bindings::bind_posterior(m);
}
