"""Which matrices a stage prunes or quantizes, and each one's pattern or values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import nn

from ...spec import ValueSpec
from ..patterns import Pattern
from ..targets import COMPONENTS, component, encoder_linears
from .recipe import Pruning, Quantization


def pruned_linears(model: nn.Module, settings: Pruning) -> dict[str, nn.Linear]:
    """The matrices that a section selects, without those that ``per`` leaves dense.

    Raises:
        ValueError: nothing is selected, or a key of ``per`` fits nothing.
    """
    linears = encoder_linears(
        model, pooler=settings.pooler, include=settings.include, exclude=settings.exclude
    )
    chosen = _resolved("pruning", linears, settings.per, settings.structure)
    dense = {name for name, text in chosen.items() if text is None and name in _named(
        linears, settings.per
    )}
    return {name: linear for name, linear in linears.items() if name not in dense}


def patterns(linears: Iterable[str], settings: Pruning, needed: bool) -> dict[str, Pattern]:
    """Name -> pattern, for methods that need one.

    Raises:
        ValueError: a pattern is missing, or given to a method without any.
    """
    names = list(linears)
    if not needed:
        if settings.structure is not None or settings.per:
            raise ValueError(
                f"pruning.method {settings.method}: takes no structure; leave structure and per out"
            )
        return {}
    chosen = _resolved("pruning", names, settings.per, settings.structure)
    missing = [name for name, text in chosen.items() if text is None]
    if missing:
        raise ValueError(
            f"pruning.method {settings.method}: needs a structure, such as 2:4 or "
            f"unstructured@0.9; {missing[0]} has none"
        )
    return {name: Pattern.parse(text) for name, text in chosen.items() if text is not None}


def quantized_linears(
    model: nn.Module, settings: Quantization
) -> dict[ValueSpec, dict[str, nn.Linear]]:
    """The matrices that a section selects, by how their values are written.

    Raises:
        ValueError: nothing is selected, or a key of ``per`` fits nothing.
    """
    linears = encoder_linears(
        model, pooler=settings.pooler, include=settings.include, exclude=settings.exclude
    )
    chosen = _resolved("quantization", linears, settings.per, settings.weights)
    groups: dict[ValueSpec, dict[str, nn.Linear]] = {}
    for name, values in chosen.items():
        if values is not None:
            spec = ValueSpec.parse(values, settings.scales)
            groups.setdefault(spec, {})[name] = linears[name]
    return groups


def _resolved(
    section: str, names: Iterable[str], per: Mapping[str, str | None], default: str | None
) -> dict[str, str | None]:
    names = list(names)
    own = _named(names, per)
    for key in per:
        if not any(_fits(key, name) for name in names):
            raise ValueError(
                f"{section}.per: {key!r} fits none of {len(names)} matrices such as {names[0]}; "
                f"expected a component ({', '.join(COMPONENTS)}) or a regular expression"
            )
    return {name: own.get(name, default) for name in names}


def _named(names: Iterable[str], per: Mapping[str, str | None]) -> dict[str, str | None]:
    """What ``per`` says of each matrix that a key fits; the first key holds."""
    found: dict[str, str | None] = {}
    for name in names:
        for key, value in per.items():
            if _fits(key, name):
                found[name] = value
                break
    return found


def _fits(key: str, name: str) -> bool:
    if key in COMPONENTS:
        return "pooler" not in name.split(".") and component(name) == key
    return re.search(key, name) is not None
