"""Layouts of tensors that are not the plain weights, in the order in which they are undone.

A reader says in which files tensors lie; a layout, what they mean. A checkpoint may have several:
integers inside of a sparse container, or masks beside a teacher's weights.
"""

from __future__ import annotations

from ..draft import Draft, Recognition
from . import (
    bitsandbytes,
    cofi,
    compressed_tensors,
    intel_masks,
    intel_qat,
    mask_buffers,
    mask_files,
    movement,
    nncf_masks,
    nxm,
    onnx_encoder,
    prune_pairs,
    removed_heads,
    sparseml_qat,
    stated_quantization,
    torchao,
    unused_layers,
)
from .base import Layout

__all__ = ["LAYOUTS", "Layout", "finalise"]

LAYOUTS: tuple[Layout, ...] = (
    # A graph's tensors go by other names; all else is about the model's.
    onnx_encoder.LAYOUT,
    # Weights whose values lie packed, before anything that is done to values.
    compressed_tensors.LAYOUT,
    torchao.LAYOUT,
    bitsandbytes.LAYOUT,
    # What was never the model's, and masks of single weights, before what is computed from them.
    intel_masks.LAYOUT,
    unused_layers.LAYOUT,
    prune_pairs.LAYOUT,
    nncf_masks.LAYOUT,
    intel_qat.LAYOUT,
    sparseml_qat.LAYOUT,
    movement.LAYOUT,
    mask_buffers.LAYOUT,
    mask_files.LAYOUT,
    # Halves that CoFi has removed, before the heads of the others are counted.
    cofi.LAYOUT,
    removed_heads.LAYOUT,
    nxm.LAYOUT,
    # States integers of plain floats, so that nothing may change them any more.
    stated_quantization.LAYOUT,
)


def finalise(draft: Draft) -> None:
    """Apply every layout that the checkpoint has.

    Raises:
        CheckpointError: its files contradict it, or leave open what only the user can say.
    """
    for layout in LAYOUTS:
        why = layout.recognise(draft)
        if why is not None:
            draft.recognised.append(Recognition(layout.name, why))
            layout.finalise(draft)
