"""Which kernels run a model, one block for each kind of layer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from ..ops import Backend, Decision

_INDEX = re.compile(r"\.(\d+)\.")
_FIGURE = re.compile(r"\d[\d,.]*")


def explain(
    backend: Backend, attentions: Sequence[tuple[str, str]] = (), *, measure: bool = False
) -> str:
    """The choices behind a model's layers; layers that differ in their index alone share a block.

    Args:
        backend: the one that prepared them.
        attentions: what each attention is, and what runs it.
        measure: also time the first layer of each block.

    Returns:
        A line for the backend, then for each kind its name with ``*`` for the index, how many
        layers it stands for, and every candidate with the reason for or against it.
    """
    kinds: dict[str, list[tuple[Decision, str]]] = {}
    for decision in backend.decisions:
        text = _without_index(decision.explain())
        # Sparse layers of one kind differ in the bytes that their notes state.
        kinds.setdefault(_FIGURE.sub("#", text), []).append((decision, text))
    dtype = str(backend.dtype).removeprefix("torch.")
    blocks = [f"backend {backend.name} on {backend.device}, activations {dtype}"]
    blocks += backend.remarks()
    for layers in kinds.values():
        decision, shown = layers[0]
        if measure:
            shown = _without_index(decision.explain(measure=True))
        heading, *rest = shown.splitlines()
        whose = "" if all(text == shown for _, text in layers) else "; figures of the first"
        times = f" ({len(layers)} layers{whose})" if len(layers) > 1 else ""
        blocks.append("\n".join([f"{heading}{times}", *rest]))
    alike = Counter((_without_index(name), note) for name, note in attentions)
    for (name, note), count in alike.items():
        times = f" ({count} layers)" if count > 1 else ""
        blocks.append(f"{name}{times}\n  -> {note}")
    return "\n".join(blocks)


def _without_index(text: str) -> str:
    return _INDEX.sub(".*.", text)
