"""CoFi: layers of different sizes, without halves, and a smaller hidden size.

Source: princeton-nlp/CoFiPruning, "Structured Pruning Learns Compact and Accurate Models",
arXiv 2204.00408. Published models are cut: config.json keeps the sizes of the model before, the
tensors have their own. Where a half has lost everything its linear layers are gone, and the network
passes its input on; its norm may be left in the file and is never called. A directory of the
training itself holds the whole model and its masks in ``zs.pt``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..containers import load_tensors
from ..draft import Draft
from ..errors import CheckpointError, listed
from .base import Layout
from .blocks import (
    BERT_ATTENTION,
    BERT_FEED_FORWARD,
    Block,
    features_of_a_head,
    find_stack,
    heads_in_tensors,
    positive,
    read_pruned_heads,
    shape_of,
)
from .cofi_masks import Masks, apply_masks, read_masks

_FAMILIES = ("bert", "roberta")
_CLASS = "CoFi"
_MASKS, _MODULE = "zs.pt", "l0_module.pt"
_WORDS = r"(\w+\.)?embeddings\.word_embeddings\.weight"


def _recognise(draft: Draft) -> str | None:
    stack = find_stack(draft)
    if draft.config.get("model_type") not in _FAMILIES or stack is None:
        return None
    signs = [f"class {name}" for name in _classes(draft) if name.startswith(_CLASS)]
    signs += [f"file {file}" for file in (_MASKS, _MODULE) if (draft.directory / file).is_file()]
    empty = _without_heads(draft)
    if empty:
        signs.append(f"pruned_heads lists all heads of {len(empty)} layers")
    narrow = _hidden(draft)
    if narrow is not None and narrow != draft.config.get("hidden_size"):
        queries = draft.names(rf".+\.{re.escape(BERT_ATTENTION.before[0])}\.weight")
        # Alone, a smaller width may as well be the wrong config.json. But whole models have square
        # queries, and where heads and channels were removed one by one they are not.
        if any(draft.tensors[name].shape[0] != narrow for name in queries):
            signs.append(f"{narrow} hidden channels in tensors")
    return ", ".join(signs) or None


def _finalise(draft: Draft) -> None:
    classes = _classes(draft)
    if classes:
        draft.config["architectures"] = [name.removeprefix(_CLASS) for name in classes]
    masks = _masks(draft)
    if masks is not None:
        apply_masks(draft, masks)
    _state_hidden_size(draft)
    _state_absent_halves(draft)
    _count_heads(draft)


def _classes(draft: Draft) -> list[str]:
    return [str(name) for name in draft.config.get("architectures") or []]


def _hidden(draft: Draft) -> int | None:
    """Channels of the hidden states, by the word embeddings."""
    names = draft.names(_WORDS)
    return draft.tensors[names[0]].shape[-1] if names else None


def _without_heads(draft: Draft) -> list[int]:
    """Layers of which config.json lists every head as pruned, and the file holds none."""
    pruned: Any = draft.config.get("pruned_heads")
    heads = draft.config.get("num_attention_heads")
    if not pruned or type(heads) is not int:
        return []
    stack, output = find_stack(draft), BERT_ATTENTION.after
    return [
        i
        for i, lost in read_pruned_heads(draft).items()
        if len(lost) == heads and shape_of(draft, f"{stack}.{i}.{output}") is None
    ]


def _is_whole(draft: Draft) -> bool:
    """Whether no layer has lost anything yet."""
    hidden, inner = positive(draft, "hidden_size"), positive(draft, "intermediate_size")
    wanted = {name: (hidden, hidden) for name in BERT_ATTENTION.linears}
    wanted |= {
        BERT_FEED_FORWARD.before[0]: (inner, hidden),
        BERT_FEED_FORWARD.after: (hidden, inner),
    }
    stack = find_stack(draft)
    return all(
        shape_of(draft, f"{stack}.{i}.{name}") == shape
        for i in range(positive(draft, "num_hidden_layers"))
        for name, shape in wanted.items()
    )


def _masks(draft: Draft) -> Masks | None:
    """The masks of a training run; None for a model that is cut already, or was never pruned."""
    path, module = draft.directory / _MASKS, draft.directory / _MODULE
    tensors, whole = load_tensors(path) if path.is_file() else None, _is_whole(draft)
    if tensors is None:
        # What has no masks is saved as a None by the same code.
        known = not path.is_file() if not module.is_file() else not _holds_module(module)
        if whole and not known:
            raise CheckpointError(
                f"{draft.where}: its weights are whole, and their masks lie in {_MODULE}, a "
                "pickled module, which is never loaded; where you trust it, write what "
                f"l0_module.forward(training=False) gives with torch.save to {_MASKS} beside it"
            )
        return None
    if not whole:
        raise CheckpointError(
            f"{draft.where}: {_MASKS} holds masks, but the weights are not as large as config.json "
            f"says; remove {_MASKS} if they have been cut by it already"
        )
    return read_masks(draft, _MASKS, tensors)


def _holds_module(path: Path) -> bool:
    """Whether there is more in a file than a None, which is all that the unpickler would make."""
    try:
        return load_tensors(path) is not None
    except CheckpointError:
        return True


def _state_hidden_size(draft: Draft) -> None:
    hidden, heads = positive(draft, "hidden_size"), positive(draft, "num_attention_heads")
    kept = _hidden(draft)
    if kept is None or kept == hidden:
        return
    if kept > hidden or hidden % heads:
        raise CheckpointError(
            f"{draft.where}: config.json: hidden_size {hidden}: expected that of the model before "
            f"pruning, a multiple of {heads} heads and at least the {kept} channels of the tensors"
        )
    draft.config["hidden_size"] = kept
    draft.head_size = hidden // heads
    draft.steps.append(
        f"hidden_size is {kept}, as the tensors have it, not {hidden}; heads keep "
        f"{draft.head_size} features"
    )


def _state_absent_halves(draft: Draft) -> None:
    stack, pruned = find_stack(draft), read_pruned_heads(draft)
    heads = positive(draft, "num_attention_heads")
    for i in range(positive(draft, "num_hidden_layers")):
        layer, lost = f"{stack}.{i}", pruned.get(i, [])
        held = {half: _held(draft, layer, half) for half in (BERT_ATTENTION, BERT_FEED_FORWARD)}
        norm_alone = {half: not held[half] and _has_norm(draft, layer, half) for half in held}
        if not held[BERT_ATTENTION]:
            proven = len(lost) == heads or (norm_alone[BERT_ATTENTION] and not lost)
            _drop_half(draft, layer, "attention", BERT_ATTENTION, proven)
        if not held[BERT_FEED_FORWARD]:
            proven = norm_alone[BERT_FEED_FORWARD] or bool(held[BERT_ATTENTION])
            _drop_half(draft, layer, "ffn", BERT_FEED_FORWARD, proven)
    if draft.absent:
        draft.steps.append(
            f"absent, and passed by as in CoFi's network: {listed(draft.absent, len(draft.absent))}"
        )


def _count_heads(draft: Draft) -> None:
    """Check the heads of each layer that has any against the list, which is not needed any more.

    CoFi's own loading counts heads in tensors, cuts a new network down to that number from the end,
    and adds what it has cut to the list: a model that was loaded and trained further lists more
    heads than it lost. Which they were changes nothing of what runs.
    """
    stack, heads = find_stack(draft), positive(draft, "num_attention_heads")
    size = features_of_a_head(draft)
    pruned, longer = read_pruned_heads(draft), []
    draft.config.pop("pruned_heads", None)
    for i in range(positive(draft, "num_hidden_layers")):
        layer, lost = f"{stack}.{i}", pruned.get(i, [])
        if f"{layer}.attention" in draft.absent:
            continue
        left = heads_in_tensors(draft, layer, BERT_ATTENTION, size)
        # Only where something is cut does loading cut again.
        if pruned and (len(lost) < heads - left or (lost and left == heads)):
            raise CheckpointError(
                f"{layer}: config.json lists pruned_heads {lost} of {heads}, which leaves "
                f"{heads - len(lost)}, but its tensors hold {left}; take config.json and weights "
                "of the same model"
            )
        if len(lost) > heads - left:
            longer.append(str(i))
    if longer:
        draft.steps.append(
            f"pruned_heads lists more heads of layers {', '.join(longer)} than their tensors have "
            "lost: as in CoFi's own loading, the tensors count"
        )


def _held(draft: Draft, layer: str, half: Block) -> list[str]:
    """Tensors of a half's linear layers: all or none.

    Raises:
        CheckpointError: some of them are missing.
    """
    names = [f"{layer}.{module}.{part}" for module in half.linears for part in ("weight", "bias")]
    held = [
        name
        for name in names
        if name in draft.tensors or name.removesuffix(".weight") in draft.linears
    ]
    if held and len(held) < len(names):
        raise CheckpointError(
            f"{layer}: expected all or none of its {', '.join(half.linears)}, got no "
            f"{listed({*names} - {*held})}; the file is incomplete"
        )
    return held


def _has_norm(draft: Draft, layer: str, half: Block) -> bool:
    return all(f"{layer}.{half.norm}.{part}" in draft.tensors for part in ("weight", "bias"))


def _drop_half(draft: Draft, layer: str, part: str, half: Block, proven: bool) -> None:
    if not proven:
        raise CheckpointError(
            f"{layer}.{part}: expected {', '.join(half.linears)}, got none, and nothing shows that "
            "they were pruned: neither pruned_heads of config.json with all heads, nor what CoFi "
            "leaves of such a layer; the file is incomplete"
        )
    draft.drop(
        draft.names(re.escape(f"{layer}.{half.norm}") + r"\.(weight|bias)"),
        "the norm of a half that was pruned, which the network passes by",
    )
    draft.absent.append(f"{layer}.{part}")


LAYOUT = Layout("CoFi", _recognise, _finalise)
