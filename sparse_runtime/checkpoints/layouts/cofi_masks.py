"""CoFi's masks, multiplied into the weights and cut away where they are 0.

Source: princeton-nlp/CoFiPruning, ``update_params`` and ``prune_model_with_z`` of cofi_utils.py, by
which the authors turn a training run into the model that they evaluate: the same products in the
same order, in float32. Its masked training network multiplies hidden states by ``hidden_z`` at more
places (norms' outputs, and so the residuals; the bias of the second feed-forward layer): the two
agree where ``hidden_z`` is 0 or 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..draft import Draft
from ..errors import CheckpointError, listed
from ..numbers import finite
from .blocks import BERT_ATTENTION, BERT_FEED_FORWARD, find_stack, positive

# An axis of a tensor, or None for all of it, and what multiplies it.
_Scale = tuple[int | None, Tensor | None]
_GONE = "a mask of zs.pt is 0 for all of it"


@dataclass(frozen=True)
class Masks:
    """float32 from 0 to 1; None where a kind was not pruned.

    Attributes:
        head_z: [layers, heads].
        head_layer_z: [layers].
        intermediate_z: [layers, neurons].
        mlp_z: [layers].
        hidden_z: [hidden size].
    """

    head_z: Tensor | None = None
    head_layer_z: Tensor | None = None
    intermediate_z: Tensor | None = None
    mlp_z: Tensor | None = None
    hidden_z: Tensor | None = None


def read_masks(draft: Draft, file: str, tensors: Mapping[str, Tensor]) -> Masks:
    """Check the masks of a file against config.json.

    Raises:
        CheckpointError: they are others than CoFi's, or of another model.
    """
    layers = positive(draft, "num_hidden_layers")
    hidden, heads = positive(draft, "hidden_size"), positive(draft, "num_attention_heads")
    shapes = {
        "head_z": (layers, heads),
        "head_layer_z": (layers,),
        "intermediate_z": (layers, positive(draft, "intermediate_size")),
        "mlp_z": (layers,),
        "hidden_z": (hidden,),
    }
    unknown = tensors.keys() - shapes.keys()
    if unknown or not tensors:
        raise CheckpointError(
            f"{file}: expected CoFi's masks {', '.join(shapes)}, got "
            f"{listed(unknown or tensors)}; it was written by something else"
        )
    for name, whole in (("head_layer_z", "head_z"), ("mlp_z", "intermediate_z")):
        # The published conversion ignores it then.
        if name in tensors and whole not in tensors:
            raise CheckpointError(f"{file}: expected {whole} beside {name}, got none")
    if hidden % heads:
        raise CheckpointError(
            f"{draft.where}: config.json: hidden_size {hidden}: expected a multiple of {heads} "
            "heads, as in the model before pruning"
        )
    return Masks(**{name: _mask(file, name, t, shapes[name]) for name, t in tensors.items()})


def _mask(file: str, name: str, mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    # Axes of length 1 fit it to what it multiplies.
    if [s for s in mask.shape if s != 1] != [s for s in shape if s != 1]:
        raise CheckpointError(
            f"{file}: {name}: expected {list(shape)}, with or without axes of 1, got "
            f"{list(mask.shape)}; it belongs to another model"
        )
    mask = finite(f"{file}: {name}", mask).reshape(shape).to(torch.float32)
    if not bool(((mask >= 0) & (mask <= 1)).all()):
        raise CheckpointError(f"{file}: {name}: expected numbers from 0 to 1, got others")
    if name == "hidden_z" and not mask.any():
        raise CheckpointError(f"{file}: {name}: expected a channel that is left, got only zeros")
    return mask


def apply_masks(draft: Draft, masks: Masks) -> None:
    """Fold the masks into whole weights, and remove what they have at 0.

    What is left is what CoFi publishes: smaller tensors, halves without their linear layers, and
    ``pruned_heads`` in config.json.

    Raises:
        CheckpointError: tensors are missing, or a head reads hidden channels in a way that is not
            known to CoFi.
    """
    stack = find_stack(draft)
    assert stack is not None
    base = stack.removesuffix("encoder.layer")
    kept = None if masks.hidden_z is None else masks.hidden_z != 0
    cut = _Cutter(draft)
    pruned: dict[str, list[int]] = {}
    neurons = 0
    for i in range(positive(draft, "num_hidden_layers")):
        lost = _cut_attention(cut, f"{stack}.{i}", masks, i, kept)
        pruned |= {str(i): lost} if lost else {}
        neurons += _cut_feed_forward(cut, f"{stack}.{i}", masks, i, kept)
    channels = 0
    if masks.hidden_z is not None and kept is not None:
        _cut_outside(cut, base, masks.hidden_z, kept)
        channels = int((~kept).sum())
    draft.config["pruned_heads"] = pruned
    draft.steps.append(
        f"folded {', '.join(name for name, z in vars(masks).items() if z is not None)} of zs.pt "
        "into the weights, as CoFi's own conversion does, and cut away what they have at 0: "
        f"{sum(map(len, pruned.values()))} heads, {neurons} neurons, {channels} hidden channels"
    )


class _Cutter:
    """Replaces tensors by scaled and smaller ones."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.done: set[str] = set()

    def cut(
        self, name: str, *scales: _Scale, keep: Mapping[int, Tensor | None] | None = None
    ) -> None:
        """Multiply in the given order, then keep of each axis what is True; None: all.

        Raises:
            CheckpointError: the file does not hold it, not in floats, or in another size.
        """
        factors = [(axis, factor) for axis, factor in scales if factor is not None]
        kept = {axis: places for axis, places in (keep or {}).items() if places is not None}
        before = self.draft.take_float(name)
        along = [*kept.items(), *((a, f) for a, f in factors if a is not None)]
        for axis, size in ((axis, len(entries)) for axis, entries in along):
            if before.shape[axis : axis + 1] != (size,):
                raise CheckpointError(
                    f"{name}: expected {size} entries along axis {axis}, as its mask in zs.pt has, "
                    f"got {list(before.shape)}; the file is damaged"
                )
        indices = {axis: places.nonzero().flatten() for axis, places in kept.items()}
        shape = tuple(
            len(indices[a]) if a in indices else size for a, size in enumerate(before.shape)
        )
        dtype = torch.float32 if factors else getattr(torch, before.dtype)

        def load() -> Tensor:
            tensor = before.load().to(dtype)
            for axis, factor in factors:
                tensor = tensor * (factor if axis is None else _along(factor, axis, tensor.ndim))
            for axis, index in indices.items():
                tensor = tensor.index_select(axis, index)
            return tensor

        self.draft.put(name, shape, dtype, load)
        self.done.add(name)

    def drop(self, *modules: str) -> None:
        """Leave linear layers out."""
        names = [f"{module}.{part}" for module in modules for part in ("weight", "bias")]
        self.draft.drop(names, _GONE)


