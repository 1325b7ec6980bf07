"""NNCF's pruning before ``nncf.strip``: masks in the model's hook store.

Source: NNCF 3, torch/function_hook: the store is the model's submodule ``__nncf_hooks``, and the
hook of the parameter ``a.b.weight`` is its ``post_hooks.a:b:weight__0.<id>``. Magnitude pruning
keeps a boolean ``binary_mask``; the regularised method (RB) keeps logits ``mask``, of which
evaluation takes sigmoid(mask) > 0.5.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from ..draft import Draft, LazyTensor
from ..errors import CheckpointError, listed
from ..numbers import finite
from .base import Layout

_HOOK = re.compile(
    r"__nncf_hooks\.post_hooks\.(?P<parameter>.+)__0\.\d+\.(?P<kind>binary_mask|mask)"
)


def _recognise(draft: Draft) -> str | None:
    masks = draft.names(_HOOK.pattern)
    return f"{len(masks)} tensors {listed(masks, 2)}" if masks else None


def _finalise(draft: Draft) -> None:
    masks = draft.names(_HOOK.pattern)
    parameters = [_parameter(name) for name in masks]
    twice = {name for name in parameters if parameters.count(name) > 1}
    if twice:
        raise CheckpointError(
            f"{draft.where}: expected one mask a parameter, got several for {listed(twice)}; "
            "strip the model with nncf.strip and save it again"
        )
    for name, parameter in zip(masks, parameters, strict=True):
        _apply(draft, parameter, name, draft.take(name))
    draft.steps.append(f"weight = weight x mask of its NNCF hook in {len(masks)} parameters")


def _parameter(name: str) -> str:
    match = _HOOK.fullmatch(name)
    assert match is not None
    return match["parameter"].replace(":", ".")


def _apply(draft: Draft, parameter: str, name: str, mask: LazyTensor) -> None:
    logits = name.endswith(".mask")
    expected = "float32" if logits else "bool"
    shape = draft.tensors[parameter].shape if parameter in draft.tensors else None
    if shape is None or mask.shape != shape or mask.dtype != expected:
        raise CheckpointError(
            f"{name}: expected a {expected} mask of the shape of {parameter}, "
            f"{list(shape) if shape is not None else 'which is missing'}, got {mask.dtype} "
            f"{list(mask.shape)}; the file is damaged"
        )
    dtype = getattr(torch, draft.tensors[parameter].dtype)
    draft.change(parameter, dtype, _masking(name, mask, logits))


def _masking(name: str, mask: LazyTensor, logits: bool) -> Callable[[Tensor], Tensor]:
    def masked(weight: Tensor) -> Tensor:
        # A logit that is NaN would prune its weight.
        kept = torch.sigmoid(finite(name, mask.load())) > 0.5 if logits else mask.load()
        return torch.where(kept, weight, 0)

    return masked


LAYOUT = Layout("NNCF pruning", _recognise, _finalise)
