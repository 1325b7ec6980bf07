"""convert(): a float checkpoint becomes a packed model, checked whole before a byte is written."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .. import __version__
from ..checkpoints import (
    Checkpoint,
    CheckpointError,
    is_packed,
    kind_of,
    natural_key,
    open_checkpoint,
    source_name,
)
from ..checkpoints.errors import listed
from ..formats import Compression, CompressionNote, PackedWeight
from ..store import PackedLinear, PackedModel, save, size_report
from .convert_report import ConvertReport, KeptTensor, LayerReport


def convert(
    source: str | Path,
    out_dir: str | Path,
    *,
    structure: str = "auto",
    values: str = "auto",
    prune: str | None = None,
    scales: str = "row",
    activations: str = "auto",
    overwrite: bool = False,
    progress: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> ConvertReport:
    """Pack the linear layers of an encoder checkpoint and write them as a packed model.

    Weights inside the encoder's stack are packed; embeddings, norms, pooler and heads keep their
    values and dtype. Biases of packed layers are kept in float32. Nothing is written unless
    everything could be packed, and a crash leaves no half-written directory.

    Args:
        source: a Hugging Face directory or hub id with float32, bfloat16 or float16 weights.
        out_dir: where the packed model goes; must not exist, or be empty, without ``overwrite``.
        structure: "auto" keeps what each matrix' zeros show and loses nothing; "dense",
            "unstructured" and "block:RxC" hold any matrix as it is; "N:M" prunes by magnitude
            what does not fit, and the report says how much.
        values: "auto" is int8; or "fp32", "bf16", "fp16", "int8", "int4".
        prune: prune by magnitude first: "N:M", "block:RxC@SPARSITY" or "unstructured@SPARSITY".
        scales: how many rows share a scale of integer values: "row", "tensor" or "chunk:R".
        activations: "auto" is "dynamic" (uint8, a scale and a zero point per token) for integer
            values and "none" for floats; "symmetric" is int8, a scale per token.
        overwrite: replace a packed model that is already in ``out_dir``.
        progress: show a progress bar; None shows it where stderr is a terminal.
        revision: hub only, a branch, tag or commit.
        token: hub only, the access token, or True for the one that is logged in.
        cache_dir: hub only, where downloads are kept.
        local_files_only: hub only, use what is cached and never the network.

    Returns:
        What was packed and kept, layer by layer, with sizes and errors.

    Raises:
        ValueError: arguments that are not understood or contradict each other; a checkpoint that
            is not found, damaged, or in a layout that is not supported (CheckpointError).
        FileExistsError: ``out_dir`` is not empty and ``overwrite`` is not given.
    """
    start = time.perf_counter()
    policy = Compression.parse(
        structure=structure, values=values, scales=scales, activations=activations, prune=prune
    )
    checkpoint = open_checkpoint(
        source,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )
    target = Path(out_dir).expanduser()
    _check_target(target, checkpoint.directory, overwrite)
    arguments = {
        "structure": structure,
        "values": values,
        "prune": prune,
        "scales": scales,
        "activations": activations,
    }
    name = source_name(source, checkpoint.directory)
    provenance = _provenance(name, revision, checkpoint, arguments)
    model, layers = _pack(checkpoint, policy, provenance, progress)
    save(model, target, overwrite=overwrite)
    return ConvertReport(
        source=name,
        directory=str(target),
        layout=checkpoint.layout,
        arguments=arguments,
        layers=layers,
        kept=_kept_tensors(model),
        dropped=checkpoint.dropped,
        size=size_report(model, target),
        seconds=time.perf_counter() - start,
    )


def encoder_modules(checkpoint: Checkpoint) -> list[str]:
    """Names of the encoder's linear modules, shared ones included, layer by layer.

    Raises:
        CheckpointError: there are none; lists the matrices that are there.
    """
    shapes = {name: checkpoint.tensors.shape(name) for name in checkpoint.tensors}
    shapes |= {other: shapes[kept] for other, kept in checkpoint.aliases.items()}
    found = [name for name, shape in shapes.items() if kind_of(name, shape) == "encoder_linear"]
    if not found:
        matrices = [name for name, shape in shapes.items() if len(shape) == 2]
        raise CheckpointError(
            f"{checkpoint.directory.name}: expected linear layers in an encoder stack "
            "('encoder.layer.0...', 'transformer.layer.0...'), got a "
            f"{checkpoint.config.get('model_type', 'nameless')} model whose matrices are "
            f"{listed(matrices, 8)}; this architecture is not supported yet"
        )
    return sorted((name.removesuffix(".weight") for name in found), key=natural_key)


def _pack(
    checkpoint: Checkpoint,
    policy: Compression,
    provenance: dict[str, Any],
    progress: bool | None,
) -> tuple[PackedModel, list[LayerReport]]:
    """Pack every encoder linear, one matrix in memory at a time."""
    modules = encoder_modules(checkpoint)
    linears: dict[str, PackedLinear] = {}
    layers: list[LayerReport] = []
    done: dict[str, tuple[PackedWeight, CompressionNote]] = {}
    # tqdm's own None means: only on a terminal.
    disable = None if progress is None else not progress
    for module in tqdm(modules, desc="packing", unit="layer", disable=disable):
        stored = checkpoint.aliases.get(f"{module}.weight", f"{module}.weight")
        if stored not in done:
            done[stored] = _compress(stored, checkpoint.tensors[stored], policy)
        packed, note = done[stored]
        linears[module] = PackedLinear(packed, _bias(checkpoint, module, packed.spec.shape[0]))
        layers.append(LayerReport.of(module, packed, note, checkpoint.tensors.nbytes(stored)))
    tensors, aliases = _rest(checkpoint, modules)
    model = PackedModel(
        config=checkpoint.config,
        linears=linears,
        tensors=tensors,
        aliases=aliases,
        provenance=provenance,
        extra_files=checkpoint.directory,
    )
    return model, layers


def _compress(
    name: str, weight: Tensor, policy: Compression
) -> tuple[PackedWeight, CompressionNote]:
    try:
        return policy.apply(weight)
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}") from error


def _bias(checkpoint: Checkpoint, module: str, rows: int) -> Tensor | None:
    name = checkpoint.aliases.get(f"{module}.bias", f"{module}.bias")
    if name not in checkpoint.tensors:
        return None
    if checkpoint.tensors.shape(name) != (rows,):
        raise CheckpointError(
            f"{name}: expected {rows} values, one an output of {module}.weight, got shape "
            f"{list(checkpoint.tensors.shape(name))}; the checkpoint is damaged"
        )
    return checkpoint.tensors[name].to(torch.float32)


def _rest(checkpoint: Checkpoint, modules: list[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors that stay as they are, and the aliases among them."""
    packed = {f"{module}.{part}" for module in modules for part in ("weight", "bias")}
    tensors = {
        name: checkpoint.tensors[name]
        for name in sorted(checkpoint.tensors, key=natural_key)
        if name not in packed
    }
    aliases = {}
    for other, kept in checkpoint.aliases.items():
        if other in packed:
            continue
        if kept in tensors:
            aliases[other] = kept
        else:
            # What it shared has gone into a packed layer, so it needs a copy of its own.
            tensors[other] = checkpoint.tensors[kept].clone()
    return tensors, aliases


