// Eigen's BLAS and LAPACK calls, served by the library that SciPy was built with.
#pragma once

namespace fairsteer::scipy_blas {

/// Binds every routine that Eigen may call. Called once, when the module is loaded and before any
/// other use of Eigen's products or decompositions. Throws pybind11::import_error when SciPy's BLAS
/// or LAPACK cannot serve: a routine is missing, or has other arguments than those of the 32-bit
/// integer interface.
void load();

}  // namespace fairsteer::scipy_blas
