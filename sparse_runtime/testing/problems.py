"""Seeded problems: weights of a given structure and sparsity, packed, and inputs for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..formats import PackedWeight, cast_values, pack, project
from ..spec import DYNAMIC_ACTIVATIONS, ActivationSpec, LinearSpec, Structure, ValueSpec


@dataclass(frozen=True, eq=False)
class LinearProblem:
    """One linear layer and an input for it.

    Attributes:
        packed: the weight, logically [out, in].
        bias: float32 [out].
        x: float32 [tokens, in].
        residual: float32 [tokens, out].
    """

    packed: PackedWeight
    bias: Tensor
    x: Tensor
    residual: Tensor


def make_weight(
    shape: tuple[int, int],
    structure: str = "dense",
    sparsity: float | None = None,
    *,
    seed: int = 0,
) -> Tensor:
    """A normal random weight, pruned by magnitude to a structure.

    Args:
        shape: (out_features, in_features).
        structure: "dense", "unstructured", "N:M" or "block:RxC".
        sparsity: part of the weights (block: of the blocks) to zero, from 0 to below 1. None
            leaves unstructured and block matrices full; N:M states its own.
        seed: the same seed gives the same weight.

    Returns:
        float32 [out, in] with standard deviation 1 / sqrt(in) before pruning, so that outputs stay
        near 1 for inputs near 1.

    Raises:
        ValueError: the sparsity is out of range, or given where the structure has none to choose.
    """
    parsed = Structure.parse(structure)
    if sparsity is not None and parsed.kind in ("dense", "nm"):
        raise ValueError(
            f"sparsity {sparsity}: structure {structure!r} leaves none to choose, so pass None"
        )
    if sparsity is not None and not 0 <= sparsity < 1:
        raise ValueError(f"sparsity {sparsity}: expected a number from 0 to below 1")
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator) / shape[1] ** 0.5
    return project(weight, parsed, sparsity)


def make_packed(
    shape: tuple[int, int],
    structure: str = "dense",
    sparsity: float | None = None,
    *,
    values: str = "fp32",
    scales: str = "row",
    activations: str | ActivationSpec = "auto",
    seed: int = 0,
) -> PackedWeight:
    """A packed random weight; see :func:`make_weight` for the first three arguments and ``seed``.

    Args:
        shape: (out_features, in_features).
        structure: structure string.
        sparsity: part of the weights or blocks to zero, or None.
        values: "fp32", "bf16", "fp16", "int8" or "int4".
        scales: "tensor", "row" or "chunk:R", for integer values.
        activations: "auto" quantizes the input dynamically for integer values and not at all for
            floats, "none" never does, "dynamic" (uint8) and "symmetric" (int8) ask for it; or a
            full description.
        seed: the same seed gives the same weight.
    """
    value_spec = ValueSpec.parse(values, scales)
    spec = LinearSpec(
        shape=shape,
        structure=Structure.parse(structure),
        values=value_spec,
        activations=_activation_spec(activations, value_spec),
    )
    weight = make_weight(shape, structure, sparsity, seed=seed)
    return pack(*_cast(weight, spec))


def make_activations(
    tokens: int, features: int, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Tensor:
    """Standard normal input [tokens, features]; a stream of its own, apart from the weights'."""
    generator = torch.Generator().manual_seed(seed + 1_000_003)
    return torch.randn(tokens, features, generator=generator).to(dtype)


def make_linear_problem(
    shape: tuple[int, int],
    tokens: int,
    structure: str = "dense",
    sparsity: float | None = None,
    *,
    values: str = "fp32",
    scales: str = "row",
    activations: str | ActivationSpec = "auto",
    seed: int = 0,
) -> LinearProblem:
    """A packed weight with bias, input and residual; arguments as in :func:`make_packed`."""
    packed = make_packed(
        shape,
        structure,
        sparsity,
        values=values,
        scales=scales,
        activations=activations,
        seed=seed,
    )
    return LinearProblem(
        packed=packed,
        bias=make_activations(1, shape[0], seed=seed + 1)[0],
        x=make_activations(tokens, shape[1], seed=seed),
        residual=make_activations(tokens, shape[0], seed=seed + 2),
    )


def _activation_spec(activations: str | ActivationSpec, values: ValueSpec) -> ActivationSpec | None:
    if isinstance(activations, ActivationSpec):
        return activations
    if activations == "auto":
        activations = "dynamic" if values.is_integer else "none"
    if activations not in ("none", *DYNAMIC_ACTIVATIONS):
        raise ValueError(
            f"activations {activations!r}: expected 'auto', 'dynamic', 'symmetric', 'none' or an "
            "ActivationSpec"
        )
    return DYNAMIC_ACTIVATIONS.get(activations)


def _cast(weight: Tensor, spec: LinearSpec) -> tuple[Tensor, LinearSpec, Tensor | None]:
    """The arguments of `pack`."""
    stored, scales = cast_values(weight, spec.values)
    return stored, spec, scales
