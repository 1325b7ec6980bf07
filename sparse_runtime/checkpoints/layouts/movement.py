"""Movement pruning and its kin: dense ``X.weight`` beside ``X.mask_scores``.

Source: the movement-pruning research project of Hugging Face (arXiv 2005.10683), its masked BERT,
its binarizers and its script that turns the result into a plain BERT; block_movement_pruning, which
adds one score a block; contrastive pruning (CAP, arXiv 2112.07198), which saves the same files.
The encoder's linear layers are masked. config.json names the method, but not its threshold:

- ``topK``: the highest scores of each matrix are kept, int(threshold x size) of them.
- ``magnitude``: the same by the weights' magnitudes; there are no scores.
- ``threshold``, ``sigmoied_threshold``: what lies above it, of the latter after a sigmoid; where
  that is less than 0.5 % of a matrix, its highest scores instead.
- ``l0``: real gates, clamp(sigmoid(score) x 1.2 - 0.1, 0, 1).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..draft import Draft, LazyTensor
from ..errors import CheckpointError, listed
from ..naming import kind_of
from ..numbers import finite
from ..options import number, one_of
from .base import Layout

_METHODS = ("topK", "magnitude", "threshold", "sigmoied_threshold", "l0")
_SCORES = "mask_scores"
_MASKED_MODEL = "masked_bert"
_TRAINING_FIELDS = (
    *("pruning_method", "mask_init", "mask_scale", "mask_block_rows", "mask_block_cols"),
    *("ampere_pruning_method", "ampere_mask_init", "ampere_mask_scale"),
    *("shuffling_method", "in_shuffling_group", "out_shuffling_group"),
)
_OFF = (None, "disabled")


def _recognise(draft: Draft) -> str | None:
    scores = draft.names(rf".+\.{_SCORES}")
    if scores:
        return f"{len(scores)} tensors {listed(scores, 2)}"
    masked = draft.config.get("model_type") == _MASKED_MODEL
    return f"config.json has model_type {_MASKED_MODEL!r}" if masked else None


def _finalise(draft: Draft) -> None:
    _refuse_ampere(draft)
    scored = draft.modules(_SCORES)
    linears = [
        name.removesuffix(".weight")
        for name, tensor in draft.tensors.items()
        if kind_of(name, tensor.shape) == "encoder_linear"
    ]
    method = draft.config.get("pruning_method") or draft.options.ask(
        "pruning_method",
        one_of(*_METHODS),
        f"{draft.where}: config.json does not say by which method its scores became masks",
        "topK",
    )
    if method not in _METHODS:
        raise CheckpointError(
            f"{draft.where}: config.json: pruning_method {method!r}: expected one of "
            f"{', '.join(_METHODS)}; other methods are not supported"
        )
    if method == "magnitude" or scored:
        _refuse_integers(draft)
    if method == "magnitude":
        _require_modules(draft, scored, [])
        _mask_by_magnitude(draft, linears)
    elif scored:
        _require_modules(draft, scored, linears)
        _mask_by_scores(draft, scored, method)
    else:
        draft.steps.append(f"no {_SCORES} for {method}: the weights are masked already")
    _plain_config(draft)


def _refuse_ampere(draft: Draft) -> None:
    """2:4 patterns and shuffled dimensions of block_movement_pruning and nn_pruning."""
    more = draft.names(r".*(ampere|shuffler\.).*")
    fields = ("ampere_pruning_method", "shuffling_method")
    on = [f"{key}={draft.config[key]!r}" for key in fields if draft.config.get(key) not in _OFF]
    if more or on:
        raise CheckpointError(
            f"{draft.where}: 2:4 patterns and shuffled dimensions of movement pruning are not "
            f"supported ({listed([*more, *on])}); apply the masks with the library that trained it"
        )


def _refuse_integers(draft: Draft) -> None:
    quantized = [
        module
        for module, linear in draft.linears.items()
        if kind_of(f"{module}.weight", linear.shape) == "encoder_linear"
    ]
    if quantized:
        raise CheckpointError(
            f"{draft.where}: movement pruning masks floats, and {listed(quantized)} are integers "
            f"({listed(found.layout for found in draft.recognised[:-1])}); apply the masks before "
            "quantization"
        )


def _require_modules(draft: Draft, scored: list[str], expected: list[str]) -> None:
    differing = set(scored) ^ set(expected)
    if differing:
        raise CheckpointError(
            f"{draft.where}: expected {_SCORES} for "
            + ("each linear layer of the encoder and nothing else" if expected else "no module")
            + f", differing: {listed(differing)}; the file is incomplete or of another tool"
        )


def _threshold(draft: Draft, method: str) -> float:
    if method == "threshold":
        return draft.options.ask(
            "threshold",
            number(float("-inf"), float("inf")),
            f"{draft.where}: config.json does not say above which score weights are kept",
            "0.0",
        )
    share = method in ("topK", "magnitude")
    return draft.options.ask(
        "threshold",
        number(0, 1),
        f"{draft.where}: config.json does not say "
        + (
            f"what share of each matrix {method} keeps, such as 0.10 for a tenth"
            if share
            else "above which sigmoid(score) weights are kept, 0.1 in the papers"
        ),
        "0.10" if share else "0.1",
    )


def _mask_by_magnitude(draft: Draft, linears: list[str]) -> None:
    share = _threshold(draft, "magnitude")
    for module in linears:
        name = f"{module}.weight"
        draft.change(
            name,
            getattr(torch, draft.tensors[name].dtype),
            _masking_by_magnitude(name, share),
        )
    draft.steps.append(f"kept the {share:g} largest of each matrix in {len(linears)} modules")


def _masking_by_magnitude(name: str, share: float) -> Callable[[Tensor], Tensor]:
    # NaN is no magnitude, and would be masked.
    return lambda weight: torch.where(highest(finite(name, weight).abs(), share), weight, 0)


def _mask_by_scores(draft: Draft, modules: list[str], method: str) -> None:
    binarize, said = _binarizer(draft, method)
    for module in modules:
        scores, weight = draft.take(f"{module}.{_SCORES}"), f"{module}.weight"
        block = _block(draft, f"{module}.{_SCORES}", scores, draft.tensors[weight].shape)
        compute = _masking(f"{module}.{_SCORES}", scores, block, binarize)
        draft.change(weight, _dtype(draft, weight, method), compute)
    draft.steps.append(f"weight x {said} of its scores in {len(modules)} modules")


def _binarizer(draft: Draft, method: str) -> tuple[Callable[[Tensor], Tensor], str]:
    """Scores -> mask or gates, and what the report calls it."""
    if method == "l0":
        return l0_gates, "l0 gates clamp(1.2 sigmoid - 0.1, 0, 1), rounded to float32,"
    threshold = _threshold(draft, method)
    if method == "topK":
        return lambda scores: highest(scores, threshold), f"mask of the {threshold:g} highest"
    sigmoid = method == "sigmoied_threshold"
    compared = "sigmoid" if sigmoid else "score"
    return lambda scores: above(scores, threshold, sigmoid), f"mask {compared} > {threshold:g}"


def _block(draft: Draft, name: str, scores: LazyTensor, shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of weights that share one score."""
    rows, cols = (draft.config.get(f"mask_block_{side}") or 1 for side in ("rows", "cols"))
    if type(rows) is not int or type(cols) is not int:
        raise CheckpointError(
            f"{draft.where}: config.json: expected integers as mask_block_rows and "
            f"mask_block_cols, got {rows!r} and {cols!r}"
        )
    if len(scores.shape) != 2 or (scores.shape[0] * rows, scores.shape[1] * cols) != shape:
        raise CheckpointError(
            f"{name}: expected one score for each block of {rows}x{cols} weights, as config.json "
            f"has it, of a weight {list(shape)}, got {list(scores.shape)}; scores of rows, columns "
            "or other blocks (nn_pruning) are not supported: apply them with the library that "
            "trained it"
        )
    return rows, cols


