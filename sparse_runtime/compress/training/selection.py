"""Which matrices a stage prunes or quantizes, and each one's pattern or values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from torch import nn

from ...spec import ValueSpec
from ..patterns import Pattern
from ..targets import COMPONENTS, component, encoder_linears
from .sections import Pruning, Quantization

T = TypeVar("T")


def pruning_targets(
    model: nn.Module, settings: Pruning, needs_pattern: bool
) -> tuple[dict[str, nn.Linear], dict[str, Pattern]]:
    """The matrices that a section selects and, for methods that need them, their patterns.

    Raises:
        ValueError: nothing is selected, a key of ``per`` fits nothing, or a pattern is missing.
    """
    linears = _selected(model, "pruning", settings)
    if not needs_pattern:
        return linears, {}
    own = _own("pruning.per", linears, settings.per)
    patterns = {}
    for name in linears:
        text = own.get(name, settings.structure)
        if text is not None:
            patterns[name] = Pattern.parse(text)
        elif name not in own:
            raise ValueError(
                f"pruning.structure: method {settings.method} needs a structure, for example 2:4 "
                f"or unstructured@0.9; {name} has none, and no key of per fits it"
            )
    if not patterns:
        raise ValueError("pruning.per: leaves every matrix dense; expected a pattern for some")
    return {name: linears[name] for name in patterns}, patterns


def quantized_linears(
    model: nn.Module, settings: Quantization
) -> dict[ValueSpec, dict[str, nn.Linear]]:
    """The matrices that a section selects, by how their values are written.

    Raises:
        ValueError: nothing is selected, or a key of ``per`` fits nothing.
    """
    linears = _selected(model, "quantization", settings)
    own = _own("quantization.per", linears, settings.per)
    groups: dict[ValueSpec, dict[str, nn.Linear]] = {}
    for name, linear in linears.items():
        values = own.get(name, settings.weights)
        if values is not None:
            groups.setdefault(ValueSpec.parse(values, settings.scales), {})[name] = linear
    if not groups:
        raise ValueError("quantization.per: leaves every matrix float; expected values for some")
    return groups


def fitting(section: str, names: Iterable[str], keys: Iterable[str]) -> set[str]:
    """The names that one of the components or regular expressions fits.

    Raises:
        ValueError: one fits nothing.
    """
    return set(_own(section, names, dict.fromkeys(keys)))


def _selected(
    model: nn.Module, section: str, settings: Pruning | Quantization
) -> dict[str, nn.Linear]:
    try:
        return encoder_linears(
            model, pooler=settings.pooler, include=settings.include, exclude=settings.exclude
        )
    except ValueError as error:
        raise ValueError(f"{section}: {error}") from None


def _own(section: str, names: Iterable[str], per: Mapping[str, T]) -> dict[str, T]:
    """What ``per`` says of each matrix that a key fits; the first key that fits holds."""
    names = list(names)
    found: dict[str, T] = {}
    for key, value in per.items():
        hits = [name for name in names if fits(key, name)]
        if not hits:
            raise ValueError(
                f"{section}: {key!r} fits none of {len(names)} matrices such as {names[0]}; "
                f"expected a component ({', '.join(COMPONENTS)}) or a regular expression"
            )
        for name in hits:
            found.setdefault(name, value)
    return found


def fits(key: str, name: str) -> bool:
    """Whether a matrix is of a component, or a regular expression is found in its name."""
    if key in COMPONENTS:
        return "pooler" not in name.split(".") and component(name) == key
    return re.search(key, name) is not None
