"""Post-training structured pruning: ``head_mask.pt`` and ``neuron_mask.pt`` beside a checkpoint.

Source: Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", arXiv 2204.09656.
Each file is one tensor of real numbers, [layers, heads] and [layers, intermediate size].
"""

from __future__ import annotations

from pathlib import Path

from ..containers import load_tensor
from ..draft import Draft, LazyTensor
from ..errors import CheckpointError, listed
from .base import Layout
from .fold import fold_masks

_FILES = ("head_mask.pt", "neuron_mask.pt")


def _recognise(draft: Draft) -> str | None:
    found = [file for file in _FILES if (draft.directory / file).is_file()]
    return f"files {listed(found)}" if found else None


def _finalise(draft: Draft) -> None:
    missing = [file for file in _FILES if not (draft.directory / file).is_file()]
    if missing:
        raise CheckpointError(
            f"{draft.where}: expected {' and '.join(_FILES)} together, got no {missing[0]}; save a "
            "mask of ones where nothing of a kind was pruned"
        )
    heads, neurons = (_mask(draft.directory / file) for file in _FILES)
    fold_masks(draft, heads, neurons, _FILES)


def _mask(path: Path) -> LazyTensor:
    mask = load_tensor(path)
    return LazyTensor(tuple(mask.shape), str(mask.dtype).removeprefix("torch."), lambda: mask)


LAYOUT = Layout("Kwon et al. post-training masks", _recognise, _finalise)
