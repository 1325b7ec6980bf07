"""Layouts of tensors that are not the plain weights, in the order in which they are undone.

A reader says in which files tensors lie; a layout, what they mean. A checkpoint may have several:
integers inside of a sparse container, or masks beside a teacher's weights.
"""

from __future__ import annotations

from ..draft import Draft, Recognition
from . import intel_qat, prune_pairs, sparseml_qat
from .base import Layout

__all__ = ["LAYOUTS", "Layout", "finalise"]

LAYOUTS: tuple[Layout, ...] = (prune_pairs.LAYOUT, intel_qat.LAYOUT, sparseml_qat.LAYOUT)


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
