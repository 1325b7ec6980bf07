"""Calibrated pruning inside convert(): the checkpoint with its layers solved, ready to pack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoints import (
    Checkpoint,
    CheckpointError,
    CheckpointTensors,
    QuantizedLinear,
    QuantizedValues,
)
from ..checkpoints.draft import LazyTensor
from ..compress.oneshot.calibrate import calibration_batches, longest
from ..compress.oneshot.layerwise import Format, compress_layers
from ..compress.oneshot.loading import load_model, load_tokenizer
from ..compress.oneshot.solvers import METHODS, Method
from ..compress.oneshot.state import LayerStates, fingerprint
from ..compress.patterns import Pattern
from ..compress.statement import LinearQuantization
from ..compress.targets import encoder_linears
from ..formats import Compression, CompressionNote

METHOD: Method = "alps"
"""What prunes where texts are given and no method is named."""

_LENGTH = 256
"""Tokens to truncate a text to."""


@dataclass(frozen=True)
class Solved:
    """A checkpoint whose encoder layers were pruned and quantized in view of texts.

    Attributes:
        checkpoint: with the solved weights in place of its own.
        notes: what each layer lost of its source, by module name.
    """

    checkpoint: Checkpoint
    notes: dict[str, CompressionNote]


def read_method(method: str | None) -> Method:
    """A method of solving by its name; None is the usual one.

    Raises:
        ValueError: there is none of that name.
    """
    for known in METHODS:
        if known == (method or METHOD):
            return known
    raise ValueError(f"prune_method {method!r}: expected one of {', '.join(map(repr, METHODS))}")


def solve_checkpoint(
    checkpoint: Checkpoint,
    modules: Sequence[str],
    policy: Compression,
    texts: Sequence[str],
    *,
    method: str | None,
    state_dir: str | Path | None = None,
    progress: bool | None,
) -> Solved:
    """Prune and quantize the encoder's layers by reconstruction of their outputs.

    Args:
        checkpoint: with float weights.
        modules: names of its encoder linears.
        policy: what each becomes.
        texts: calibration texts.
        method: as ``compress.oneshot.prune`` takes it; None is "alps".
        state_dir: keep finished layers there, and go on from those that it holds.
        progress: show a progress bar; None shows it where stderr is a terminal.

    Raises:
        ValueError: the policy leaves nothing to solve, the checkpoint cannot be calibrated, or the
            state is another run's.
    """
    chosen = read_method(method)
    wanted = Format(_pattern(policy), policy.values if policy.values.is_integer else None)
    if wanted.pattern is None and wanted.values is None:
        raise ValueError(
            "calibration: nothing to solve; give prune (--prune 2:4), or values int8 or int4"
        )
    shared = [name for name in modules if f"{name}.weight" in checkpoint.aliases]
    if shared:
        raise CheckpointError(
            f"{checkpoint.directory.name}: {shared[0]} shares its weight with another layer, so it "
            "cannot be fitted to its own inputs; leave calibration out"
        )
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint.directory)
    names = _names(list(encoder_linears(model)), modules)
    length = longest(model, tokenizer, _LENGTH)
    batches = calibration_batches(tokenizer, texts, max_length=length)
    states = None
    if state_dir is not None:
        made = fingerprint(model, texts, convert=str(wanted), method=chosen)
        states = LayerStates(state_dir, made)
    result = compress_layers(
        model,
        batches,
        dict.fromkeys(names, wanted),
        method=chosen,
        states=states,
        progress=progress,
    )
    linears = {names[name]: linear for name, linear in encoder_linears(model).items()}
    scales = {names[name]: scale for name, scale in result.scales.items()}
    notes = {
        module: _note(checkpoint.tensors[f"{module}.weight"], linear.weight.detach())
        for module, linear in linears.items()
    }
    return Solved(_overlaid(checkpoint, linears, scales, policy), notes)


def _pattern(policy: Compression) -> Pattern | None:
    structure = policy.structure
    if structure is None or structure.kind == "dense":
        return None
    if policy.sparsity is None and structure.kind != "nm":
        return None  # holds any matrix
    return Pattern(structure, policy.sparsity)


def _names(ours: Sequence[str], modules: Sequence[str]) -> dict[str, str]:
    """Module name in transformers' class -> name in the checkpoint, with or without its prefix."""
    names: dict[str, str] = {}
    for name in ours:
        found = [
            m for m in modules if m == name or m.endswith(f".{name}") or name.endswith(f".{m}")
        ]
        if len(found) != 1:
            raise CheckpointError(f"{name}: expected one layer of that name, got {found}")
        names[name] = found[0]
    return names


def _overlaid(
    checkpoint: Checkpoint,
    linears: Mapping[str, nn.Linear],
    scales: Mapping[str, Tensor],
    policy: Compression,
) -> Checkpoint:
    """The checkpoint with the solved layers; those with scales stated in integers."""
    tensors = {name: _lazy_from(checkpoint, name) for name in checkpoint.tensors}
    stated: dict[str, QuantizedLinear] = {}
    for module, linear in linears.items():
        weight = linear.weight.detach()
        nbytes = checkpoint.tensors.nbytes(f"{module}.weight")
        if linear.bias is not None:
            tensors[f"{module}.bias"] = _lazy(linear.bias.detach())
        if module not in scales:
            tensors[f"{module}.weight"] = _lazy(weight)
            continue
        del tensors[f"{module}.weight"]
        stated[module] = _stated(weight, scales[module], policy, nbytes)
    return replace(checkpoint, tensors=CheckpointTensors(tensors), linears=stated)


def _stated(weight: Tensor, scales: Tensor, policy: Compression, nbytes: int) -> QuantizedLinear:
    shape = (weight.shape[0], weight.shape[1])
    said = LinearQuantization(policy.values, scales, policy.activations)
    return QuantizedLinear(
        shape=shape,
        values=policy.values,
        activations=policy.activations,
        nbytes=nbytes,
        load=lambda: QuantizedValues(said.integers("weight", weight), scales),
    )


def _lazy(tensor: Tensor) -> LazyTensor:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return LazyTensor(tuple(tensor.shape), dtype, lambda: tensor)


def _lazy_from(checkpoint: Checkpoint, name: str) -> LazyTensor:
    tensors = checkpoint.tensors
    return LazyTensor(tensors.shape(name), tensors.dtype(name), lambda: tensors[name])


def _note(source: Tensor, solved: Tensor) -> CompressionNote:
    before = source.double()
    norm = torch.linalg.vector_norm(before)
    nonzeros = int(torch.count_nonzero(source))
    return CompressionNote(
        nonzeros=nonzeros,
        zeroed=nonzeros - int(torch.count_nonzero(solved)),
        error=float(torch.linalg.vector_norm(before - solved.double()) / norm) if norm > 0 else 0.0,
    )
