"""What a layout is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..draft import Draft


@dataclass(frozen=True)
class Layout:
    """Tensors whose meaning is not their name's.

    Attributes:
        name: in reports and errors: who writes it.
        recognise: None where a checkpoint has not this layout, else what shows it. It reads names,
            shapes and config.json, and no data.
        finalise: turns the layout's tensors into plain floats or quantized linears, takes away all
            that it has understood, and writes a line to ``steps`` for all that it does. Data is
            read and computed only when the result is asked for. CheckpointError for what
            contradicts itself.
    """

    name: str
    recognise: Callable[[Draft], str | None]
    finalise: Callable[[Draft], None]
