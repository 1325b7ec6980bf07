"""The files that travel with a packed model: tokenizer and sentence-transformers settings."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from typing_extensions import Self

from .strict_json import parse

MODULES_FILE = "modules.json"
MAX_MODULES_BYTES = 2**20

ROOT_PATTERNS = (
    "tokenizer*.json",
    "vocab*.txt",
    "vocab*.json",
    "merges.txt",
    "bpe.codes",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    MODULES_FILE,
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
)
MODULE_SUFFIXES = frozenset({".json", ".txt", ".model", ".safetensors"})
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".ckpt"})

_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Companions:
    """The companion files that a model was loaded with, which are read when they are needed.

    Attributes:
        directory: where they lie, absolute.
        digest: of what they held.
    """

    directory: Path
    digest: str

    @classmethod
    def of(cls, directory: Path) -> Self:
        """The files that lie in a directory now."""
        directory = directory.resolve()
        digest = hashlib.sha256()
        try:
            for place, path in companion_files(directory).items():
                data = path.read_bytes()
                digest.update(f"{place} {len(data)} ".encode() + data)
        except (OSError, ValueError) as error:
            # Whoever reads or copies the files says what is wrong with them.
            digest.update(str(error).encode())
        return cls(directory, digest.hexdigest())

    def check(self) -> None:
        """Raise ValueError unless the files are still what they were."""
        if self.of(self.directory) != self:
            raise ValueError(
                f"{self.directory}: its tokenizer and pipeline files are not those that the model "
                "was loaded with; load the model again"
            )


def companion_files(directory: Path) -> dict[PurePosixPath, Path]:
    """The files to copy: relative destination -> source, sorted.

    Weights, code, pickles and documents stay behind. In a module's own folder (pooling, dense
    projections) safetensors come along, for nothing else stores what they hold.

    Raises:
        ValueError: ``directory`` is none, or modules.json or a link leads out of it, or a module
            keeps its weights where they cannot come along.
    """
    if not directory.is_dir():
        raise ValueError(f"extra_files: expected a directory, got {directory}")
    found = {path for pattern in ROOT_PATTERNS for path in directory.glob(pattern)}
    for folder in _module_folders(directory):
        found.update(_module_files(directory, folder))
    files = {path for path in found if path.is_file()}
    for path in files:
        _check_inside(directory, path)
    return {PurePosixPath(path.relative_to(directory).as_posix()): path for path in sorted(files)}


def _module_folders(directory: Path) -> list[str]:
    """Folders that modules.json names, without the transformer, whose files lie at the root."""
    path = directory / MODULES_FILE
    if not path.is_file():
        return []
    _check_inside(directory, path)
    with path.open("rb") as file:
        data = file.read(MAX_MODULES_BYTES + 1)
    try:
        if len(data) > MAX_MODULES_BYTES:
            raise ValueError(f"expected at most {MAX_MODULES_BYTES} bytes, got more")
        modules = parse(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(modules, list):
        raise ValueError(f"{path}: expected a list of modules, got {type(modules).__name__}")
    folders = (_folder(path, module) for module in modules)
    return [folder for folder in folders if folder]


def _folder(path: Path, module: Any) -> str:
    folder = module.get("path") if isinstance(module, dict) else None
    if not isinstance(folder, str):
        raise ValueError(f"{path}: expected modules with a path, got {str(module)[:80]}")
    if folder and not all(_PART.fullmatch(part) for part in folder.split("/")):
        raise ValueError(f"{path}: expected module paths inside the directory, got {folder!r}")
    if folder and str(module.get("type", "")).endswith(".Transformer"):
        raise ValueError(
            f"{path}: expected the transformer's files at the directory's root, got {folder!r}; "
            "convert that folder itself, or save the model again with a recent "
            "sentence-transformers"
        )
    return folder


def _module_files(directory: Path, folder: str) -> list[Path]:
    root = directory / folder
    if root.exists() and not root.resolve().is_relative_to(directory.resolve()):
        raise ValueError(f"extra_files: the folder {root} is a link that leads out of {directory}")
    files = [path for path in root.rglob("*") if path.is_file()]
    for path in files:
        tensors = any(p.parent == path.parent and p.suffix == ".safetensors" for p in files)
        if path.suffix in PICKLE_SUFFIXES and not tensors:
            raise ValueError(
                f"extra_files: {path} keeps a module's weights in a pickle, which is never copied; "
                "save them as model.safetensors beside it"
            )
    return [path for path in files if path.suffix in MODULE_SUFFIXES]


def _check_inside(directory: Path, path: Path) -> None:
    """Refuse links out of the directory, but for the hub cache, which links into ../../blobs."""
    directory, target = directory.resolve(), path.resolve()
    if not any(target.is_relative_to(r) for r in (directory, directory.parent.parent / "blobs")):
        raise ValueError(
            f"extra_files: {path} is a link that leads out of its directory, to {target}; replace "
            "it with the file itself"
        )
