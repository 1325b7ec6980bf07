"""torch.nn.utils.prune before ``prune.remove``: ``X.weight_orig`` and ``X.weight_mask``.

Source: PyTorch, torch/nn/utils/prune.py. The parameter ``weight`` is not saved; the module computes
it as ``weight_orig * weight_mask`` before each call.
"""

from __future__ import annotations

from ..draft import Draft
from ..errors import listed
from .base import Layout
from .masks import apply_mask, check_pairs

_PARAMETERS = ("weight", "bias")


def _recognise(draft: Draft) -> str | None:
    pairs = draft.names(r".+\.(weight|bias)_(orig|mask)")
    return f"{len(pairs)} tensors {listed(pairs, 2)}" if pairs else None


def _finalise(draft: Draft) -> None:
    for parameter in _PARAMETERS:
        originals = draft.modules(f"{parameter}_orig")
        check_pairs(draft, originals, f"{parameter}_orig", f"{parameter}_mask")
        for module in originals:
            apply_mask(draft, f"{module}.{parameter}", f"{parameter}_orig", f"{parameter}_mask")
        if originals:
            draft.steps.append(
                f"{parameter} = {parameter}_orig x {parameter}_mask in {len(originals)} modules"
            )


LAYOUT = Layout("torch.nn.utils.prune", _recognise, _finalise)
