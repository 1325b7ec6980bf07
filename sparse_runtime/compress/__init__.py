"""Make pruned and quantized checkpoints: one-shot or by training (docs/compress)."""

from __future__ import annotations

from .masks import Mask, attach_masks, bake, lock_masks, masks_of
from .patterns import Pattern, global_masks, sparsity
from .schedules import CubicSparsity
from .targets import COMPONENTS, Component, EncoderLayer, component, encoder_linears, layers

__all__ = [
    "COMPONENTS",
    "Component",
    "CubicSparsity",
    "EncoderLayer",
    "Mask",
    "Pattern",
    "attach_masks",
    "bake",
    "component",
    "encoder_linears",
    "global_masks",
    "layers",
    "lock_masks",
    "masks_of",
    "sparsity",
]
