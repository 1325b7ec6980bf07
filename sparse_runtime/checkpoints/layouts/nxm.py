"""NxMiFormer: weights before their last projection, and the configuration to project them by.

Source: "NxMiFormer" (arXiv 2206.15014) and its ADMM code. A configuration is
``{module: {"type": ..., "args": {...}}}`` with "N" the group length along the inputs, "M" the
weights kept of it, "precision" bits, and "chunk_size" output rows with one scale, -1 for all. The
weights file itself is a plain checkpoint, so the user names the configuration.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...spec import ActivationSpec, ValueSpec
from ..config import read_json
from ..draft import Draft, LazyTensor
from ..errors import CheckpointError, listed
from ..numbers import finite
from ..options import existing_file
from ..quantized import QuantizedLinear, QuantizedValues
from .base import Layout
from .nxm_projection import keep_largest, quantize_by_search, quantize_to_largest

_OPTION, _NONE = "nxm", "none"
_TELLING = re.compile(r".*(nxm|admm).*\.json", re.IGNORECASE)
_ARGUMENTS = ("N", "M", "precision", "chunk_size", "norm", "groups")


@dataclass(frozen=True)
class _Kind:
    """What a "type" of the configuration projects onto."""

    masked: bool = False
    quantized: bool = False
    searched: bool = False


_KINDS = {
    "NxM": _Kind(masked=True),
    "NxM_ASP": _Kind(masked=True),
    "QUANT": _Kind(quantized=True, searched=True),
    "MOD_QUANT": _Kind(quantized=True),
    "STE": _Kind(quantized=True),
    "NxM_QUANT": _Kind(masked=True, quantized=True, searched=True),
    "NxM_MOD_QUANT": _Kind(masked=True, quantized=True),
    "NxM_ADMM_STE": _Kind(masked=True, quantized=True),
    "NxM_QAT": _Kind(masked=True, quantized=True),
}


def _recognise(draft: Draft) -> str | None:
    given = draft.options.get(_OPTION, str)
    if given is not None:
        return f"finalise {_OPTION}={Path(given).name}"
    telling = [p.name for p in draft.directory.iterdir() if _TELLING.fullmatch(p.name)]
    return f"{listed(telling)} beside the weights" if telling else None


def _path_or_none(value: Any) -> str:
    return _NONE if value == _NONE else str(existing_file(value))


def _finalise(draft: Draft) -> None:
    given = draft.options.ask(
        _OPTION,
        _path_or_none,
        f"{draft.where}: {draft.recognised[-1].why} may be the configuration by which NxMiFormer "
        "projects these weights, which its files hold unprojected: give its path, or "
        f"{_NONE} to take the weights as they are",
        "FILE",
    )
    if given == _NONE:
        draft.steps.append(
            "NxMiFormer's projection left out, as finalise says: weights as they are"
        )
        return
    entries = read_json(Path(given))
    projections = [_Projection.read(module, entry) for module, entry in entries.items()]
    for projection in projections:
        _project(draft, _find(draft, projection.module), projection)
    for what, count in Counter(str(projection) for projection in projections).items():
        draft.steps.append(f"projected {count} modules: {what}")
    if any(projection.is_uneven for projection in projections):
        draft.steps.append(
            "M is not half of N: M are kept, as the configuration says; the published mask helper "
            "keeps other numbers at such ratios"
        )
    if draft.linears:
        draft.steps.append(
            "inputs of quantized modules: int8, a scale a token, largest magnitude / 127 (training "
            "took / 128 for tokens whose extreme value is negative)"
        )


@dataclass(frozen=True)
class _Projection:
    """One entry of the configuration, checked."""

    module: str
    kind: _Kind
    args: Mapping[str, int]

    @classmethod
    def read(cls, module: str, entry: Any) -> _Projection:
        where = f"finalise {_OPTION}: {module}"
        if not isinstance(entry, dict) or set(entry) != {"type", "args"}:
            raise CheckpointError(f'{where}: expected {{"type": ..., "args": {{...}}}}')
        kind, args = _KINDS.get(str(entry["type"])), entry["args"]
        if kind is None:
            raise CheckpointError(
                f"{where}: type {entry['type']!r}: expected one of {', '.join(_KINDS)}"
            )
        unknown = sorted(set(args) - set(_ARGUMENTS)) if isinstance(args, dict) else ["args"]
        if unknown or not all(type(value) is int for value in args.values()):
            raise CheckpointError(
                f"{where}: expected integers {', '.join(_ARGUMENTS)} as args, got {args!r}"
            )
        projection = cls(module, kind, args)
        projection._check(where)
        return projection

    def _check(self, where: str) -> None:
        expected: dict[str, Callable[[int], bool]] = {}
        if self.kind.masked:
            expected |= {"N": lambda n: 2 <= n <= 16, "M": lambda m: 1 <= m < self.args["N"]}
        if self.kind.quantized:
            expected |= {
                "precision": lambda bits: bits in (4, 8),
                "chunk_size": lambda rows: rows == -1 or rows >= 1,
            }
        if self.kind.searched:
            expected |= {"norm": lambda norm: norm in (1, 2)}
        for argument, holds in expected.items():
            if argument not in self.args or not holds(self.args[argument]):
                raise CheckpointError(
                    f"{where}: {argument} is {self.args.get(argument, 'missing')}; expected "
                    "1 <= M < N <= 16, precision 4 or 8, chunk_size -1 or rows, norm 1 or 2"
                )

    def __str__(self) -> str:
        parts = []
        if self.kind.masked:
            parts.append(f"largest {self.args['M']} of {self.args['N']} inputs kept")
        if self.kind.quantized:
            rows = self.args["chunk_size"]
            how = f"least error of norm {self.args['norm']}" if self.kind.searched else "to largest"
            chunk = "matrix" if rows == -1 else f"{rows} rows"
            parts.append(f"int{self.args['precision']}, a scale a {chunk}, {how}")
        return ", ".join(parts)

    @property
    def is_uneven(self) -> bool:
        """Whether the mask keeps more or less than half of each group."""
        return self.kind.masked and 2 * self.args["M"] != self.args["N"]

    def mask(self, weight: Tensor) -> Tensor:
        """The weight with what the mask removes at 0."""
        if not self.kind.masked:
            return weight
        return keep_largest(weight, self.args["N"], self.args["M"])

    def quantize(self, weight: Tensor) -> QuantizedValues:
        """Integers and scales of the masked weight."""
        masked = self.mask(finite(f"{self.module}.weight", weight.to(torch.float32)))
        bits, rows = self.args["precision"], self.args["chunk_size"]
        rows = masked.shape[0] if rows == -1 else rows
        if self.kind.searched:
            return quantize_by_search(masked, bits, rows, self.args["norm"])
        return quantize_to_largest(masked, bits, rows)

    def values(self) -> ValueSpec:
        """How the integers are to be read."""
        rows, dtype = self.args["chunk_size"], f"int{self.args['precision']}"
        return ValueSpec(dtype, "tensor") if rows == -1 else ValueSpec(dtype, "chunk", rows)


def _find(draft: Draft, module: str) -> str:
    """The weight that the configuration means; names of a base model lack the task's prefix."""
    wanted = f"{module}.weight"
    found = [
        name
        for name in draft.tensors
        if name == wanted or name.endswith(f".{wanted}") or wanted.endswith(f".{name}")
    ]
    exact = [name for name in found if name == wanted] or found
    if len(exact) != 1:
        raise CheckpointError(
            f"finalise {_OPTION}: {module}: expected one weight of that name in {draft.where}, got "
            f"{listed(exact)}; each module is named once, and as the file names it"
        )
    return exact[0]


