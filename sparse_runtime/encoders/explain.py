"""Which kernels run a model, one block for each kind of layer."""

from __future__ import annotations

import re

from ..ops import Backend

_INDEX = re.compile(r"\.(\d+)\.")


def explain(backend: Backend) -> str:
    """The choices behind a model's layers; layers that differ in their index alone share a block.

    Returns:
        A line for the backend, then for each kind its name with ``*`` for the index, how many
        layers it stands for, and every candidate with the reason for or against it.
    """
    counts: dict[str, int] = {}
    for decision in backend.decisions:
        text = _INDEX.sub(".*.", decision.explain())
        counts[text] = counts.get(text, 0) + 1
    dtype = str(backend.dtype).removeprefix("torch.")
    blocks = [f"backend {backend.name} on {backend.device}, activations {dtype}"]
    for text, count in counts.items():
        first, *rest = text.splitlines()
        times = f" ({count} layers)" if count > 1 else ""
        blocks.append("\n".join([f"{first}{times}", *rest]))
    return "\n".join(blocks)
