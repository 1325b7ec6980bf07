"""Whether a paper's layout can hold what a stage will leave, as far as its recipe tells."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import get_args

from torch import nn

from ...spec import ValueSpec
from ..paper_layouts import MASKED_MODEL_TYPE, NXM_PATTERNS, Layout
from ..patterns import Pattern
from .recipe import Stage
from .schema import WrongValue

_INTEGERS_ONLY = "prune-ofa-qat"
_INTEGERS_TOO = "nxm"
_ANY_ZEROS = ("lock", "admm-integers")
"""Methods whose zeros are those of the model that they start with, whatever these are."""

_WITHOUT_MASKS = ("admm",)
"""Methods that leave zeros alone, which are taken for the masks of every matrix."""

Groups = Mapping[ValueSpec, Mapping[str, nn.Linear]]


@dataclass(frozen=True)
class End:
    """What a stage will leave.

    Attributes:
        stage: that states a layout.
        model_type: of the student, as its config.json has it.
        every: the encoder's linears by name.
        pruned: names of those that the stage prunes.
        patterns: name of a linear -> pattern, of those that the stage prunes by one.
        groups: the quantized linears, by how their values are written.
    """

    stage: Stage
    model_type: str
    every: Mapping[str, nn.Linear]
    pruned: Set[str]
    patterns: Mapping[str, Pattern]
    groups: Groups

    @property
    def method(self) -> str | None:
        return None if self.stage.pruning is None else self.stage.pruning.method


def check_layout_holds(end: End) -> None:
    """Refuse before the training what ``export_paper_layout`` would refuse after it.

    Raises:
        WrongValue: key "layout".
    """
    stage, quantizes = end.stage, bool(end.groups)
    if stage.layout != _INTEGERS_TOO and quantizes != (stage.layout == _INTEGERS_ONLY):
        raise WrongValue(
            "layout",
            f"{stage.layout!r} holds {'floats' if quantizes else 'integers'}, and the stage trains "
            f"{'integers' if quantizes else 'floats'}; state another layout "
            f"(--set {stage.name}.layout=NAME, one of {', '.join(get_args(Layout))}), or leave "
            "paper_out (--paper-out) out",
        )
    wanted = {
        "prune-ofa-qat": _prune_ofa_qat,
        "nxm": _nxm,
        "cap": _cap,
        "cap-structured": _cap_structured,
    }.get(stage.layout or "")
    expected = None if wanted is None else wanted(end)
    if expected is not None:
        raise WrongValue(
            "layout",
            f"{stage.layout!r}: expected {expected}; change that, or leave paper_out (--paper-out) "
            "out",
        )


def _prune_ofa_qat(end: End) -> str | None:
    settings = end.stage.quantization
    assert settings is not None  # it holds integers
    if set(end.groups) == {ValueSpec("int8", "tensor")} and settings.activations == "static":
        return None
    found = ", ".join(f"{values.dtype} with scales {values.scales}" for values in end.groups)
    return (
        "quantization of weights int8, scales tensor and activations static, got "
        f"{found} and {settings.activations} activations"
    )


def _nxm(end: End) -> str | None:
    if end.groups:
        values, *others = end.groups
        if others or end.groups[values].keys() != end.every.keys():
            return "every encoder layer quantized alike (no per, include or exclude)"
        if values.granularity not in ("tensor", "chunk"):
            return f"quantization.scales tensor or chunk:R, got {values.scales}"
    if end.method is None and not end.groups and not end.stage.freeze:
        # Whatever zeros there were are trained away.
        return "a pruning or a quantization section, got neither"
    if end.method is None or end.method in _ANY_ZEROS:
        return None
    found = sorted({str(pattern) for pattern in end.patterns.values()})
    if len(found) == 1 and found[0] in NXM_PATTERNS and end.every.keys() <= end.patterns.keys():
        return None
    got = ", ".join(found) or end.method
    return f"one of {', '.join(NXM_PATTERNS)} in every encoder layer, got {got}"


def _cap(end: End) -> str | None:
    if end.model_type != MASKED_MODEL_TYPE:
        return f"a model of type {MASKED_MODEL_TYPE}, the only one with masks, got {end.model_type}"
    if end.method in (None, *_WITHOUT_MASKS):
        return None
    if end.every.keys() != end.pruned:
        name = min(end.every.keys() ^ end.pruned)
        return (
            "every encoder layer pruned and nothing else (no per, include, exclude or pooler), got "
            f"{name} {'pruned' if name in end.pruned else 'dense'}"
        )
    if end.method != "movement":
        return None
    groups = sorted(str(one) for one in end.patterns.values() if one.structure.kind == "nm")
    if groups:
        return f"scores that one threshold or share fits, got movement with {groups[0]}"
    blocks = {(one.structure.rows or 1, one.structure.cols or 1) for one in end.patterns.values()}
    (rows, cols), *others = blocks
    shapes = [linear.weight.shape for linear in end.every.values()]
    if others or any(height % rows or width % cols for height, width in shapes):
        return f"blocks of one size that divide every matrix, got {sorted(blocks)}"
    return None


def _cap_structured(end: End) -> str | None:
    if end.method in (None, "structured", *_ANY_ZEROS):
        return None
    return f"whole heads and neurons (pruning.method structured), got {end.method}"
