"""``quantization_config`` of compressed-tensors: which modules are quantized, and how.

Source: compressed-tensors 0.20, quantization/quant_args.py, quant_scheme.py, quant_config.py; the
keys of older versions (0.9 to 0.14) are in it too. An unknown key may change what the integers
mean, so it is refused; keys that only tell how the file came about are listed and ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import CheckpointError, listed

FORMATS = ("int-quantized", "naive-quantized", "float-quantized", "pack-quantized")
UNCOMPRESSED_FORMATS = ("dense", "fakequant")
"""Weights in floats beside their scales: what was calibrated and not compressed."""

_STATES = ("compressed", "frozen", "decompressed")
_GROUP_KEYS = {"targets", "weights", "input_activations", "output_activations", "format"}
_ARGUMENT_KEYS = {
    *("num_bits", "type", "symmetric", "strategy", "group_size", "block_structure", "dynamic"),
    *("actorder", "scale_dtype", "zp_dtype", "observer", "observer_kwargs"),
}
_CONFIG_KEYS = {
    *("quant_method", "format", "quantization_status", "config_groups", "ignore"),
    *("sparsity_config", "version", "global_compression_ratio"),
    *("run_compressed", "dequantize", "use_optimized_inference"),
}
_SPARSITY_KEYS = {
    *("format", "targets", "ignore", "global_sparsity", "sparsity_structure"),
    "registry_requires_subclass",
}
# Parts of a model that no reading of its linear layers covers.
_REFUSED_KEYS = {
    "kv_cache_scheme": "it quantizes the keys and values of attention",
    "transform_config": "it rotates weights and activations",
    "moe_sparsity_config": "it removes experts",
}
_STRATEGIES = ("tensor", "channel", "group", "block", "token", "tensor_group", "attn_head")


@dataclass(frozen=True)
class Arguments:
    """How one tensor is quantized.

    Attributes:
        bits: of a value.
        type: "int" or "float".
        symmetric: whether there are no zero points.
        strategy: what shares a scale: "tensor", "channel" (a row), "group" (of a row's inputs),
            "block", "token", "tensor_group", "attn_head".
        group_size: inputs in a group, 0 for other strategies.
        block: rows and columns of a block, or None.
        dynamic: whether the scale is computed from each input.
        scale_dtype: what a scale is rounded to, or None.
    """

    bits: int
    type: str
    symmetric: bool
    strategy: str
    group_size: int
    block: tuple[int, int] | None
    dynamic: bool
    scale_dtype: str | None

    def __str__(self) -> str:
        words = [
            "dynamic" if self.dynamic else "static",
            f"{self.type}{self.bits}",
            "symmetric" if self.symmetric else "with zero points",
            f"a scale for each {self.strategy}",
        ]
        return ", ".join(words)


@dataclass(frozen=True)
class Scheme:
    """One group of ``config_groups``.

    Attributes:
        name: of the group, for errors.
        targets: class names, module names, or ``re:`` and a pattern.
        format: one of ``FORMATS`` or ``UNCOMPRESSED_FORMATS``.
        weights: None leaves them in floats.
        inputs: None leaves the input in floats.
        outputs: None leaves the output as it is.
        omits_zeros: whether zero points that are not in the file are 0.
    """

    name: str
    targets: tuple[str, ...]
    format: str
    weights: Arguments | None
    inputs: Arguments | None
    outputs: Arguments | None
    omits_zeros: bool


@dataclass(frozen=True)
class Quantization:
    """The section as a whole.

    Attributes:
        schemes: the groups in the order of the file.
        ignore: like ``targets``; wins over them.
    """

    schemes: tuple[Scheme, ...]
    ignore: tuple[str, ...]


def read_quantization(section: Mapping[str, Any]) -> Quantization:
    """Read a section whose ``quant_method`` is "compressed-tensors".

    Raises:
        CheckpointError: keys or values that are not known, or that nothing here can run.
    """
    _known(section, _CONFIG_KEYS | _REFUSED_KEYS.keys(), "quantization_config")
    for key, why in _REFUSED_KEYS.items():
        if section.get(key):
            raise CheckpointError(
                f"quantization_config.{key}: {why}, which cannot be run here; convert a "
                "checkpoint without it"
            )
    groups = section.get("config_groups") or {}
    if not isinstance(groups, Mapping):
        raise CheckpointError(f"quantization_config.config_groups: expected groups, got {groups!r}")
    state = section.get("quantization_status") or "compressed"
    if groups and state not in _STATES:
        raise CheckpointError(
            f"quantization_config.quantization_status: expected {', '.join(_STATES)}, got "
            f"{state!r}: the scales of such a checkpoint are not final; finish its calibration, or "
            "convert the float checkpoint"
        )
    default = section.get("format") or "dense"
    return Quantization(
        schemes=tuple(
            _scheme(name, group, default, _omits_zeros(section)) for name, group in groups.items()
        ),
        ignore=_strings(section.get("ignore"), "quantization_config.ignore"),
    )


def read_sparsity_format(section: Mapping[str, Any]) -> str:
    """The ``format`` of ``sparsity_config``: "dense" where there is none.

    Raises:
        CheckpointError: it is not one that is read here.
    """
    sparsity = section.get("sparsity_config") or {}
    where = "quantization_config.sparsity_config"
    _known(sparsity, _SPARSITY_KEYS, where)
    written = sparsity.get("format") or "dense"
    if written not in ("dense", "sparse-bitmask", "sparse-24-bitmask"):
        raise CheckpointError(
            f"{where}.format: expected dense, sparse-bitmask or sparse-24-bitmask, got {written!r}"
        )
    return str(written)


def _omits_zeros(section: Mapping[str, Any]) -> bool:
    """Whether a version up to 0.8 wrote it; the first of them do not say which they are."""
    version = re.match(r"0\.(\d+)", str(section.get("version") or "0.0"))
    return version is not None and int(version[1]) <= 8


def _scheme(name: str, group: Any, default: str, omits_zeros: bool) -> Scheme:
    where = f"quantization_config.config_groups.{name}"
    if not isinstance(group, Mapping):
        raise CheckpointError(
            f"{where}: expected 'targets' and 'weights', got {group!r}; the short form that names "
            "a preset is not read, write the group out"
        )
    _known(group, _GROUP_KEYS, where)
    written = group.get("format") or default
    if written == "marlin-24":
        raise CheckpointError(
            f"{where}.format: 'marlin-24' holds weights in the order in which one GPU kernel "
            "reads them, and compressed-tensors itself cannot undo it; convert the checkpoint that "
            "it was made from, or save that as pack-quantized"
        )
    if written not in (*FORMATS, *UNCOMPRESSED_FORMATS):
        raise CheckpointError(
            f"{where}.format: expected {', '.join((*FORMATS, *UNCOMPRESSED_FORMATS))}, got "
            f"{written!r}; convert the float checkpoint"
        )
    return Scheme(
        name=name,
        targets=_strings(group.get("targets"), f"{where}.targets"),
        format=str(written),
        weights=_arguments(group.get("weights"), f"{where}.weights"),
        inputs=_arguments(group.get("input_activations"), f"{where}.input_activations"),
        outputs=_arguments(group.get("output_activations"), f"{where}.output_activations"),
        omits_zeros=omits_zeros,
    )


def _arguments(data: Any, where: str) -> Arguments | None:
    if data is None:
        return None
    _known(data, _ARGUMENT_KEYS, where)
    group_size = data.get("group_size")
    strategy = data.get("strategy") or _strategy_of(group_size)
    block = data.get("block_structure")
    if isinstance(block, str):  # "128x128" in older files
        block = [int(side) if side.isdecimal() else 0 for side in block.split("x")]
    dynamic = data.get("dynamic") or False
    found = Arguments(
        bits=data.get("num_bits", 8),
        type=str(data.get("type", "int")).lower(),
        symmetric=data.get("symmetric", True),
        strategy=str(strategy).lower(),
        group_size=group_size if strategy in ("group", "tensor_group") else 0,
        block=tuple(block) if isinstance(block, (list, tuple)) else None,
        dynamic=bool(dynamic),
        scale_dtype=data.get("scale_dtype"),
    )
    fits = (
        type(found.bits) is int
        and found.type in ("int", "float")
        and type(found.symmetric) is bool
        and found.strategy in _STRATEGIES
        and (not found.group_size or type(found.group_size) is int)
        and (found.strategy != "group" or (type(group_size) is int and group_size > 0))
        and (found.strategy != "block" or _is_block(found.block))
        and dynamic in (True, False, "local")
        and (found.scale_dtype is None or isinstance(found.scale_dtype, str))
    )
    if not fits:
        raise CheckpointError(f"{where}: not a description of quantized values: {dict(data)!r}")
    return found


def _strategy_of(group_size: Any) -> str:
    if group_size is None:
        return "tensor"
    return "channel" if group_size == -1 else "group"


def _is_block(block: Any) -> bool:
    return block is not None and len(block) == 2 and all(type(n) is int and n > 0 for n in block)


def _strings(data: Any, where: str) -> tuple[str, ...]:
    if data is None:
        return ()
    if not isinstance(data, list) or not all(isinstance(word, str) for word in data):
        raise CheckpointError(f"{where}: expected a list of names, got {data!r}")
    return tuple(data)


def _known(data: Any, keys: set[str], where: str) -> None:
    if not isinstance(data, Mapping):
        raise CheckpointError(f"{where}: expected an object, got {data!r}")
    unknown = data.keys() - keys
    if unknown:
        raise CheckpointError(
            f"{where}: {listed(map(str, unknown))} is not known and may change what the tensors "
            f"mean; expected {listed(keys, 20)}; convert the float checkpoint"
        )
