"""config.json: the Hugging Face fields and the section that describes the packed layers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..spec import LinearSpec, QuantizedAttention
from .errors import FormatError
from .model import (
    SECTION,
    PackedModel,
    check_attention,
    check_names,
    check_shape_of_layers,
    plain_names,
)
from .strict_json import parse_object

CONFIG_FILE = "config.json"
FORMAT_VERSION = 1
KEYS = {"format_version", "layers", "tensors", "tied", "provenance"}
OPTIONAL_KEYS: dict[str, type] = {"attention": dict, "absent": list, "head_size": int}
"""Keys that are written where there is something to say, and their types; absent reads as empty."""

# By this field transformers finds the loader of packed layers (sparse_runtime.integrations). It
# says nothing else: what the layers are is in the section alone.
QUANTIZATION_KEY = "quantization_config"
QUANTIZATION = {"quant_method": SECTION}

# Far above what layer names and label maps need, far below what hurts to parse.
MAX_CONFIG_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Section:
    """What config.json says of the file of weights.

    Attributes:
        layers: module name -> description of its packed weight.
        tensors: names of all stored tensors beside the packed weights.
        tied: other name -> stored name.
        provenance: as in :class:`PackedModel`.
        attention: as in :class:`PackedModel`, and the next two.
    """

    layers: dict[str, LinearSpec]
    tensors: frozenset[str]
    tied: dict[str, str]
    provenance: dict[str, Any]
    attention: dict[str, QuantizedAttention]
    absent: tuple[str, ...]
    head_size: int | None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form that :func:`parse_section` reads."""
        data: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "layers": {name: spec.to_dict() for name, spec in self.layers.items()},
            "tensors": sorted(self.tensors),
            "tied": self.tied,
            "provenance": self.provenance,
        }
        if self.attention:
            data["attention"] = {name: item.to_dict() for name, item in self.attention.items()}
        if self.absent:
            data["absent"] = list(self.absent)
        if self.head_size is not None:
            data["head_size"] = self.head_size
        return data


def write_config(model: PackedModel) -> bytes:
    """The bytes of config.json.

    Raises:
        TypeError: config or provenance hold what JSON cannot.
        ValueError: they hold NaN, an infinity, or a key twice once keys are strings.
    """
    for key in (SECTION, QUANTIZATION_KEY):
        if key in model.config:
            raise ValueError(f"config: the key {key!r} is written by save; leave it out")
    check_shape_of_layers(model.absent, model.head_size)
    section = Section(
        layers={name: linear.packed.spec for name, linear in model.linears.items()},
        tensors=frozenset(plain_names(model)),
        tied=model.aliases,
        provenance=model.provenance,
        attention=model.attention,
        absent=tuple(sorted(model.absent)),
        head_size=model.head_size,
    )
    own = {SECTION: section.to_dict(), QUANTIZATION_KEY: QUANTIZATION}
    try:
        text = json.dumps({**model.config, **own}, indent=2, sort_keys=True, allow_nan=False)
    except TypeError as error:
        raise TypeError(
            f"config and provenance: expected JSON, got another type ({error})"
        ) from None
    except ValueError as error:
        raise ValueError(f"config and provenance: expected finite JSON ({error})") from None
    data = text.encode() + b"\n"
    if len(data) > MAX_CONFIG_BYTES:
        raise ValueError(
            f"config and provenance: at most {MAX_CONFIG_BYTES} bytes of JSON are read back, got "
            f"{len(data)}; shorten the provenance"
        )
    parse_object(data)
    return data


def read_config(directory: Path) -> tuple[dict[str, Any], Section]:
    """(Hugging Face fields, section) of a packed model's config.json.

    Raises:
        FormatError: the file is missing, not sound JSON, or not what docs/formats/store.md asks.
    """
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise FormatError(
            f"{path}: expected a packed model's configuration, got no such file; name the "
            "directory that `sparse-runtime convert` wrote"
        )
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        if len(data) > MAX_CONFIG_BYTES:
            raise ValueError(f"expected at most {MAX_CONFIG_BYTES} bytes, got more")
        config = parse_object(data)
        _check_quantization(config.pop(QUANTIZATION_KEY, None))
        return config, parse_section(config.pop(SECTION, None))
    except ValueError as error:
        raise FormatError(f"{path}: {error}; convert the checkpoint again") from None


def _check_quantization(data: Any) -> None:
    """Raise ValueError unless it is ours; files written before the field was have none."""
    if data not in (None, QUANTIZATION):
        raise ValueError(
            f"{QUANTIZATION_KEY}: expected quant_method 'sparse_runtime' alone, got "
            f"{str(data)[:80]}"
        )


def parse_section(data: Any) -> Section:
    """Read the section of a packed model's config.json.

    Raises:
        ValueError: it is not what docs/formats/store.md asks.
    """
    if not isinstance(data, dict):
        raise ValueError(
            f"expected the section {SECTION!r} of a packed model, got "
            f"{'none' if data is None else type(data).__name__}; a dense checkpoint has to be "
            "converted first"
        )
    version = data.get("format_version")
    if type(version) is not int or version < 1:
        raise ValueError(f"{SECTION}.format_version: expected {FORMAT_VERSION}, got {version!r}")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{SECTION}.format_version: expected at most {FORMAT_VERSION}, got {version} (a newer "
            "sparse-runtime wrote the file and would read it)"
        )
    if not KEYS <= set(data) <= KEYS | set(OPTIONAL_KEYS):
        missing, unknown = sorted(KEYS - set(data)), sorted(set(data) - KEYS - set(OPTIONAL_KEYS))
        raise ValueError(f"{SECTION}: missing keys {missing}, unknown keys {unknown}")
    kinds = {"layers": dict, "tensors": list, "tied": dict, "provenance": dict} | OPTIONAL_KEYS
    for key, kind in kinds.items():
        if key in data and not isinstance(data[key], kind):
            raise ValueError(
                f"{SECTION}.{key}: expected {kind.__name__}, got {type(data[key]).__name__}"
            )
    names = data["tensors"]
    if not all(isinstance(name, str) for name in [*names, *data["tied"].values()]):
        raise ValueError(f"{SECTION}.tensors and .tied: expected strings, got another type")
    if len(set(names)) != len(names):
        raise ValueError(f"{SECTION}.tensors: expected each name once, got one twice")
    check_names(set(data["layers"]), set(names), data["tied"])
    absent, head_size = data.get("absent", []), data.get("head_size")
    try:
        check_shape_of_layers(absent, head_size)
    except ValueError as error:
        raise ValueError(f"{SECTION}.{error}") from None
    layers = {name: _parse_layer(name, entry) for name, entry in data["layers"].items()}
    quantized = data.get("attention", {})
    check_attention(quantized, set(layers))
    return Section(
        layers=layers,
        tensors=frozenset(names),
        tied=data["tied"],
        provenance=data["provenance"],
        attention={name: _parse_attention(name, entry) for name, entry in quantized.items()},
        absent=tuple(absent),
        head_size=head_size,
    )


def _parse_layer(name: str, entry: Any) -> LinearSpec:
    try:
        return LinearSpec.from_dict(entry)
    except ValueError as error:
        raise ValueError(f"{SECTION}.layers[{name!r}]: {error}") from None


def _parse_attention(name: str, entry: Any) -> QuantizedAttention:
    try:
        return QuantizedAttention.from_dict(entry)
    except ValueError as error:
        raise ValueError(f"{SECTION}.attention[{name!r}]: {error}") from None
