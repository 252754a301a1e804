// What each source of the bindings adds to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace fairsteer::bindings {

void bind_moments(pybind11::module_& m);
void bind_ideal(pybind11::module_& m);
void bind_maps(pybind11::module_& m);
void bind_posterior(pybind11::module_& m);

}  // namespace fairsteer::bindings
