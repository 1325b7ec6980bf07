"""torch.nn.utils.prune before ``prune.remove``: ``X.weight_orig`` and ``X.weight_mask``.

Source: PyTorch, torch/nn/utils/prune.py. The parameter ``weight`` is not saved; the module computes
it as ``weight_orig * weight_mask`` before each call.
"""

from __future__ import annotations

from ..draft import Draft
from ..errors import listed
from .base import Layout
from .masks import PARAMETERS, apply_pairs, check_pairs


def _recognise(draft: Draft) -> str | None:
    pairs = draft.names(r".+\.(weight|bias)_(orig|mask)")
    return f"{len(pairs)} tensors {listed(pairs, 2)}" if pairs else None


def _finalise(draft: Draft) -> None:
    for parameter in PARAMETERS:
        # Masks alone too, which this layout shares with no other.
        dense, mask = f"{parameter}_orig", f"{parameter}_mask"
        check_pairs(draft, draft.modules(dense), dense, mask)
    apply_pairs(draft, "orig")


LAYOUT = Layout("torch.nn.utils.prune", _recognise, _finalise)
