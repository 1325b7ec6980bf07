"""convert(): a checkpoint becomes a packed model, checked whole before a byte is written."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .. import __version__
from ..checkpoints import (
    Checkpoint,
    CheckpointError,
    kind_of,
    natural_key,
    open_checkpoint,
    source_name,
)
from ..checkpoints.errors import listed
from ..formats import Compression, CompressionNote, PackedWeight
from ..store import PackedLinear, PackedModel, save, size_report
from ..store.directories import read_path
from ..store.tokenizer_files import has_tokenizer
from .convert_checks import check_target, check_texts, refuse_requantizing
from .convert_report import ConvertReport, KeptTensor, LayerReport, unpruned
from .crop import Crop
from .crop_plan import check_crop, plan_crop
from .integers import linear_bias, pack_integers, packed_values
from .one_shot import METHOD, read_method, solve_checkpoint
from .runnable import check_weights, only_transformers, read_runnable

logger = logging.getLogger(__name__)


def convert(
    source: str | Path,
    out_dir: str | Path,
    *,
    structure: str = "auto",
    values: str = "auto",
    prune: str | None = None,
    calibration: Sequence[str] | None = None,
    prune_method: str | None = None,
    state_dir: str | Path | None = None,
    scales: str = "row",
    activations: str = "auto",
    crop: str = "auto",
    finalise: Mapping[str, Any] | None = None,
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

    A checkpoint that states its linear layers in integers keeps them, and how it quantizes their
    inputs, to the last bit; layers that it leaves in floats then keep their float type.

    Args:
        source: a directory or hub id, in any layout that docs/checkpoints.md lists.
        out_dir: where the packed model goes; must not exist, or be empty, without ``overwrite``.
        structure: "auto" keeps what each matrix' zeros show and loses nothing; "dense",
            "unstructured" and "block:RxC" hold any matrix as it is; "N:M" prunes by magnitude
            what does not fit, and the report says how much.
        values: "auto" is int8; or "fp32", "bf16", "fp16", "int8", "int4".
        prune: prune first: "N:M", "block:RxC@SPARSITY" or "unstructured@SPARSITY"; by magnitude
            where no ``calibration`` is given.
        calibration: texts like those the model will read, in view of which layers are pruned and
            rounded so that their outputs change least (docs/compress/one_shot.md).
        prune_method: with ``calibration``: "alps" (the default), "obs", "wanda" or "magnitude".
        state_dir: with ``calibration``: keeps finished layers; the same call goes on from them.
        scales: how many rows share a scale of integer values: "row", "tensor" or "chunk:R".
        activations: "auto" is "dynamic" (uint8, a scale and a zero point per token) for integer
            values and "none" for floats; "symmetric" is int8, a scale per token.
        crop: "auto" removes attention heads and feed-forward neurons whose outputs are zero or
            read by nobody (neurons where they are one in sixteen or more), "fold" also those whose
            outputs are constant, which go into a bias (not with integers that ``calibration``
            gives); "none" keeps every row and column. The report lists what went.
        finalise: what the files leave open, such as ``{"threshold": 0.1}``; the error that asks
            for it names it.
        overwrite: replace a packed model that is already in ``out_dir``.
        progress: show a progress bar; None shows it where stderr is a terminal.
        revision: hub only, a branch, tag or commit.
        token: hub only, the access token, or True for the one that is logged in.
        cache_dir: hub only, where downloads are kept.
        local_files_only: hub only, use what is cached and never the network.

    Returns:
        What was packed and kept, layer by layer, with sizes and errors.

    Raises:
        TypeError: a path, ``calibration`` or ``finalise`` is of another type.
        ValueError: arguments that are not understood or contradict each other; a checkpoint that
            is not found, damaged, in a layout that is not supported, or could not be loaded once
            packed (CheckpointError).
        FileExistsError: ``out_dir`` is not empty and ``overwrite`` is not given.
    """
    start = time.perf_counter()
    policy = Compression.parse(
        structure=structure, values=values, scales=scales, activations=activations, prune=prune
    )
    read_method(prune_method)
    check_texts(calibration)
    if prune_method is not None and calibration is None:
        raise ValueError(
            f"prune_method {prune_method!r}: needs texts; give calibration, or leave it out to "
            "prune by magnitude"
        )
    if state_dir is not None and calibration is None:
        raise ValueError(
            f"state_dir {state_dir} (--state): keeps layers that are solved in view of texts; give "
            "calibration (--calibration), or leave it out"
        )
    target = read_path("out_dir", out_dir).expanduser()
    checkpoint = open_checkpoint(
        source,
        finalise=finalise,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )
    settings = read_runnable(checkpoint)
    check_target(target, checkpoint.directory, overwrite)
    arguments = {
        "structure": structure,
        "values": values,
        "prune": prune,
        "calibration": None if calibration is None else len(calibration),
        "prune_method": prune_method if calibration is None else prune_method or METHOD,
        "scales": scales,
        "activations": activations,
        "crop": crop,
        "finalise": _recorded(finalise or {}),
    }
    if checkpoint.linears:
        refuse_requantizing(checkpoint, arguments)
    check_crop(checkpoint, policy, crop, calibrated=calibration is not None)
    name = source_name(source, checkpoint.directory)
    provenance = _provenance(name, revision, checkpoint, arguments)
    solved = None
    if calibration is not None:
        solved = solve_checkpoint(
            checkpoint,
            encoder_modules(checkpoint),
            policy,
            calibration,
            method=prune_method,
            state_dir=state_dir,
            progress=progress,
        )
        checkpoint = solved.checkpoint
    cut = plan_crop(checkpoint, encoder_modules(checkpoint), policy, crop)
    provenance["cropped"] = cut.to_dict()
    notes = {} if solved is None else solved.notes
    model, layers = _pack(checkpoint, policy, cut, provenance, progress, notes)
    remarks = unpruned(prune, policy, layers)
    if settings is None:
        remarks.append(only_transformers(checkpoint))
        logger.warning("%s: %s", name, remarks[-1])
    else:
        check_weights(model, settings)
    save(model, target, overwrite=overwrite)
    return ConvertReport(
        source=name,
        directory=str(target),
        layout=checkpoint.layout,
        arguments=arguments,
        layers=layers,
        cropped=cut.layers,
        kept=[KeptTensor.of(name, tensor) for name, tensor in model.tensors.items()],
        recognised=checkpoint.recognised,
        steps=checkpoint.steps,
        dropped=checkpoint.dropped,
        tokenizer=has_tokenizer(target),
        size=size_report(model, target),
        seconds=time.perf_counter() - start,
        notes=tuple(remarks),
    )


