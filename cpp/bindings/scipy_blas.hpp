// BLAS and LAPACK for the core, from the library that SciPy was built with.
#pragma once

namespace fairsteer::scipy_blas {

/// Fills fairsteer::blas::library(). Called once, when the module is loaded. Throws
/// pybind11::import_error when SciPy's BLAS or LAPACK cannot serve: a routine is missing, or has
/// other arguments than those of the 32-bit integer interface.
void load();

}  // namespace fairsteer::scipy_blas
