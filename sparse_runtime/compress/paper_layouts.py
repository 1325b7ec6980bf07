"""A trained model in the files that each paper's own code would have left."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..checkpoints import open_checkpoint
from ..spec import ValueSpec
from ..testing.exporters.directory import write_directory
from ..testing.exporters.intel_masks import RAW_FILE, export_intel_masks
from ..testing.exporters.intel_qat import export_intel_qat
from ..testing.exporters.movement import export_scores
from ..testing.exporters.nxm import export_nxm
from ..testing.exporters.structured_masks import export_mask_buffers
from ..testing.exporters.unused_layers import export_unused_layer
from .masks import transforms
from .patterns import Pattern
from .targets import encoder_linears, layers
from .trained import Trained
from .writing import new_directory

NXM_PATTERNS = ("1:4", "2:8", "1:2", "2:4", "4:8")
"""What layout "nxm" can say of a pattern, the tightest first."""

MASKED_MODEL_TYPE = "bert"
"""What layout "cap" holds: the authors' code has no other masked model."""

_NXM_FILE = "nxm_config.json"
_PAPERS_THRESHOLD = 0.1  # of the sigmoids of scores

Layout = Literal[
    "prune-ofa", "prune-ofa-qat", "sparsebert", "group-lasso", "nxm", "cap", "cap-structured"
]


def export_paper_layout(
    model: nn.Module, out_dir: str | os.PathLike[str], *, layout: str
) -> dict[str, Any]:
    """Write a trained model as a paper's own code saves it, and check that it opens as the same.

    ===================  ==========================================================================
    layout               files
    ===================  ==========================================================================
    prune-ofa            Prune Once for All: ``weight_original`` and ``weight_mask`` in
                         ``raw_pytorch_model.bin``, beside a plain ``pytorch_model.bin``
    prune-ofa-qat        the same after quantization-aware training: weights beside the quantizers
                         of weights (int8, one scale), inputs and outputs (static uint8)
    sparsebert           zeros baked in, and the layer ``fit_dense`` that inference never calls
    group-lasso          a plain checkpoint, zeros baked in
    nxm                  NxMiFormer: weights before projection, and the JSON to project them by
    cap                  contrastive and movement pruning: dense weights and ``mask_scores``
    cap-structured       dense weights, ``head_mask`` and ``intermediate_mask``
    ===================  ==========================================================================

    Of quantized ``nxm`` the pattern is checked: its integers are by the paper's scales, not ours.

    Args:
        model: of transformers, with our masks and quantizers still on it; without them its zeros
            are taken for masks.
        out_dir: a new or an empty directory.
        layout: one of the above.

    Returns:
        What ``finalise`` of ``convert`` and ``inspect`` must be told of the files.

    Raises:
        FileExistsError: there is something in ``out_dir``.
        ValueError: the layout cannot hold the model; the message says what it cannot.
    """
    if layout not in _WRITERS:
        raise ValueError(f"layout {layout!r}: expected one of {', '.join(_WRITERS)}")
    trained, target = Trained.of(model), Path(out_dir).expanduser()
    with new_directory(target) as staging:
        options = _WRITERS[layout](trained, staging)
        _verify(trained, staging, options, layout)
    return {
        name: str(target / said.name) if isinstance(said, Path) else said
        for name, said in options.items()
    }


def _prune_ofa(trained: Trained, directory: Path) -> dict[str, Any]:
    trained.refuse_quantized("prune-ofa")
    originals = {f"{name}.weight": trained.dense[name] for name in trained.masks}
    write_directory(directory, trained.config, trained.tensors)
    export_intel_masks(directory, trained.config, trained.tensors, originals=originals)
    return {"file": RAW_FILE}


def _prune_ofa_qat(trained: Trained, directory: Path) -> dict[str, Any]:
    if not trained.quantization:
        raise ValueError("layout 'prune-ofa-qat': expected fake-quantized layers, got none")
    stated = {}
    for name, one in trained.quantization.items():
        inputs = one.activations
        is_int8 = one.values == ValueSpec("int8", "tensor")
        if inputs is None or inputs.scheme != "static" or not is_int8:
            raise ValueError(
                f"layout 'prune-ofa-qat': {name}: expected int8 with one scale a tensor and static "
                f"inputs, got {one.values.dtype}, scales {one.values.scales!r} and "
                f"{'float' if inputs is None else inputs.scheme} inputs"
            )
        stated[name] = (float(one.scales), inputs, one.outputs)
    export_intel_qat(directory, trained.config, trained.tensors, stated)
    return {}


