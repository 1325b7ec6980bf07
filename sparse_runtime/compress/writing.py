"""Compressed models as plain Hugging Face directories, with what floats cannot say beside them."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from .. import __version__
from ..checkpoints import kind_of
from ..checkpoints.layouts.stated_quantization import FILE, FORMAT, SCALE
from ..formats import observe
from ..store.companions import companion_files
from ..store.directories import naming
from .activation_quant import ActivationFakeQuant
from .fake_quant import read_quantization
from .masks import baked_weight, transforms
from .statement import LinearQuantization

RECORD_FILE = "compression.json"


def write_checkpoint(
    model: nn.Module,
    tokenizer: Any,
    out_dir: str | os.PathLike[str],
    *,
    quantization: Mapping[str, LinearQuantization] | None = None,
    record: Mapping[str, Any] | None = None,
    extra_files: str | os.PathLike[str] | None = None,
) -> Path:
    """Write a compressed model so that transformers opens it and ``convert`` packs it losslessly.

    Pruned weights are written as zeros. Weights of quantized layers are written as the floats that
    their integers stand for, in float32, and ``quantization.safetensors`` states their scales and
    how inputs are quantized (docs/checkpoints.md). ``compression.json`` says how it was made. The
    model is left as it is; a crash leaves no directory.

    Args:
        model: of transformers, with our parametrizations and quantizers or without.
        tokenizer: saved beside it, or None.
        out_dir: a new or an empty directory.
        quantization: of its layers by name; None reads what fake quantization has left, if any.
        record: recipe, arguments, seed and the like, as JSON holds them; of absolute paths only
            the last part is kept.
        extra_files: a directory whose tokenizer and sentence-transformers files travel along,
            where ``tokenizer`` has not written them.

    Returns:
        ``out_dir``.

    Raises:
        FileExistsError: there is something in ``out_dir``.
        ValueError: a quantized weight is not integers times its scales, or a name is no layer.
    """
    stated = read_quantization(model) if quantization is None else dict(quantization)
    tensors = plain_tensors(model)
    _check_statement(tensors, stated)
    target = Path(out_dir).expanduser()
    with new_directory(target) as staging:
        _save_model(model, tensors, staging)
        if tokenizer is not None:
            tokenizer.save_pretrained(staging)
        if extra_files is not None:
            copy_missing(Path(extra_files), staging)
        if stated:
            _save_statement(stated, staging / FILE)
        report = _record(record or {}, tensors, stated)
        text = json.dumps(report, indent=2, ensure_ascii=False)
        (staging / RECORD_FILE).write_text(text + "\n", encoding="utf-8")
    return target


def plain_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A model's state dict with every parametrization of ours baked in and no quantizers.

    Tied tensors stay tied; nothing else is copied.
    """
    ours = {f"{name}." for name, module in model.named_modules() if _is_ours(module)}
    tensors = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if ".parametrizations." not in f".{name}" and not any(map(name.startswith, ours))
    }
    for name, module in model.named_modules():
        if transforms(module):
            tensors[f"{name}.weight"] = baked_weight(module)
    return tensors


def _is_ours(module: nn.Module) -> bool:
    return isinstance(module, ActivationFakeQuant)


def _check_statement(tensors: dict[str, Tensor], stated: Mapping[str, LinearQuantization]) -> None:
    for module, quantization in stated.items():
        name = f"{module}.weight"
        if name not in tensors:
            raise ValueError(
                f"quantization: {module} is no layer of the model; names are those of its modules"
            )
        quantization.integers(name, tensors[name])


def _save_model(model: Any, tensors: dict[str, Tensor], staging: Path) -> None:
    # A copy, for it takes tensors out of the mapping while it writes them.
    model.save_pretrained(staging, state_dict=dict(tensors))
    path = staging / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # Where the model was loaded from, which is a path of this machine as often as not.
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def copy_missing(source: Path, staging: Path) -> None:
    """Copy a checkpoint's tokenizer and sentence-transformers files that are not there yet."""
    for place, path in companion_files(source).items():
        target = staging / place
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def _save_statement(stated: Mapping[str, LinearQuantization], path: Path) -> None:
    scales = {f"{module}.{SCALE}": one.scales.cpu().clone() for module, one in stated.items()}
    said = {module: json.dumps(one.to_dict()) for module, one in stated.items()}
    path.write_bytes(_in_order(save(scales, metadata={**FORMAT, **said})))
    path.chmod(0o644)


def _in_order(file: bytes) -> bytes:
    """A safetensors file with its header sorted: the library writes metadata in any order."""
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.dumps(json.loads(file[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + file[end:]


def _record(
    record: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    stated: Mapping[str, LinearQuantization],
) -> dict[str, Any]:
    """What was asked for, by which versions, and what came of it."""
    import transformers

    layers = {}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if kind_of(name, tuple(tensor.shape)) != "encoder_linear" and module not in stated:
            continue
        seen = observe(tensor)
        layers[module] = {
            "sparsity": round(1 - seen.density, 6),
            "structure": str(seen.structure),
            "quantization": stated[module].to_dict() if module in stated else None,
        }
    versions = {
        "sparse_runtime": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return {**_without_paths(dict(record)), "versions": versions, "layers": layers}


def _without_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_paths(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_paths(inner) for inner in value]
    if isinstance(value, Path) or (isinstance(value, str) and Path(value).is_absolute()):
        return Path(value).name
    return value


def check_new(out_dir: Path) -> None:
    """Refuse a directory that something is in.

    Raises:
        FileExistsError: there is.
    """
    if out_dir.exists() and not (out_dir.is_dir() and not any(out_dir.iterdir())):
        raise FileExistsError(
            f"out_dir {out_dir}: expected a new or an empty directory, got "
            f"{'one with files' if out_dir.is_dir() else 'a file'}; choose another (--out)"
        )


@contextmanager
def new_directory(out_dir: Path) -> Iterator[Path]:
    """A directory beside ``out_dir`` that takes its name in the end, or is removed."""
    check_new(out_dir)
    with naming(out_dir):
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}.", dir=out_dir.parent))
    try:
        yield staging
        staging.chmod(0o755)
        staging.replace(out_dir)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
