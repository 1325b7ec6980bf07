"""The operator that torch.compile and torch.export see in place of a prepared layer.

It names a layer by a number: what kernels read, and C++ objects, cannot travel through a traced
graph.
"""

from __future__ import annotations

import weakref
from itertools import count
from typing import Protocol

import torch
from torch import Tensor


class Runs(Protocol):
    """A prepared layer."""

    out_features: int

    def run(self, x: Tensor, activation: str | None, residual: Tensor | None) -> Tensor:
        """Float [tokens, in] -> [tokens, out] in x's type."""


_LAYERS: weakref.WeakValueDictionary[int, Runs] = weakref.WeakValueDictionary()
_KEYS = count(1)


def register(layer: Runs) -> int:
    """A number for a layer, as long as it lives."""
    key = next(_KEYS)
    _LAYERS[key] = layer
    return key


@torch.library.custom_op("sparse_runtime::prepared_linear", mutates_args=())
def prepared_linear(
    x: Tensor, key: int, out_features: int, activation: str | None, residual: Tensor | None
) -> Tensor:
    """A prepared layer of this process."""
    layer = _LAYERS.get(key)
    if layer is None or layer.out_features != out_features:
        raise RuntimeError(
            f"sparse_runtime::prepared_linear: layer {key} is not alive in this process; trace the "
            "module again"
        )
    return layer.run(x, activation, residual)


@prepared_linear.register_fake
def _(
    x: Tensor, key: int, out_features: int, activation: str | None, residual: Tensor | None
) -> Tensor:
    return x.new_empty(x.shape[0], out_features)
