"""compressed-tensors: config.json says which modules are quantized, and how.

Source: compressed-tensors 0.3 to 0.20 for quantized weights, up to 0.12 for the bitmask formats,
which later versions do not read. A model may have both: its integers then lie in ``compressed``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from ...draft import Draft
from ...errors import CheckpointError, listed
from ...naming import kind_of
from ...quantized import QuantizedLinear
from ...tied import partner_of
from ..base import Layout
from .bitmask import bitmask_modules, decompress
from .schemes import read_quantization, read_sparsity_format
from .targets import SchemeFinder
from .weights import read_module

# The second is what version 0.3 writes.
_METHODS = ("compressed-tensors", "sparseml")
# Sections under which versions have written it; the last one is SparseML's, of a sparse model.
_SECTIONS = ("quantization_config", "compression_config", "sparsity_config")
# Tensors that no plain module has.
_MARKS = ("weight_scale", "weight_packed", "weight_zero_point", "weight_shape", "input_scale")
_MARLIN = ("scale_packed", "meta")


def _recognise(draft: Draft) -> str | None:
    key, section = _section(draft)
    if section is None:
        return None
    sparsity = section.get("sparsity_config")
    dense = isinstance(sparsity, Mapping) and sparsity.get("format") == "dense"
    if not (section.get("config_groups") or dense or bitmask_modules(draft)):
        return None
    version = section.get("version")
    return f"{key} of config.json" + (f", version {version}" if version else "")


def _section(draft: Draft) -> tuple[str, Mapping[str, Any] | None]:
    for key in _SECTIONS:
        section = draft.config.get(key)
        if not section or not isinstance(section, Mapping):
            continue
        if key == "sparsity_config":
            return key, {"sparsity_config": section}
        unnamed = _METHODS[0] if key == "compression_config" else ""
        if section.get("quant_method", unnamed) in _METHODS:
            return key, section
    return "", None


def _finalise(draft: Draft) -> None:
    key, section = _section(draft)
    assert section is not None  # recognised
    marlin = [name for part in _MARLIN for name in draft.modules(part)]
    quantization = read_quantization(section)
    if marlin:
        raise CheckpointError(
            f"{draft.where}: {listed(marlin)} are in marlin-24, the order in which one GPU kernel "
            "reads them; convert the checkpoint that it was made from"
        )
    sparsity = read_sparsity_format(section)
    if bitmask_modules(draft):
        decompress(draft)
    elif sparsity != "dense":
        raise CheckpointError(
            f"{draft.where}: {key} states {sparsity!r}, and no tensor is compressed so; the file "
            "and its config.json disagree"
        )
    finder = SchemeFinder(quantization)
    modules = list(dict.fromkeys(module for mark in _MARKS for module in draft.modules(mark)))
    for module in modules:
        scheme = finder.scheme_of(module)
        if scheme is None:
            raise CheckpointError(
                f"{draft.where}: {module} has quantized tensors, and {key} of config.json does "
                "not target it, or ignores it; the file and its config.json disagree"
            )
        read_module(draft, module, scheme)
    _check_complete(draft, finder, set(modules))
    _report(draft, modules)
    for name in _SECTIONS:
        draft.config.pop(name, None)


def _check_complete(draft: Draft, finder: SchemeFinder, read: set[str]) -> None:
    """Refuse modules that the config quantizes and the file leaves in floats."""
    for name in draft.names(r".+\.weight"):
        module = name.removesuffix(".weight")
        shape = draft.tensors[name].shape
        linear = kind_of(name, shape) in ("encoder_linear", "head") and len(shape) == 2
        # A decoder that shares the word embeddings is quantized where they are, or not at all.
        if module in read or not linear or partner_of(name, draft.tensors):
            continue
        if finder.scheme_of(module) is not None:
            raise CheckpointError(
                f"{draft.where}: config.json says that {module} is quantized, and the file has no "
                f"{module}.weight_scale; the file is incomplete"
            )


def _report(draft: Draft, modules: list[str]) -> None:
    integers = [draft.linears[module] for module in modules if module in draft.linears]
    for words, count in Counter(_describe(linear) for linear in integers).items():
        draft.steps.append(f"{count} modules stay integers: {words}")
    floats = len(modules) - len(integers)
    if floats:
        draft.steps.append(f"weight = value x weight_scale, in float32, in {floats} modules")


def _describe(linear: QuantizedLinear) -> str:
    """Such as "int8, a scale for each row, inputs dynamic int8, outputs static int8"."""
    values = linear.values
    words = [values.dtype, f"scales {values.scales}", *(["zero points"] * values.zero_points)]
    for side, spec in (("inputs", linear.activations), ("outputs", linear.outputs)):
        if spec is not None:
            full = "" if spec.narrow_range else " over -128..127"
            words.append(f"{side} {spec.scheme} {spec.dtype}{full}")
    return ", ".join(words) + ("" if linear.activations else ", inputs in floats")


LAYOUT = Layout("compressed-tensors", _recognise, _finalise)
