// What each product instruction of this machine can do.
#pragma once

#include <pybind11/pybind11.h>

namespace sparse_runtime::bindings {

void bind_peaks(pybind11::module_& m);

}  // namespace sparse_runtime::bindings
