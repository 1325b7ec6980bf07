"""Intel's Model-Compression-Research while it prunes: ``X.weight_original``, ``X.weight_mask``.

Source: IntelLabs/Model-Compression-Research-Package, pruning/methods; "Prune Once for All",
arXiv 2111.05754. ``X.weight`` is recomputed as their product before each call and not saved. Where
a teacher was distilled from, its weights lie in the same file as ``_teacher.teacher.*``.
"""

from __future__ import annotations

from ..draft import Draft
from ..errors import listed
from .base import Layout
from .masks import apply_pairs

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
    apply_pairs(draft, "original")


LAYOUT = Layout("Intel Model-Compression-Research", _recognise, _finalise)