def _dtype(draft: Draft, weight: str, method: str) -> torch.dtype:
    return torch.float32 if method == "l0" else getattr(torch, draft.tensors[weight].dtype)


def _masking(
    name: str, scores: LazyTensor, block: tuple[int, int], binarize: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    def masked(weight: Tensor) -> Tensor:
        mask = binarize(finite(name, scores.load()))
        mask = mask.repeat_interleave(block[0], dim=0).repeat_interleave(block[1], dim=1)
        if mask.dtype == torch.bool:
            return torch.where(mask, weight, 0)
        return torch.where(mask == 0, 0, weight.to(torch.float32) * mask)

    return masked


def highest(scores: Tensor, share: float) -> Tensor:
    """Mask of the int(share x size) highest entries; of equal ones the first."""
    flat, count = scores.flatten(), int(share * scores.numel())
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    bound = flat.kthvalue(flat.numel() - count + 1).values
    mask = flat > bound
    equal = (flat == bound).nonzero().flatten()
    mask[equal[: count - int(mask.sum())]] = True
    return mask.reshape(scores.shape)


def above(scores: Tensor, threshold: float, sigmoid: bool) -> Tensor:
    """Mask of what lies above the threshold, or of the highest 0.5 % where less does."""
    mask = (torch.sigmoid(scores) if sigmoid else scores) > threshold
    least = int(0.005 * scores.numel()) + 1
    if int(mask.sum()) < least:
        return scores > scores.flatten().kthvalue(max(scores.numel() - least, 1)).values
    return mask


def l0_gates(scores: Tensor) -> Tensor:
    """The gates of a hard concrete distribution at test time, float32 from 0 to 1."""
    low, high = -0.1, 1.1
    return (torch.sigmoid(scores.to(torch.float32)) * (high - low) + low).clamp(0.0, 1.0)


def _plain_config(draft: Draft) -> None:
    """Leave a configuration that transformers knows."""
    for field in _TRAINING_FIELDS:
        draft.config.pop(field, None)
    if draft.config.get("model_type") != _MASKED_MODEL:
        return
    draft.config["model_type"] = "bert"
    classes = draft.config.get("architectures") or []
    draft.config["architectures"] = [str(name).removeprefix("Masked") for name in classes]
    draft.steps.append(f"model_type {_MASKED_MODEL!r} is 'bert'")


LAYOUT = Layout("movement pruning", _recognise, _finalise)
