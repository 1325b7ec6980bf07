"""Make pruned and quantized checkpoints: one-shot or by training (docs/compress)."""

from __future__ import annotations

<<<<<<< HEAD
<<<<<<< HEAD
=======
from .fake_quant import attach_fake_quant, freeze_ranges, read_quantization, remove_fake_quant
>>>>>>> z-core
from .masks import Mask, attach_masks, bake, lock_masks, masks_of
from .paper_layouts import export_paper_layout
from .patterns import Pattern, global_masks, sparsity
from .schedules import CubicSparsity
from .statement import LinearQuantization
from .targets import COMPONENTS, Component, EncoderLayer, component, encoder_linears, layers
<<<<<<< HEAD
=======
from .fake_quant import attach_fake_quant, freeze_ranges, read_quantization, remove_fake_quant
from .masks import Mask, attach_masks, bake, lock_masks, masks_of
from .paper_layouts import export_paper_layout
from .patterns import Pattern, global_masks, sparsity
from .schedules import CubicSparsity
from .statement import LinearQuantization
from .targets import COMPONENTS, Component, EncoderLayer, component, encoder_linears, layers
from .writing import write_checkpoint
>>>>>>> z-core
=======
from .writing import write_checkpoint
>>>>>>> z-core

__all__ = [
    "COMPONENTS",
    "Component",
    "CubicSparsity",
    "EncoderLayer",
<<<<<<< HEAD
<<<<<<< HEAD
    "Mask",
    "Pattern",
=======
    "LinearQuantization",
    "Mask",
    "Pattern",
    "attach_fake_quant",
>>>>>>> z-core
=======
    "LinearQuantization",
    "Mask",
    "Pattern",
    "attach_fake_quant",
>>>>>>> z-core
    "attach_masks",
    "bake",
    "component",
    "encoder_linears",
<<<<<<< HEAD
<<<<<<< HEAD
=======
    "export_paper_layout",
    "freeze_ranges",
>>>>>>> z-core
=======
    "export_paper_layout",
    "freeze_ranges",
>>>>>>> z-core
    "global_masks",
    "layers",
    "lock_masks",
    "masks_of",
<<<<<<< HEAD
<<<<<<< HEAD
    "sparsity",
=======
    "read_quantization",
    "remove_fake_quant",
    "sparsity",
    "write_checkpoint",
>>>>>>> z-core
=======
    "read_quantization",
    "remove_fake_quant",
    "sparsity",
    "write_checkpoint",
>>>>>>> z-core
]
