"""Which kernels run a model, one block for each kind of layer."""

from __future__ import annotations

import re

from ..ops import Backend

_INDEX = re.compile(r"\.(\d+)\.")
_FIGURE = re.compile(r"\d[\d,]*")


def explain(backend: Backend) -> str:
    """The choices behind a model's layers; layers that differ in their index alone share a block.

    Returns:
        A line for the backend, then for each kind its name with ``*`` for the index, how many
        layers it stands for, and every candidate with the reason for or against it.
    """
    kinds: dict[str, list[str]] = {}
    for decision in backend.decisions:
        text = _INDEX.sub(".*.", decision.explain())
        # Sparse layers of one kind differ in the bytes that their notes state.
        kinds.setdefault(_FIGURE.sub("#", text), []).append(text)
    dtype = str(backend.dtype).removeprefix("torch.")
    blocks = [f"backend {backend.name} on {backend.device}, activations {dtype}"]
    for texts in kinds.values():
        first, *rest = texts[0].splitlines()
        whose = "" if len(set(texts)) == 1 else "; figures of the first"
        times = f" ({len(texts)} layers{whose})" if len(texts) > 1 else ""
        blocks.append("\n".join([f"{first}{times}", *rest]))
    return "\n".join(blocks)
