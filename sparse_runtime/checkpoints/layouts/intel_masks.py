"""Intel's Model-Compression-Research while it prunes: ``X.weight_original``, ``X.weight_mask``.

Source: IntelLabs/Model-Compression-Research-Package, pruning/methods; "Prune Once for All",
arXiv 2111.05754. ``X.weight`` is recomputed as their product before each call and not saved. Where
a teacher was distilled from, its weights lie in the same file as ``_teacher.teacher.*``.
"""

from __future__ import annotations

from ..draft import Draft
from ..errors import listed
from .base import Layout
from .masks import apply_mask, check_pairs

_PARAMETERS = ("weight", "bias")
_TEACHER = r"_teacher\.teacher\..+"


def _recognise(draft: Draft) -> str | None:
    found = draft.names(rf".+\.(weight|bias)_original|{_TEACHER}")
    return f"{len(found)} tensors {listed(found, 2)}" if found else None


def _finalise(draft: Draft) -> None:
    # First, for the teacher's own tensors must not be taken for the student's.
    teacher = draft.names(_TEACHER)
    if teacher:
        draft.drop(teacher, "of the teacher that training distilled from")
        draft.steps.append(f"dropped {len(teacher)} tensors of the teacher")
    for parameter in _PARAMETERS:
        originals = draft.modules(f"{parameter}_original")
        if not originals:
            continue
        check_pairs(draft, originals, f"{parameter}_original", f"{parameter}_mask")
        for module in originals:
            apply_mask(draft, f"{module}.{parameter}", f"{parameter}_original", f"{parameter}_mask")
        draft.steps.append(
            f"{parameter} = {parameter}_original x {parameter}_mask in {len(originals)} modules"
        )


LAYOUT = Layout("Intel Model-Compression-Research", _recognise, _finalise)
