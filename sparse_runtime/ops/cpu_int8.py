"""Quantized layers on the CPU: the C++ INT8 kernel (docs/kernels/int8_linear.md).

The kernel reads unsigned inputs, so a signed value q is stored as q + 128 with zero point 128.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..kernels.linear.reference import ACTIVATIONS
from ..spec import ActivationSpec
from .native import address, extension, rows_of, unavailable
from .types import Candidate, LinearRequest, PreparedLinear

SIGNED_OFFSET = 128
ISA = "auto"  # the extension picks the best the machine runs
FUSED_ACTIVATIONS = (None, "relu", "gelu")


def quantize(x: Tensor, activations: ActivationSpec) -> tuple[Tensor, Tensor, int, Tensor | None]:
    """Quantize float32 [tokens, in].

    Returns:
        (uint8 [tokens, in], float32 scales [tokens] or [1], the common zero point, or uint8
        [tokens]: each token's)
    """
    tokens, width = x.shape
    q = torch.empty(tokens, width, dtype=torch.uint8)
    threads = torch.get_num_threads()
    if activations.scheme == "dynamic":
        scale = torch.empty(tokens)
        own = torch.empty(tokens, dtype=torch.uint8) if activations.dtype == "uint8" else None
        extension().quantize_rows(
            *(address(x), tokens, width, x.stride(0), address(q), width),
            *(address(scale), threads, ISA, address(own)),
        )
        return q, scale, SIGNED_OFFSET, own
    offset = SIGNED_OFFSET if activations.dtype == "int8" else 0
    zero_point = activations.zero_point + offset
    extension().quantize_static(
        *(address(x), tokens, width, x.stride(0), address(q), width),
        *(activations.scale, zero_point, 0, 255, threads, ISA),
    )
    return q, torch.tensor([activations.scale]), zero_point, None


def run_int8_linear(
    x: Tensor,
    packed: Tensor,
    row_sums: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
    activations: ActivationSpec,
) -> Tensor:
    """Quantize float32 x [tokens, in] and multiply; float32 [tokens, out]."""
    x = rows_of(x)
    tokens, width, outputs = x.shape[0], x.shape[1], weight_scale.shape[0]
    if (packed.numel(), row_sums.numel()) != extension().int8_linear_layout_size(outputs, width):
        raise ValueError(f"x {list(x.shape)} does not fit a weight with {outputs} outputs")
    y = torch.empty(tokens, outputs)
    if tokens == 0:
        return y
    q, x_scale, zero_point, zero_points = quantize(x, activations)
    residual = None if residual is None else rows_of(residual)
    extension().int8_linear(
        *(address(q), width, tokens, address(packed), address(row_sums), outputs, width),
        *(address(x_scale), activations.scheme == "dynamic", zero_point, address(weight_scale)),
        *(address(bias), activation or "none"),
        *(address(residual), 0 if residual is None else residual.stride(0)),
        *(address(y), outputs, torch.get_num_threads(), ISA, address(zero_points)),
    )
    return y


@torch.library.custom_op("sparse_runtime::int8_linear", mutates_args=(), device_types="cpu")
def int8_linear_op(
    x: Tensor,
    packed: Tensor,
    row_sums: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
    static: bool,
    act_dtype: str,
    act_scale: float,
    act_zero_point: int,
) -> Tensor:
    """:func:`run_int8_linear` as torch.compile and torch.export see it."""
    scheme = "static" if static else "dynamic"
    spec = ActivationSpec(scheme, act_dtype, act_scale, act_zero_point)  # type: ignore[arg-type]
    return run_int8_linear(x, packed, row_sums, weight_scale, bias, activation, residual, spec)


@int8_linear_op.register_fake
def _(
    x: Tensor,
    packed: Tensor,
    row_sums: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
    static: bool,
    act_dtype: str,
    act_scale: float,
    act_zero_point: int,
) -> Tensor:
    return x.new_empty(x.shape[0], weight_scale.shape[0])


class CpuInt8Linear(PreparedLinear):
    """The kernel's weight layout, its row sums, scales and bias."""

    candidate = "cpu.int8"
    packed: Tensor
    row_sums: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(self, request: LinearRequest) -> None:
        super().__init__(request.name, request.in_features, request.out_features)
        activations = request.weights[0].packed.spec.activations
        if activations is None:
            raise ValueError(f"{request.name}: expected quantized activations")
        self.activations = activations
        weight = torch.cat([w.packed.unpack() for w in request.weights])
        packed, row_sums = pack_weight(weight)
        self.register_buffer("packed", packed, persistent=False)
        self.register_buffer("row_sums", row_sums, persistent=False)
        scales = torch.cat([w.packed.row_scales() for w in request.weights])
        self.register_buffer("weight_scale", scales, persistent=False)
        self.register_buffer("bias", request.stacked_bias(), persistent=False)

    def forward(
        self, x: Tensor, activation: str | None = None, residual: Tensor | None = None
    ) -> Tensor:
        self.check(x, activation, residual)
        fused = activation in FUSED_ACTIVATIONS
        y = self._product(x.float(), activation if fused else None, residual if fused else None)
        if not fused and activation is not None:
            y = ACTIVATIONS[activation](y)
            y = y if residual is None else y + residual
        return y.to(x.dtype)

    def _product(self, x: Tensor, activation: str | None, residual: Tensor | None) -> Tensor:
        operands = (x, self.packed, self.row_sums, self.weight_scale, self.bias, activation)
        residual = None if residual is None else residual.float()
        # The dispatcher costs more than a small layer, so only traced calls go through it.
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or type(x) is not Tensor  # type: ignore[attr-defined]
        if not traced:
            return run_int8_linear(*operands, residual, self.activations)
        act = self.activations
        static = act.scheme == "static"
        return int8_linear_op(*operands, residual, static, act.dtype, act.scale, act.zero_point)


def pack_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [out, in] -> (int8 kernel layout, int32 row sums), both 1-D."""
    outputs, inputs = weight.shape
    weight = weight.contiguous()
    size, sums = extension().int8_linear_layout_size(outputs, inputs)
    packed = torch.empty(size, dtype=torch.int8)
    row_sums = torch.empty(sums, dtype=torch.int32)
    extension().int8_linear_pack(
        address(weight), outputs, inputs, address(packed), address(row_sums)
    )
    return packed, row_sums


class CpuInt8Candidate(Candidate):
    """Integer values with quantized inputs, whatever the structure: expanded at load."""

    name: ClassVar[str] = "cpu.int8"
    backend: ClassVar[str] = "cpu"

    def unavailable(self) -> str | None:
        return unavailable()

    def rejects(self, request: LinearRequest) -> str | None:
        if request.device.type != "cpu":
            return f"runs on cpu, the layer is on {request.device.type}"
        if not request.is_integer:
            return "the layer multiplies floats; this one needs quantized inputs"
        return None

    def note(self, request: LinearRequest) -> str:
        isa = next((row["name"] for row in reversed(extension().isas()) if row["available"]), "?")
        text = f"C++ INT8 kernel ({isa})"
        specs = [weight.packed.spec for weight in request.weights]
        kinds = {f"{spec.structure} {spec.values.dtype}" for spec in specs}
        if kinds != {"dense int8"}:
            expanded = sum(rows * cols for rows, cols in (spec.shape for spec in specs))
            packed = sum(weight.packed.size().total for weight in request.weights)
            text += (
                f"; there is no native kernel for {', '.join(sorted(kinds))} yet, so the weight is "
                f"expanded at load to dense int8 ({expanded:,} bytes, packed {packed:,})"
            )
        return text

    def prepare(self, request: LinearRequest) -> PreparedLinear:
        return CpuInt8Linear(request)
