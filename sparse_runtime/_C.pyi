"""C++ kernels by address and size. Arrays are row-major; an address comes from data_ptr().

Strides count elements and only matter with more than one row. Every function checks sizes,
alignment and null addresses before it writes anything, and raises ValueError naming the argument;
what it cannot check is that the address really holds that many bytes. The GIL is released while a
kernel runs. `isa` is "auto" or a name from isas(); one that cannot run here raises RuntimeError
with the reason. `num_threads` is at least 1; at most 256 are used. Formulas, layout and limits:
docs/kernels/int8_linear.md.
"""

from typing import Literal, TypedDict

class IsaStatus(TypedDict):
    name: str
    built: bool
    available: bool
    reason: str  # why not available; "" when it is

class BuildInfo(TypedDict):
    compiler: str
    cxx_standard: int
    isas: list[str]  # built
    isas_not_built: dict[str, str]  # name -> reason
    families: dict[str, list[str]]  # kernel family -> instruction sets built

Activation = Literal["none", "relu", "gelu"]

INT8_LINEAR_MAX_K: int

def cpu_features() -> dict[str, bool]:
    """Instruction sets that both the CPU and the operating system support."""

def isas() -> list[IsaStatus]:
    """Every instruction set that kernels are written for, in ascending preference."""

def build_info() -> BuildInfo: ...
def max_threads() -> int:
    """CPUs this process may run on, at least 1."""

def use_openmp(gomp_parallel_ptr: int) -> None:
    """Run loops on the OpenMP runtime that has this GOMP_parallel; 0: on the extension's pool."""

def int8_linear_layout_size(n: int, k: int) -> tuple[int, int]:
    """Returns (bytes of packed weights, int32 count of row sums) for an [n, k] weight."""

def int8_linear_pack(w_ptr: int, n: int, k: int, packed_ptr: int, row_sums_ptr: int) -> None:
    """Packs int8 [n, k] (contiguous) and sums each row."""

def int8_linear_unpack(packed_ptr: int, n: int, k: int, w_ptr: int) -> None:
    """The inverse of int8_linear_pack: writes int8 [n, k] (contiguous)."""

def quantize_rows(
    x_ptr: int,
    t: int,
    k: int,
    x_stride: int,
    q_ptr: int,
    q_stride: int,
    scale_ptr: int,
    num_threads: int,
    isa: str,
    zero_points_ptr: int = 0,
) -> None:
    """Quantization per row: float32 [t, k] -> uint8 [t, k], float32 scale [t].

    Symmetric, stored as q + 128, or, with zero_points_ptr (uint8 [t]), asymmetric. A row with NaN
    or infinity gets a scale that makes its outputs NaN.
    """

def quantize_static(
    x_ptr: int,
    t: int,
    k: int,
    x_stride: int,
    q_ptr: int,
    q_stride: int,
    scale: float,
    zero_point: int,
    qmin: int,
    qmax: int,
    num_threads: int,
    isa: str,
) -> None:
    """ONNX QuantizeLinear: clamp(round_half_even(x / scale) + zero_point, qmin, qmax) as uint8.

    NaN becomes zero_point (clamped to qmin..qmax); infinities saturate.
    """

def int8_linear(
    q_ptr: int,
    q_stride: int,
    t: int,
    packed_ptr: int,
    row_sums_ptr: int,
    n: int,
    k: int,
    x_scale_ptr: int,
    x_scale_is_per_row: bool,
    zero_point: int,
    w_scale_ptr: int,
    bias_ptr: int,
    activation: str,
    residual_ptr: int,
    residual_stride: int,
    out_ptr: int,
    out_stride: int,
    num_threads: int,
    isa: str,
    zero_points_ptr: int = 0,
) -> None:
    """out = activation(float(acc) * x_scale[t] * w_scale[n] + bias[n]) + residual[t, n], float32.

    acc is the exact int32 sum over k of (q - zero_point) * w; zero_points_ptr (uint8 [t]) gives
    each row its own zero point instead. bias_ptr and residual_ptr may be 0.
    x_scale holds t values, or one if not x_scale_is_per_row. out may be the residual itself (same
    address and stride) but must not overlap any other argument.
    """

def int8_linear_accumulate(
    q_ptr: int,
    q_stride: int,
    t: int,
    packed_ptr: int,
    row_sums_ptr: int,
    n: int,
    k: int,
    zero_point: int,
    out_ptr: int,
    out_stride: int,
    num_threads: int,
    isa: str,
    zero_points_ptr: int = 0,
) -> None:
    """The sums alone: int32 out[t, n] = sum over k of (q[t, k] - zero_point) * w[n, k]."""
