"""Make pruned and quantized checkpoints: one-shot or by training (docs/compress)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .fake_quant import attach_fake_quant, freeze_ranges, read_quantization, remove_fake_quant
from .masks import Mask, attach_masks, bake, lock_masks, masks_of
from .paper_layouts import export_paper_layout
from .patterns import Pattern, global_masks, sparsity
from .schedules import CubicSparsity
from .statement import LinearQuantization
from .targets import COMPONENTS, Component, EncoderLayer, component, encoder_linears, layers
from .writing import write_checkpoint

if TYPE_CHECKING:
    from .oneshot.plans import SearchPlan
    from .oneshot.prune import prune
    from .oneshot.sensitivity_run import measure_sensitivity
    from .training.format_search import FormatSearch, search_formats
    from .training.run import train

__all__ = [
    "COMPONENTS",
    "Component",
    "CubicSparsity",
    "EncoderLayer",
    "FormatSearch",
    "LinearQuantization",
    "Mask",
    "Pattern",
    "SearchPlan",
    "attach_fake_quant",
    "attach_masks",
    "bake",
    "component",
    "encoder_linears",
    "export_paper_layout",
    "freeze_ranges",
    "global_masks",
    "layers",
    "lock_masks",
    "masks_of",
    "measure_sensitivity",
    "prune",
    "read_quantization",
    "remove_fake_quant",
    "search_formats",
    "sparsity",
    "train",
    "write_checkpoint",
]


def __getattr__(name: str) -> Any:
    # These need more than torch, and are loaded when they are asked for.
    if name == "SearchPlan":
        from .oneshot.plans import SearchPlan

        return SearchPlan
    if name == "prune":
        from .oneshot.prune import prune

        return prune
    if name == "measure_sensitivity":
        from .oneshot.sensitivity_run import measure_sensitivity

        return measure_sensitivity
    if name in ("FormatSearch", "search_formats"):
        from .training import format_search

        return getattr(format_search, name)
    if name == "train":
        from .training.run import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
