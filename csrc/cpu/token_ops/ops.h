// The token operations over vectors of any width; each instruction set's unit includes this file
// within its anonymous namespace, after cpu/simd.h.

constexpr int kPanelSlots = panels::kSlots;

// clang-format off: later ones use earlier ones
#include "cpu/token_ops/activations.h"
#include "cpu/token_ops/finish.h"
#include "cpu/token_ops/statistics.h"
#include "cpu/token_ops/quantize.h"
#include "cpu/token_ops/rows.h"
// clang-format on
