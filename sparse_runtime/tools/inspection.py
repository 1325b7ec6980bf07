"""inspect(): what the zeros of every matrix show, and what each format would make of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoints import (
    Checkpoint,
    is_packed,
    kind_of,
    locate,
    natural_key,
    open_checkpoint,
    source_name,
)
from ..formats import observe
from ..formats.detect import heads_without_nonzero
from ..store import PackedModel, load
from .crop_plan import head_size_of
from .inspection_report import InspectReport, MatrixReport

# Modules whose rows are the heads of an attention, and those whose columns are.
_HEAD_ROWS = re.compile(r".*\.att\w*\.(.*\.)?((query|key|value)(_proj)?|[qkv](_lin|_proj)?)")
_HEAD_COLS = re.compile(r".*\.att\w*\.(.*\.)?(output\.dense|out_lin|out_proj|o_proj|o)")


def inspect(
    source: str | Path,
    *,
    finalise: Mapping[str, Any] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> InspectReport:
    """Examine a checkpoint, or a packed model, matrix by matrix, and change nothing.

    Packed sizes are stated for int8 values with a scale a row. A tied or shared weight has one
    row. The arguments are those of :func:`sparse_runtime.convert`.

    Returns:
        One row a matrix; the structure of a packed model's rows is the one it is stored in.

    Raises:
        ValueError: the source is not found, damaged, or in a layout that is not supported.
    """
    directory = locate(
        source,
        finalise=finalise,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )
    name = source_name(source, directory)
    if is_packed(directory):
        return _inspect_packed(name, load(directory))
    return _inspect_checkpoint(name, open_checkpoint(directory, finalise=finalise))


def _inspect_checkpoint(name: str, checkpoint: Checkpoint) -> InspectReport:
    tensors, aliases = checkpoint.tensors, checkpoint.aliases
    names = sorted(tensors, key=natural_key)
    rows = [
        _plain_row(
            tensor,
            tensors[tensor],
            checkpoint.config,
            checkpoint.head_size,
            _names_of(tensor, aliases),
        )
        for tensor in names
        if len(tensors.shape(tensor)) == 2
    ]
    rows += [
        _integer_row(module, checkpoint) for module in sorted(checkpoint.linears, key=natural_key)
    ]
    vectors = [tensor for tensor in names if len(tensors.shape(tensor)) != 2]
    return InspectReport(
        source=name,
        layout=checkpoint.layout,
        model_type=checkpoint.config.get("model_type"),
        packed=False,
        matrices=rows,
        vectors=len(vectors),
        vector_bytes=sum(tensors.nbytes(tensor) for tensor in vectors),
        recognised=checkpoint.recognised,
        steps=checkpoint.steps,
        renamed=checkpoint.renamed,
        dropped=checkpoint.dropped,
    )


def _inspect_packed(name: str, model: PackedModel) -> InspectReport:
    rows = [_packed_row(module, model) for module in sorted(model.linears, key=natural_key)]
    plain = {tensor: model.tensors[tensor] for tensor in sorted(model.tensors, key=natural_key)}
    rows += [
        _plain_row(tensor, matrix, model.config, model.head_size, _names_of(tensor, model.aliases))
        for tensor, matrix in plain.items()
        if matrix.ndim == 2
    ]
    vectors = [tensor for tensor in plain.values() if tensor.ndim != 2]
    vectors += [linear.bias for linear in model.linears.values() if linear.bias is not None]
    return InspectReport(
        source=name,
        layout="sparse_runtime: packed",
        model_type=model.config.get("model_type"),
        packed=True,
        matrices=rows,
        vectors=len(vectors),
        vector_bytes=sum(tensor.nbytes for tensor in vectors),
    )


def _plain_row(
    name: str,
    weight: Tensor,
    config: Mapping[str, Any],
    head_size: int | None,
    shared_with: tuple[str, ...],
) -> MatrixReport:
    seen = observe(weight)
    kind = kind_of(name, tuple(weight.shape))
    heads = empty_heads = None
    if kind == "encoder_linear":
        heads, empty_heads = _heads(name, weight, config, head_size)
    return MatrixReport(
        name=name,
        kind=kind,
        shape=(weight.shape[0], weight.shape[1]),
        dtype=str(weight.dtype).removeprefix("torch."),
        density=seen.density,
        structure=str(seen.structure),
        fill=seen.fill,
        empty_rows=seen.empty_rows,
        empty_cols=seen.empty_cols,
        heads=heads,
        empty_heads=empty_heads,
        bytes=weight.nbytes,
        sizes=seen.sizes,
        recommended=str(seen.structure) if kind == "encoder_linear" else None,
        shared_with=shared_with,
    )


def _integer_row(module: str, checkpoint: Checkpoint) -> MatrixReport:
    """A layer that the checkpoint states in integers; convert packs it wherever it is."""
    linear = checkpoint.linears[module]
    weight = linear.load().weight
    row = _plain_row(f"{module}.weight", weight, checkpoint.config, checkpoint.head_size, ())
    return replace(
        row,
        dtype=linear.values.dtype,
        bytes=linear.nbytes,
        recommended=row.structure,
    )


def _packed_row(module: str, model: PackedModel) -> MatrixReport:
    packed = model.linears[module].packed
    name, weight, size = f"{module}.weight", packed.unpack(), packed.size()
    nonzero = weight != 0
    count = int(nonzero.sum())
    heads, empty_heads = _heads(name, weight, model.config, model.head_size)
    places = size.values * 8 // packed.spec.values.bits
    return MatrixReport(
        name=name,
        kind=kind_of(name, packed.spec.shape),
        shape=packed.spec.shape,
        dtype=packed.spec.values.dtype,
        density=count / weight.numel(),
        structure=str(packed.spec.structure),
        fill=count / places if places else 1.0,
        empty_rows=int((~nonzero.any(1)).sum()),
        empty_cols=int((~nonzero.any(0)).sum()),
        heads=heads,
        empty_heads=empty_heads,
        bytes=size.total,
        sizes={str(packed.spec.structure): size.total},
        recommended=None,
        shared_with=(),
    )


def _heads(
    name: str, weight: Tensor, config: Mapping[str, Any], stated: int | None
) -> tuple[int, int] | tuple[None, None]:
    """(heads, heads that are all zero) of an attention's projection; None for other matrices."""
    module = name.removesuffix(".weight")
    if _HEAD_ROWS.fullmatch(module):
        by_head, hidden = weight, weight.shape[1]
    elif _HEAD_COLS.fullmatch(module):
        by_head, hidden = weight.t(), weight.shape[0]
    else:
        return None, None
    size = head_size_of(config, hidden, stated)
    if size is None or by_head.shape[0] % size:
        return None, None
    heads = by_head.shape[0] // size
    return heads, heads_without_nonzero(by_head.contiguous(), heads)


def _names_of(kept: str, aliases: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(sorted(other for other, name in aliases.items() if name == kept))