def _sparsebert(trained: Trained, directory: Path) -> dict[str, Any]:
    trained.refuse_quantized("sparsebert")
    export_unused_layer(directory, trained.config, trained.tensors, "fit_dense")
    return {}


def _group_lasso(trained: Trained, directory: Path) -> dict[str, Any]:
    trained.refuse_quantized("group-lasso")
    write_directory(directory, trained.config, trained.tensors)
    return {}


def _nxm(trained: Trained, directory: Path) -> dict[str, Any]:
    pattern, weights = _group_of(trained)
    arguments: dict[str, int] = {}
    if pattern is not None:
        arguments |= {"N": pattern.structure.m, "M": pattern.structure.n}
    if trained.quantization:
        found = {one.values for one in trained.quantization.values()}
        if len(found) != 1 or trained.quantization.keys() != encoder_linears(trained.model).keys():
            raise ValueError("layout 'nxm': expected every encoder layer quantized alike")
        (values,) = found
        if values.granularity not in ("tensor", "chunk"):
            raise ValueError(
                f"layout 'nxm': expected scales 'tensor' or 'chunk:R', got {values.scales!r}"
            )
        arguments |= {"precision": values.bits, "chunk_size": values.chunk_rows or -1}
    kinds = {(True, True): "NxM_ADMM_STE", (True, False): "NxM", (False, True): "STE"}
    kind = kinds.get((pattern is not None, bool(trained.quantization)))
    if kind is None:
        raise ValueError("layout 'nxm': expected N:M masks or quantized layers, got neither")
    file = directory / _NXM_FILE
    tensors = {**trained.tensors, **{f"{name}.weight": one for name, one in weights.items()}}
    export_nxm(directory, trained.config, tensors, kind, file, **arguments)
    return {"nxm": file}


def _group_of(trained: Trained) -> tuple[Pattern | None, dict[str, Tensor]]:
    """The N:M pattern of the masks, None where nothing is masked, and weights to find it in."""
    if all(bool(mask.all()) for mask in trained.masks.values()):
        return None, trained.dense
    left = {
        name: torch.where(trained.masks[name], weight, 0.0) if name in trained.masks else weight
        for name, weight in trained.dense.items()
    }
    # A mask that was fixed early is not by magnitude any more: then what it leaves is written.
    for weights in (trained.dense, left):
        # What a tight one leaves fits the others too.
        for text in NXM_PATTERNS:
            pattern = Pattern.parse(text)
            if all(
                torch.equal(_projected(weights[name], pattern), left[name])
                for name in trained.masks
            ):
                return pattern, weights
    raise ValueError(
        "layout 'nxm': expected masks that keep 2:4, 1:4, 1:2, 4:8 or 2:8 weights of each group, "
        "which is what it can say; got others"
    )


def _projected(weight: Tensor, pattern: Pattern) -> Tensor:
    return torch.where(pattern.mask(weight.abs()), weight, 0.0)


