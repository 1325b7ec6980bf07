// What binds single layers, and what passes over several share with it.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <limits>
#include <string>

#include "bindings/checks.h"
#include "cpu/token_ops/kernels.h"

namespace sparse_runtime::bindings {

constexpr std::int64_t kMaxTokens = std::int64_t{1} << 40;
constexpr std::int64_t kMaxFeatures = std::int64_t{1} << 31;
constexpr auto kFloatBytes = static_cast<std::int64_t>(sizeof(float));

token_ops::Activation activation_of(const Checks& checks, const std::string& name);

// Rows of `features` floats, `stride` apart.
const float* rows_at(const Checks& checks, const char* argument, std::uintptr_t address,
                     std::int64_t tokens, std::int64_t features, std::int64_t stride);

// PanelLinear, PanelNorm and the memory that their passes share.
void bind_panel_layers(pybind11::module_& m);

}  // namespace sparse_runtime::bindings
