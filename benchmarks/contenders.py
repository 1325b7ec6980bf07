"""Who takes part in a kernel benchmark: every candidate that takes the layer, and dense baselines.

Candidates come from the registry of the operations, so a new kernel family takes part as soon as it
is registered there.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_runtime.formats import PackedWeight, pack
from sparse_runtime.kernels.linear.reference import quantize_rows_asymmetric
from sparse_runtime.layers import Linear
from sparse_runtime.ops import CANDIDATES, LinearRequest, LinearWeight, choose
from sparse_runtime.spec import DYNAMIC_ACTIVATIONS, Structure
from sparse_runtime.testing import assert_close_to_oracle, linear_oracle


class WrongOutputError(RuntimeError):
    """A candidate computed something else than the oracle; nothing is timed then."""


@dataclass(frozen=True)
class Contender:
    """One way to compute the layer.

    Attributes:
        name: candidate's name, "Linear" (what a user calls, around the chosen candidate),
            "dense <name>", "torch ..." or "torchao ...".
        run: the call that is timed.
        baseline: whether it is one of the dense ways to measure against.
        chosen: whether `choose` takes this candidate.
        precision: which of the roofline's peaks bounds it: "fp32", "bf16" or "int8".
        output: gives the layer's output [tokens, out] where ``run`` does not; None where PyTorch
            itself works in a precision below the oracle's yardstick and there is nothing to check.
    """

    name: str
    run: Callable[[], Tensor]
    baseline: bool
    chosen: bool
    precision: str
    output: Callable[[], Tensor] | None


def contenders(
    packed: PackedWeight, bias: Tensor, x: Tensor, *, reference: bool = False
) -> list[Contender]:
    """Everyone who can compute this layer on the CPU, baselines last.

    Args:
        packed: weight, logically [out, in].
        bias: float32 [out].
        x: float32 [tokens, in].
        reference: let the slow reference take part as well.
    """
    found = [*_candidates(packed, bias, x, reference), _drop_in(packed, bias, x)]
    if packed.spec.structure.kind != "dense":
        spec = replace(packed.spec, structure=Structure("dense"))
        dense = pack(packed.unpack(), spec, packed.scales)
        for contender in _candidates(dense, bias, x, False):
            found.append(
                replace(contender, name=f"dense {contender.name}", baseline=True, chosen=False)
            )
    return found + list(_torch_baselines(packed, bias, x))


def _candidates(
    packed: PackedWeight, bias: Tensor, x: Tensor, reference: bool
) -> Iterator[Contender]:
    weights = (LinearWeight("benchmark", packed, bias),)
    request = LinearRequest(weights, x.device, x.dtype)
    chosen = choose(weights, dtype=x.dtype).candidate
    precision = "fp32" if packed.spec.activations is None else "int8"
    for candidate in CANDIDATES:
        if candidate.backend == "reference" and not reference:
            continue
        reason = (
            candidate.unavailable() or candidate.rejects(request) or candidate.asked_only(request)
        )
        if reason is None:
            layer = candidate.prepare(request)

            def run(layer: torch.nn.Module = layer) -> Tensor:
                return layer(x)

            yield Contender(candidate.name, run, False, candidate is chosen, precision, run)


def _drop_in(packed: PackedWeight, bias: Tensor, x: Tensor) -> Contender:
    """The chosen candidate as users call it: what checks and types cost shows against it."""
    layer = Linear(packed, bias)
    precision = "fp32" if packed.spec.activations is None else "int8"

    def run() -> Tensor:
        return layer(x)

    return Contender("Linear", run, False, False, precision, run)


def _torch_baselines(packed: PackedWeight, bias: Tensor, x: Tensor) -> Iterator[Contender]:
    """Dense PyTorch in every precision that loses no more than the packed values do."""
    values = packed.spec.values
    weight = packed.dequantize()

    def fp32() -> Tensor:
        return F.linear(x, weight, bias)

    # With quantized inputs FP32 computes another, more exact output than the oracle's.
    quantized = packed.spec.activations is not None
    yield Contender("torch fp32", fp32, True, False, "fp32", None if quantized else fp32)
    if values.dtype not in ("fp32", "fp16"):
        x16, weight16, bias16 = x.bfloat16(), weight.bfloat16(), bias.bfloat16()
        yield Contender(
            "torch bf16", lambda: F.linear(x16, weight16, bias16), True, False, "bf16", None
        )
    if packed.spec.activations == DYNAMIC_ACTIVATIONS["dynamic"] and hasattr(torch, "_int_mm"):
        yield _int_mm_baseline(packed, bias, x)
    if packed.spec.activations == DYNAMIC_ACTIVATIONS["dynamic"]:
        yield from _quantized_modules(weight, bias, x)


def _quantized_modules(weight: Tensor, bias: Tensor, x: Tensor) -> Iterator[Contender]:
    """What quantizes an ``nn.Linear`` for its users, float inputs to float outputs."""

    def dense() -> nn.Linear:
        linear = nn.Linear(weight.shape[1], weight.shape[0]).eval().requires_grad_(False)
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
        return linear

    def contender(name: str, module: Callable[[Tensor], Tensor]) -> Contender:
        return Contender(name, lambda: module(x), True, False, "int8", None)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this part of torch warns of its own removal
        dynamic = torch.ao.quantization.quantize_dynamic(nn.Sequential(dense()), dtype=torch.qint8)
    yield contender("torch dynamic int8", dynamic[0])
    if find_spec("torchao") is not None:
        ao = importlib.import_module("torchao.quantization")
        layer = dense()
        ao.quantize_(layer, ao.Int8DynamicActivationInt8WeightConfig())
        yield contender("torchao int8", layer)
        # Past the limit of recompilations it would silently run eagerly.
        torch.compiler.reset()
        compiled = torch.compile(layer, fullgraph=True, dynamic=False)
        compiled(x)
        yield contender("torchao int8 compiled", compiled)


def _int_mm_baseline(packed: PackedWeight, bias: Tensor, x: Tensor) -> Contender:
    """The integer product alone: what PyTorch needs at the very least for an INT8 layer."""
    unsigned, scale, zero_point = quantize_rows_asymmetric(x)
    q = (unsigned - 128).to(torch.int8)  # the product takes signed bytes
    weight = packed.unpack()
    offsets = (zero_point - 128).unsqueeze(1) * weight.sum(1, dtype=torch.int32)

    def product() -> Tensor:
        return torch._int_mm(q, weight.t())

    def output() -> Tensor:
        return (product() - offsets).float() * scale.unsqueeze(1) * packed.row_scales() + bias

    return Contender("torch._int_mm", product, True, False, "int8", output)


def check_outputs(
    group: list[Contender], packed: PackedWeight, bias: Tensor, x: Tensor, case: str
) -> dict[str, float]:
    """Compare every output with the oracle.

    Args:
        group: who takes part.
        packed: weight, logically [out, in].
        bias: float32 [out].
        x: float32 [tokens, in].
        case: what is computed, for the message.

    Returns:
        Name -> largest absolute error, of those that were compared.

    Raises:
        WrongOutputError: naming the contender, the case and the worst coordinate.
    """
    oracle, dense = linear_oracle(x, packed, bias)
    errors = {}
    for contender in group:
        if contender.output is None:
            continue
        try:
            found = assert_close_to_oracle(
                contender.output(), oracle, dense, name=f"{contender.name} on {case}"
            )
        except AssertionError as error:
            raise WrongOutputError(str(error)) from error
        errors[contender.name] = found.largest
    return errors