def _check_target(target: Path, source: Path, overwrite: bool) -> None:
    """Refuse early what save would refuse after minutes of packing."""
    if target.is_dir():
        if source.resolve() in (target.resolve(), *target.resolve().parents):
            raise ValueError(
                f"out_dir {target}: lies in the source {source}; choose another directory"
            )
        if any(target.iterdir()) and not (overwrite and is_packed(target)):
            raise FileExistsError(
                f"out_dir {target}: expected a new or an empty directory, got one with files; "
                "overwrite=True (--overwrite) replaces a packed model, and nothing else"
            )
    elif target.exists():
        raise FileExistsError(f"out_dir {target}: expected a directory, got a file")


def _provenance(
    name: str, revision: str | None, checkpoint: Checkpoint, arguments: dict[str, Any]
) -> dict[str, Any]:
    return {
        "source": name,
        "revision": revision,
        "layout": checkpoint.layout,
        "sparse_runtime": __version__,
        "arguments": arguments,
    }


def _kept_tensors(model: PackedModel) -> list[KeptTensor]:
    return [
        KeptTensor(
            name=name,
            kind=kind_of(name, tuple(tensor.shape)),
            shape=tuple(tensor.shape),
            dtype=str(tensor.dtype).removeprefix("torch."),
            bytes=tensor.nbytes,
        )
        for name, tensor in model.tensors.items()
    ]
