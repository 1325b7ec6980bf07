"""config.json: read it, and refuse what says that the weights are not plain."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import AlreadyPackedError, CheckpointError, listed
from .options import Options, existing_file

PACKED_SECTION = "sparse_runtime"
_COMPRESSED_SECTIONS = ("quantization_config", "compression_config", "sparsity_config")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: the file cannot be read, is not JSON, or holds no object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name}: expected a JSON file ({error})") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path.name}: expected a JSON object, got {type(data).__name__}")
    return data


def is_packed(directory: Path) -> bool:
    """Whether a directory's config.json says that it is a packed sparse-runtime model."""
    path = directory / "config.json"
    return path.is_file() and PACKED_SECTION in read_json(path)


def read_config(directory: Path, options: Options) -> dict[str, Any]:
    """config.json of a checkpoint, or the one that the user names where it has none.

    Raises:
        AlreadyPackedError: the directory is a packed model.
        CheckpointError: the file is missing or damaged.
    """
    path = directory / "config.json"
    if path.is_file():
        config = read_json(path)
        if PACKED_SECTION in config:
            raise AlreadyPackedError(
                f"{directory.name}: already packed; open it with SparseModel.from_pretrained, or "
                "convert the checkpoint that it was made from"
            )
        return _checked(path, config)
    named = options.get("config", existing_file)
    if named is None:
        raise CheckpointError(f"{directory.name}: no config.json; {_where_it_may_be(directory)}")
    config = read_json(named)
    if PACKED_SECTION in config:
        raise CheckpointError(
            f"finalise config={named.name}: expected the config.json of a checkpoint, got that of "
            "a packed model"
        )
    return _checked(named, config)


def _checked(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The fields, of which those that say what the model is are what they should be."""
    expected: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "model_type": ("a name", lambda value: isinstance(value, str)),
        "architectures": (
            "a list of class names",
            lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
        ),
        "pruned_heads": (
            "lists of heads by layer",
            lambda value: not value or isinstance(value, dict),
        ),
    }
    for key, (what, holds) in expected.items():
        value = config.get(key)
        if value is not None and not holds(value):
            raise CheckpointError(
                f"{path.name}: {key}: expected {what}, got {str(value)[:120]}; take the "
                "config.json of the model that the weights are of"
            )
    return config


def refuse_compressed(where: str, config: dict[str, Any]) -> None:
    """Raise CheckpointError where config.json still states a compressed layout."""
    for section in _COMPRESSED_SECTIONS:
        if config.get(section):
            raise CheckpointError(
                f"{where}: config.json has {section!r} ({_method(config[section])}), but the "
                "tensors are in no layout of that kind that can be read; convert the original "
                "float checkpoint"
            )


def _method(section: Any) -> str:
    method = (
        section.get("quant_method") or section.get("format") if isinstance(section, dict) else 0
    )
    return f"method {method!r}" if method else "no method named"


def _is_model(path: Path) -> bool:
    """Whether a config.json describes a model, and no pooling or other module."""
    try:
        return "model_type" in json.loads(path.read_bytes())
    except (OSError, ValueError, TypeError):
        return False


def _where_it_may_be(directory: Path) -> str:
    if (directory / "adapter_config.json").is_file():
        return "this is an adapter; merge it into its base model and save that"
    inside = [path.parent.name for path in directory.glob("*/config.json") if _is_model(path)]
    transformer = [name for name in inside if name.endswith("_Transformer")]
    if transformer:
        return f"the transformer lies in its folder {transformer[0]}; pass that directory"
    if inside:
        return f"its folders {listed(inside)} have one; pass the one that is meant"
    files = (path.name for path in directory.iterdir())
    return (
        f"expected a Hugging Face model directory, found: {listed(files)}; where only config.json "
        "is missing, name that of the same architecture with --finalise config=FILE, in Python "
        "finalise={'config': FILE}"
    )