def _project(draft: Draft, name: str, projection: _Projection) -> None:
    weight = draft.tensors[name]
    _check_shape(name, weight, projection)
    if not projection.kind.quantized:
        draft.change(name, getattr(torch, weight.dtype), projection.mask)
        return
    weight, values = draft.take(name), projection.values()
    rows, cols = weight.shape
    draft.put_linear(
        name.removesuffix(".weight"),
        QuantizedLinear(
            shape=(rows, cols),
            values=values,
            activations=ActivationSpec("dynamic", "int8"),
            nbytes=weight.nbytes,
            load=lambda: projection.quantize(weight.load()),
        ),
    )


def _check_shape(name: str, weight: LazyTensor, projection: _Projection) -> None:
    group = projection.args["N"] if projection.kind.masked else 1
    rows = projection.args["chunk_size"] if projection.kind.quantized else -1
    fits = len(weight.shape) == 2 and weight.shape[1] % group == 0 and weight.shape[0] % rows == 0
    if not fits or weight.dtype not in ("float32", "bfloat16", "float16"):
        raise CheckpointError(
            f"{name}: expected a float matrix with inputs in groups of {group} and outputs in "
            f"chunks of {rows}, got {weight.dtype} {list(weight.shape)}; see the configuration"
        )


LAYOUT = Layout("NxMiFormer", _recognise, _finalise)
