"""The operator that torch.compile and torch.export see in place of a prepared layer.

It names a layer by a number: what kernels read, and C++ objects, cannot travel through a traced
graph.
"""

from __future__ import annotations

import secrets
import weakref
from abc import abstractmethod

import torch
from torch import Tensor
from torch.fx.experimental import sym_node

from .types import PreparedLinear

# Compiled code takes it for an input where it takes an int of a module for a constant to guard.
# Not in every torch that we support: there, each layer compiles anew.
DynamicInt: type[int] = getattr(sym_node, "DynamicInt", int)


class TracedLinear(PreparedLinear):
    """A prepared layer that traced graphs see as the operator.

    Attributes:
        key: its number in this process, for as long as it lives.
        traced_key: the same for torch.compile, which then has one graph for layers that are alike.
    """

    def __init__(self, name: str, in_features: int, out_features: int) -> None:
        super().__init__(name, in_features, out_features)
        # At random: a program from another process finds no layer here, rather than a wrong one.
        self.key = secrets.randbits(62)
        self.traced_key = DynamicInt(self.key)
        _LAYERS[self.key] = self

    def forward(
        self, x: Tensor, activation: str | None = None, residual: Tensor | None = None
    ) -> Tensor:
        # The dispatcher costs more than a small layer, so only traced calls go through it.
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(x) is not Tensor:  # type: ignore[attr-defined]
            # An exported program has one layer for good, and no input to name it.
            key = self.key if torch.compiler.is_exporting() else self.traced_key
            return prepared_linear(x, key, self.out_features, activation, residual)
        return self.run(x, activation, residual)

    @abstractmethod
    def run(self, x: Tensor, activation: str | None, residual: Tensor | None) -> Tensor:
        """:meth:`forward` without the dispatcher."""


_LAYERS: weakref.WeakValueDictionary[int, TracedLinear] = weakref.WeakValueDictionary()


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
