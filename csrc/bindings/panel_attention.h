#pragma once

#include <pybind11/pybind11.h>

namespace sparse_runtime::bindings {

void bind_panel_attention(pybind11::module_& m);

}  // namespace sparse_runtime::bindings
