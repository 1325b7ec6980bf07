"""Finished layers on disk, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..targets import EncoderLayer

_RUN_FILE = "run.json"
_SCALES = ".scales"
_HASHES = ("weights", "texts")
_NONE = object()
"""Of a key that is not there."""


class LayerStates:
    """A directory with one file a finished encoder layer.

    It is made, and says which run it holds, when there is something to keep: a run that is refused
    before leaves nothing that would stand in the way of the next.

    Args:
        directory: may be missing.
        run: what makes two runs the same, see :func:`fingerprint`.

    Raises:
        ValueError: the directory holds another run.
        FileExistsError: there is a file instead.
    """

    def __init__(self, directory: str | Path, run: Mapping[str, Any]) -> None:
        self._directory = Path(directory).expanduser()
        check_folder(self._directory, "state_dir (--state)", directory)
        self._run = json.dumps(dict(run), indent=2, sort_keys=True) + "\n"
        path = self._directory / _RUN_FILE
        if path.is_file():
            _check_same(path, self._run)

    def begin(self) -> None:
        """Make the directory this run's, before the first of its files is written."""
        path = self._directory / _RUN_FILE
        if not path.is_file():
            self._directory.mkdir(parents=True, exist_ok=True)
            _write(path, self._run)

    @property
    def directory(self) -> Path:
        """Where the run is kept."""
        return self._directory

    def has(self, index: int) -> bool:
        """Whether a layer is finished."""
        return self._path(index).is_file()

    def keep(
        self, layer: EncoderLayer, rows: Sequence[Mapping[str, Any]], scales: Mapping[str, Tensor]
    ) -> None:
        """Write a finished layer: weights, biases, scales and its rows of the report."""
        self.begin()
        tensors = {f"{name}{_SCALES}": scale for name, scale in scales.items()}
        for part, name in layer.names.items():
            for key, value in layer.linears[part].state_dict().items():
                tensors[f"{name}.{key}"] = value.contiguous()
        path = self._path(layer.index)
        staging = path.with_suffix(".partial")
        save_file(tensors, staging, metadata={"rows": json.dumps(list(rows))})
        staging.replace(path)

    def restore(self, layer: EncoderLayer) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        """Put a finished layer's weights back; returns its rows and scales.

        Raises:
            ValueError: the file does not fit the layer.
        """
        path = self._path(layer.index)
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            rows = json.loads((file.metadata() or {})["rows"])
        for part, name in layer.names.items():
            linear = layer.linears[part]
            state = {key: tensors.get(f"{name}.{key}") for key in linear.state_dict()}
            if any(value is None for value in state.values()):
                raise ValueError(
                    f"{path.name}: lacks tensors of {name}; remove the state directory and start "
                    "again"
                )
            linear.load_state_dict(state)
        scales = {
            key.removesuffix(_SCALES): value
            for key, value in tensors.items()
            if key.endswith(_SCALES)
        }
        return rows, scales

    def _path(self, index: int) -> Path:
        return self._directory / f"layer-{index}.safetensors"


def fingerprint(model: nn.Module, texts: Sequence[str], **arguments: Any) -> dict[str, Any]:
    """What a run was made from: its arguments, and hashes of the weights and the texts."""
    weights = hashlib.sha256()
    # All of it: inputs of the layers come from embeddings and norms, and heads are written too.
    for name, tensor in model.state_dict().items():
        weights.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        weights.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    said = hashlib.sha256(json.dumps(list(texts)).encode())
    return {**arguments, "weights": weights.hexdigest(), "texts": said.hexdigest()}


def _check_same(path: Path, wanted: str) -> None:
    held = json.loads(path.read_text(encoding="utf-8"))
    asked = json.loads(wanted)
    other = list(_differences("", held, asked))
    if other:
        raise ValueError(
            f"state_dir (--state) {path.parent}: holds another run, which differs in "
            f"{'; '.join(other)}; give another directory, or remove this one"
        )


def _differences(key: str, held: Any, asked: Any) -> Iterator[str]:
    """ "a.b (held 1, asked 2)" of everything that two runs do not share."""
    if isinstance(held, dict) and isinstance(asked, dict):
        for inner in sorted(held.keys() | asked.keys()):
            name = f"{key}.{inner}" if key else inner
            yield from _differences(name, held.get(inner, _NONE), asked.get(inner, _NONE))
    elif held != asked and key in _HASHES:
        yield key
    elif held != asked:
        yield f"{key} (held {_shown(held)}, asked {_shown(asked)})"


def _shown(value: Any) -> str:
    return "nothing" if value is _NONE else repr(value)


def check_folder(path: Path, argument: str, given: str | Path) -> None:
    """Refuse what cannot become a directory: it, or what it would lie in, is a file.

    Args:
        path: to be a directory.
        argument: that it was given as, or lies in.
        given: the argument's value.

    Raises:
        FileExistsError: there is a file.
    """
    found = next(one for one in (path, *path.parents) if one.exists())
    if not found.is_dir():
        raise FileExistsError(
            f"{argument} {given}: expected {path} to be a directory or new, but {found} is a file; "
            "give another path"
        )


def _write(path: Path, text: str) -> None:
    staging = path.with_suffix(".partial")
    staging.write_text(text, encoding="utf-8")
    staging.replace(path)