def encoder_modules(checkpoint: Checkpoint) -> list[str]:
    """Names of the encoder's linear modules, shared ones included, layer by layer.

    Raises:
        CheckpointError: there are none; lists the matrices that are there.
    """
    shapes = {name: checkpoint.tensors.shape(name) for name in checkpoint.tensors}
    shapes |= {other: shapes[kept] for other, kept in checkpoint.aliases.items()}
    shapes |= {f"{module}.weight": linear.shape for module, linear in checkpoint.linears.items()}
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
    cut: Crop,
    provenance: dict[str, Any],
    progress: bool | None,
    notes: Mapping[str, CompressionNote],
) -> tuple[PackedModel, list[LayerReport]]:
    """Pack every encoder linear, one matrix in memory at a time."""
    # Heads that the file states in integers are packed too: no float would be what they are.
    modules = sorted({*encoder_modules(checkpoint), *checkpoint.linears}, key=natural_key)
    linears: dict[str, PackedLinear] = {}
    layers: list[LayerReport] = []
    done: dict[str, tuple[PackedWeight, CompressionNote, int]] = {}
    # tqdm's own None means: only on a terminal.
    disable = None if progress is None else not progress
    for module in tqdm(modules, desc="packing", unit="layer", disable=disable):
        stored = checkpoint.aliases.get(f"{module}.weight", f"{module}.weight")
        # Layers that share a weight may lose different parts of it.
        key = module if cut.touches(module) else stored
        if key not in done:
            done[key] = _pack_one(checkpoint, module, stored, policy, cut)
        packed, note, nbytes = done[key]
        # What was solved before packing has lost something already.
        note = notes.get(module, note)
        own = linear_bias(checkpoint, module)
        bias = cut.bias(module, None if own is None else own.to(torch.float32))
        linears[module] = PackedLinear(packed, bias)
        layers.append(LayerReport.of(module, packed, note, nbytes))
    tensors, aliases = _rest(checkpoint, modules)
    model = PackedModel(
        config=checkpoint.config,
        linears=linears,
        tensors=tensors,
        aliases=aliases,
        attention=checkpoint.attention,
        provenance=provenance,
        extra_files=checkpoint.directory,
        absent=checkpoint.absent,
        head_size=checkpoint.head_size,
    )
    return model, layers


def _pack_one(
    checkpoint: Checkpoint, module: str, stored: str, policy: Compression, cut: Crop
) -> tuple[PackedWeight, CompressionNote, int]:
    """The packed weight, what packing changed, and the bytes it took in the file."""
    try:
        if module in checkpoint.linears:
            linear = checkpoint.linears[module]
            return *pack_integers(cut.integers(module, linear), policy.structure), linear.nbytes
        if checkpoint.linears:
            kept = packed_values(checkpoint, module, policy.values)
            policy = replace(policy, values=kept, activations=None)
        packed, note = policy.apply(cut.weight(module, checkpoint.tensors[stored]))
        return packed, note, checkpoint.tensors.nbytes(stored)
    except CheckpointError:
        raise  # names its tensor already
    except ValueError as error:
        raise CheckpointError(f"{stored}: {error}") from error


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


def _recorded(finalise: Mapping[str, Any]) -> dict[str, Any]:
    """What the user has said of the files, as it is written down: without paths of a machine."""
    return {
        name: Path(said).name if _is_path(name, said) else said for name, said in finalise.items()
    }


def _is_path(name: str, said: Any) -> bool:
    if name == "config" or isinstance(said, Path):
        return True
    return isinstance(said, str) and Path(said).is_absolute()


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
