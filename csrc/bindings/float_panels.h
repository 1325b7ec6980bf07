#pragma once

#include <pybind11/pybind11.h>

namespace sparse_runtime::bindings {

void bind_float_panels(pybind11::module_& m);

}  // namespace sparse_runtime::bindings