def _cap(trained: Trained, directory: Path) -> dict[str, Any]:
    trained.refuse_quantized("cap")
    kind = trained.config["model_type"]
    if kind != MASKED_MODEL_TYPE:
        raise ValueError(f"layout 'cap': expected a model of type {MASKED_MODEL_TYPE}, got {kind}")
    scores, block = {}, (1, 1)
    for name, mask in trained.masks.items():
        # Without learned scores: on both sides of every threshold in use, sigmoid(-3) below 0.1.
        scores[name] = torch.where(mask, 3.0, -3.0)
        for transform in transforms(trained.model.get_submodule(name)):
            learned = getattr(transform, "scores", None)
            if isinstance(learned, Tensor):
                scores[name] = learned.detach()
        rows, cols = scores[name].shape
        block = (mask.shape[0] // rows, mask.shape[1] // cols)
    kept = {name: mask[:: block[0], :: block[1]] for name, mask in trained.masks.items()}
    share = _common_share(kept)
    method = "sigmoied_threshold" if share is None else "topK"
    threshold = _common_threshold(kept, scores) if share is None else share
    if threshold is None:
        # Ours rounds what is removed, topK what is kept: 97 % of BERT-base's is no common share.
        scores = {name: _apart(scores[name], mask) for name, mask in kept.items()}
        threshold = _PAPERS_THRESHOLD
    tensors = trained.with_dense()
    export_scores(directory, trained.config, tensors, method, scores, block=block)
    return {"threshold": threshold}


def _common_share(kept: Mapping[str, Tensor]) -> float | None:
    """The one share of which int(share x size) scores are kept of each matrix, if there is one."""
    lowest, highest = 0.0, math.inf
    for mask in kept.values():
        lowest = max(lowest, int(mask.sum()) / mask.numel())
        highest = min(highest, (int(mask.sum()) + 1) / mask.numel())
    return min((lowest + highest) / 2, 1.0) if lowest < highest else None


def _apart(scores: Tensor, kept: Tensor) -> Tensor:
    """In their order, those that are kept moved to 3 and above, the others to -3 and below."""
    moved = scores.clone()
    if kept.any():
        moved[kept] += 3 - scores[kept].min()
    if not kept.all():
        moved[~kept] -= 3 + scores[~kept].max()
    return moved


def _common_threshold(kept: Mapping[str, Tensor], scores: Mapping[str, Tensor]) -> float | None:
    """What the sigmoids of kept scores alone are above, 0.1 as in the papers if it is; or None."""
    highest, lowest = 0.0, 1.0
    for name, mask in kept.items():
        sigmoids = scores[name].sigmoid()
        if not mask.all():
            highest = max(highest, float(sigmoids[~mask].max()))
        # At 0.5 % the papers keep the best, wherever the threshold is.
        if int(mask.sum()) > int(0.005 * mask.numel()) + 1:
            lowest = min(lowest, float(sigmoids[mask].min()))
    if highest >= lowest:
        return None
    paper = highest <= _PAPERS_THRESHOLD < lowest
    return _PAPERS_THRESHOLD if paper else (highest + lowest) / 2


def _cap_structured(trained: Trained, directory: Path) -> dict[str, Any]:
    trained.refuse_quantized("cap-structured")
    heads, neurons = _structured_masks(trained)
    export_mask_buffers(directory, trained.config, trained.with_dense(), heads, neurons)
    return {}


def _structured_masks(trained: Trained) -> tuple[Tensor, Tensor]:
    """float32 [layers, heads] and [layers, neurons]: 0 where nothing reads one any more."""
    count = trained.config.get("num_attention_heads") or trained.config["n_heads"]
    heads, neurons = [], []
    for layer in layers(trained.model):
        context = trained.tensors[f"{layer.names['attention_output']}.weight"]
        heads.append((context != 0).any(0).view(count, -1).any(1))
        neurons.append((trained.tensors[f"{layer.names['ffn_out']}.weight"] != 0).any(0))
    return torch.stack(heads).float(), torch.stack(neurons).float()


def _verify(trained: Trained, directory: Path, options: dict[str, Any], layout: str) -> None:
    """Raise ValueError unless the files open as the model."""
    checkpoint = open_checkpoint(directory, finalise=options)
    unread = _unread_rows(trained) if layout == "cap-structured" else {}
    for name in encoder_linears(trained.model):
        expected = trained.tensors[f"{name}.weight"].cpu()
        if name in unread:
            expected = torch.where(unread[name].unsqueeze(1), 0.0, expected)
        if name in checkpoint.linears:
            linear = checkpoint.linears[name]
            stored = linear.load()
            spread = linear.values.spread(stored.scales, *linear.shape)
            found = stored.weight * spread
        else:
            found = checkpoint.tensors[f"{name}.weight"]
        if layout == "nxm" and trained.quantization:
            # What rounds to zero is for the scale to say; what is pruned is zero in both.
            same = not bool(found[~trained.masks[name].cpu()].any())
        else:
            same = torch.equal(found, expected)
        if not same:
            raise ValueError(
                f"layout {layout!r}: {name} would open as another weight than the one that was "
                "trained, for the layout cannot say how it was pruned; use write_checkpoint"
            )


def _unread_rows(trained: Trained) -> dict[str, Tensor]:
    """Bool [out] by layer: rows that only removed heads and neurons read, which become zeros."""
    heads, neurons = _structured_masks(trained)
    found = {}
    for layer, alive, inner in zip(layers(trained.model), heads, neurons, strict=True):
        size = layer.linears["value"].out_features // alive.numel()
        for part in ("query", "key", "value"):
            found[layer.names[part]] = (alive == 0).repeat_interleave(size).cpu()
        found[layer.names["ffn_in"]] = (inner == 0).cpu()
    return found


_WRITERS: dict[str, Callable[[Trained, Path], dict[str, Any]]] = {
    "prune-ofa": _prune_ofa,
    "prune-ofa-qat": _prune_ofa_qat,
    "sparsebert": _sparsebert,
    "group-lasso": _group_lasso,
    "nxm": _nxm,
    "cap": _cap,
    "cap-structured": _cap_structured,
}