def _along(factor: Tensor, axis: int, ndim: int) -> Tensor:
    return factor.unsqueeze(1) if ndim == 2 and axis == 0 else factor


def _row(mask: Tensor | None, layer: int) -> Tensor | None:
    return None if mask is None else mask[layer]


def _together(parts: Tensor | None, whole: Tensor | None) -> Tensor | None:
    return parts if parts is None or whole is None else parts * whole


def _cut_attention(
    cut: _Cutter, layer: str, masks: Masks, i: int, kept: Tensor | None
) -> list[int]:
    """The heads that go."""
    names = [f"{layer}.{name}" for name in BERT_ATTENTION.linears]
    heads, all_heads = _row(masks.head_z, i), _row(masks.head_layer_z, i)
    left, rows, factor = _together(heads, all_heads), None, None
    hidden = masks.hidden_z
    lost: list[int] = []
    if heads is not None and left is not None:
        lost = (left == 0).nonzero().flatten().tolist()
        if len(lost) == len(heads):
            cut.drop(*names)
            return lost
        size = positive(cut.draft, "hidden_size") // len(heads)
        rows = (left != 0).repeat_interleave(size)
        factor = heads.repeat_interleave(size)
    *queries_keys, value, output = names
    for name in queries_keys:
        cut.cut(f"{name}.weight", (1, hidden), keep={0: rows, 1: kept})
        cut.cut(f"{name}.bias", keep={0: rows})
    cut.cut(f"{value}.weight", (0, factor), (1, hidden), keep={0: rows, 1: kept})
    cut.cut(f"{value}.bias", (0, factor), keep={0: rows})
    cut.cut(f"{output}.weight", (None, all_heads), (0, hidden), keep={0: kept, 1: rows})
    cut.cut(f"{output}.bias", (None, all_heads), (0, hidden), keep={0: kept})
    return lost


def _cut_feed_forward(cut: _Cutter, layer: str, masks: Masks, i: int, kept: Tensor | None) -> int:
    """How many neurons go."""
    first, second = (f"{layer}.{name}" for name in BERT_FEED_FORWARD.linears)
    neurons, all_neurons = _row(masks.intermediate_z, i), _row(masks.mlp_z, i)
    left, rows = _together(neurons, all_neurons), None
    hidden = masks.hidden_z
    if left is not None:
        rows = left != 0
        if not rows.any():
            cut.drop(first, second)
            return len(left)
    cut.cut(f"{first}.weight", (1, hidden), keep={0: rows, 1: kept})
    cut.cut(f"{first}.bias", keep={0: rows})
    scales = (1, neurons), (None, all_neurons), (0, hidden)
    cut.cut(f"{second}.weight", *scales, keep={0: kept, 1: rows})
    cut.cut(f"{second}.bias", (None, all_neurons), keep={0: kept})
    return 0 if rows is None else int((~rows).sum())


def _cut_outside(cut: _Cutter, base: str, hidden: Tensor, kept: Tensor) -> None:
    """Embeddings, norms and heads."""
    draft = cut.draft
    for table in ("word", "position", "token_type"):
        cut.cut(f"{base}embeddings.{table}_embeddings.weight", (1, hidden), keep={1: kept})
    for name in draft.names(r".*\.LayerNorm\.(weight|bias)"):
        cut.cut(name, keep={0: kept})
    for name in (f"{base}pooler.dense.weight", "qa_outputs.weight"):
        if name in draft.tensors:
            cut.cut(name, (1, hidden), keep={1: kept})
    if "classifier.dense.weight" in draft.tensors:
        cut.cut("classifier.dense.weight", keep={1: kept})
    # What reads a pooler or a classifier's first layer sees as many features as before.
    after = {"qa_outputs.bias", f"{base}pooler.dense.bias", "classifier.dense.bias"}
    if cut.done & {f"{base}pooler.dense.weight", "classifier.dense.weight"}:
        after |= {f"classifier{part}.{p}" for part in ("", ".out_proj") for p in ("weight", "bias")}
    strange = draft.tensors.keys() - cut.done - after
    if strange:
        raise CheckpointError(
            f"{draft.where}: zs.pt prunes hidden channels, and CoFi's conversion does not say what "
            f"becomes of {listed(strange)}; it knows sequence classification and question answering"
        )
