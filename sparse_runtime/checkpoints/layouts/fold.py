"""Masks of attention heads and feed-forward neurons, folded into the weights around them.

A head's mask multiplies its attention probabilities, and so its part of the context: the columns of
the attention's output weight take it. A neuron's mask multiplies what the activation function
gives: the columns of the second feed-forward weight take it. What feeds a column of zeros is read
by nobody, so the rows and biases before it become zeros too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..draft import Draft, LazyTensor
from ..errors import CheckpointError, listed
from ..numbers import finite
from .blocks import ATTENTION, FEED_FORWARD, Block

_STACK = r"(.*\.)?(encoder|transformer)\.layer\.\d+"


def fold_masks(draft: Draft, heads: LazyTensor, neurons: LazyTensor, names: Sequence[str]) -> None:
    """Multiply masks of heads and neurons into the encoder's weights, which become float32.

    Args:
        draft: the checkpoint.
        heads: [layers, heads].
        neurons: [layers, intermediate size].
        names: what errors call the two.

    Raises:
        CheckpointError: the shapes are not those of the model, or layers lack a module. Reading
            raises it for masks that are not finite.
    """
    # Groups of columns that share an entry are counted by the mask, whose shape is checked here.
    for mask, blocks, name, key in (
        (heads, ATTENTION, names[0], ("num_attention_heads", "n_heads")),
        (neurons, FEED_FORWARD, names[1], ("intermediate_size", "hidden_dim")),
    ):
        block, layers = _find(draft, blocks)
        size = next((draft.config[k] for k in key if k in draft.config), None)
        if size is None:
            raise CheckpointError(
                f"{draft.where}: config.json has no {key[0]}, which {name} needs; add it"
            )
        if type(size) is not int or size < 1:
            raise CheckpointError(
                f"{draft.where}: config.json: expected a number from 1 as {key[0]}, got {size!r}"
            )
        if mask.shape != (len(layers), size):
            raise CheckpointError(
                f"{draft.where}: {name}: expected a mask [layers, {key[0]}] of "
                f"[{len(layers)}, {size}], got {list(mask.shape)}; it belongs to another model"
            )
        for index, layer in enumerate(layers):
            _fold_layer(draft, layer, block, _Row(mask, index, name))
    draft.steps.append(
        f"folded {names[0]} into attention output columns and {names[1]} into feed-forward output "
        "columns (entries other than 0 and 1 with one float32 rounding a weight); rows and biases "
        "that only masked heads and neurons read are 0"
    )


@dataclass(frozen=True)
class _Row:
    """One layer's entries of a mask."""

    mask: LazyTensor
    index: int
    name: str

    def spread(self, length: int) -> Tensor:
        """float32 [length], each entry for as many places as there are to one."""
        row = finite(self.name, self.mask.load())[self.index].to(torch.float32)
        return row.repeat_interleave(length // row.numel())


def _find(draft: Draft, blocks: Sequence[Block]) -> tuple[Block, list[str]]:
    """The family's block and the names of its layers, first layer first."""
    for block in blocks:
        pattern = rf"{_STACK}\.{re.escape(block.after)}\.weight"
        layers = [name.removesuffix(f".{block.after}.weight") for name in draft.names(pattern)]
        if layers:
            return block, sorted(layers, key=lambda name: int(name.rpartition(".")[2]))
    raise CheckpointError(
        f"{draft.where}: expected layers such as 'encoder.layer.0.{blocks[0].after}' in floats for "
        "its masks of heads and neurons, got "
        + (
            f"integers ({listed(f'{name}.weight' for name in draft.linears)}), into which no mask "
            "can be folded; apply the masks before quantization, or leave them out"
            if draft.linears
            else "none; this architecture is not supported"
        )
    )


def _fold_layer(draft: Draft, layer: str, block: Block, row: _Row) -> None:
    after = f"{layer}.{block.after}.weight"
    entries, columns = row.mask.shape[1], _columns(draft, after)
    if columns % entries:
        raise CheckpointError(
            f"{after}: expected columns for {entries} entries of {row.name}, got {columns}; heads "
            "or neurons have been removed already, and the masks are of the model before"
        )
    draft.change(after, torch.float32, lambda weight: _scaled(weight, row.spread(columns)))
    for module in block.before:
        for name, ndim in ((f"{layer}.{module}.weight", 2), (f"{layer}.{module}.bias", 1)):
            _require_rows(draft, name, ndim, columns, after)
            draft.change(name, torch.float32, _without_unread(row))


def _columns(draft: Draft, name: str) -> int:
    shape = draft.tensors[name].shape
    if len(shape) != 2:
        raise CheckpointError(f"{name}: expected a matrix, got {list(shape)}; the file is damaged")
    return shape[1]


def _require_rows(draft: Draft, name: str, ndim: int, rows: int, after: str) -> None:
    shape = draft.tensors[name].shape if name in draft.tensors else (rows,) * ndim
    if len(shape) != ndim or shape[0] != rows:
        raise CheckpointError(
            f"{name}: expected {ndim} axes and the {rows} rows that {after} reads, got "
            f"{list(shape)}; the file is damaged"
        )


def _scaled(weight: Tensor, mask: Tensor) -> Tensor:
    # Not a product alone: a masked column is 0, and neither -0 nor, from an infinity, NaN.
    return torch.where(mask == 0, 0, weight.to(torch.float32) * mask)


def _without_unread(row: _Row) -> Callable[[Tensor], Tensor]:
    def kept(tensor: Tensor) -> Tensor:
        read = row.spread(tensor.shape[0]) != 0
        return torch.where(read.reshape(-1, *[1] * (tensor.ndim - 1)), tensor.to(torch.float32), 0)

    return kept
