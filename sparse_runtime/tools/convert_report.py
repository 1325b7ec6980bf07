"""What convert() reports: a row a packed layer, what was kept, sizes and time."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from ..checkpoints import Recognition, kind_of
from ..checkpoints.errors import listed
from ..formats import Compression, CompressionNote, PackedWeight
from ..store import SizeReport
from .crop import CroppedLayer
from .tables import add_rows_by_layer, human_bytes, layout_lines, new_table, percent, shape_text

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from torch import Tensor


NO_TOKENIZER = (
    "no tokenizer files in the source: the packed model reads token ids, but no texts, until a "
    "tokenizer is saved into its directory"
)


@dataclass(frozen=True)
class LayerReport:
    """One packed layer.

    Attributes:
        name: module name in the checkpoint.
        shape: (out_features, in_features).
        structure: structure string.
        values: value string.
        density: share of nonzeros after pruning, before rounding.
        bytes: packed bytes, indices and scales included, bias excluded.
        source_bytes: bytes of the weight in the checkpoint.
        zeroed: nonzeros of the source that were pruned away.
        error: Frobenius norm of (source - packed) over that of the source.
    """

    name: str
    shape: tuple[int, int]
    structure: str
    values: str
    density: float
    bytes: int
    source_bytes: int
    zeroed: int
    error: float

    @classmethod
    def of(
        cls, name: str, packed: PackedWeight, note: CompressionNote, source_bytes: int
    ) -> LayerReport:
        """The row of a layer that was just packed."""
        rows, cols = packed.spec.shape
        return cls(
            name=name,
            shape=(rows, cols),
            structure=str(packed.spec.structure),
            values=packed.spec.values.dtype,
            density=(note.nonzeros - note.zeroed) / (rows * cols),
            bytes=packed.size().total,
            source_bytes=source_bytes,
            zeroed=note.zeroed,
            error=note.error,
        )


@dataclass(frozen=True)
class KeptTensor:
    """A tensor that was kept with its values and dtype."""

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> KeptTensor:
        """The row of a tensor of the packed model."""
        shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
        return cls(name, kind_of(name, shape), shape, dtype, tensor.nbytes)


@dataclass(frozen=True)
class ConvertReport:
    """The outcome of one conversion.

    Attributes:
        source: hub id, or name of the source directory.
        directory: where the packed model is.
        layout: layout of the source.
        arguments: structure, values, prune, scales, activations, crop and finalise as they were
            asked for.
        layers: the packed layers, in the order of the network.
        cropped: what layers lost before they were packed; the others lost nothing.
        kept: the tensors that were not packed.
        recognised: the layouts the source has, and what showed each.
        steps: what was done to the source's tensors before they were packed.
        dropped: name of what was left out of the source -> why.
        tokenizer: whether the source has tokenizer files, which travel along.
        size: the size report of the packed model.
        seconds: wall time of the conversion.
        notes: what the user did not ask for and should know.
    """

    source: str
    directory: str
    layout: str
    arguments: dict[str, Any]
    layers: list[LayerReport]
    cropped: list[CroppedLayer]
    kept: list[KeptTensor]
    recognised: tuple[Recognition, ...]
    steps: tuple[str, ...]
    dropped: dict[str, str]
    tokenizer: bool
    size: SizeReport
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def zeroed(self) -> int:
        """Nonzero weights that were pruned away in all layers; 0 unless pruning was asked for."""
        return sum(layer.zeroed for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self) | {"size": self.size.to_dict(), "zeroed": self.zeroed}

    def __rich__(self) -> Group:
        """Tables for a terminal; layers that differ only in their number share a row."""
        from rich.console import Group

        pruned = f"{self.zeroed:,} nonzero weights pruned away" if self.zeroed else "nothing pruned"
        kept = sum(tensor.bytes for tensor in self.kept)
        return Group(
            *layout_lines(self.recognised, self.steps),
            self._layers(),
            self._sizes(),
            f"{len(self.layers)} layers packed, {pruned}; {len(self.kept)} other tensors kept "
            f"as they are ({human_bytes(kept)})",
            *self._cropped(),
            *([] if self.tokenizer else [NO_TOKENIZER]),
            *(f"note: {note}" for note in self.notes),
            f"written to {self.directory} in {self.seconds:.1f} s",
        )

    def _cropped(self) -> list[str]:
        """A line where anything was removed."""
        if not self.cropped:
            return []
        folded = sum(layer.folded for layer in self.cropped)
        effect = "all of them silent" if all(layer.silent for layer in self.cropped) else "exact"
        heads = sum(len(layer.heads) for layer in self.cropped)
        neurons = sum(layer.neurons for layer in self.cropped)
        return [
            f"{_counted(heads, 'head')} and {_counted(neurons, 'neuron')} of "
            f"{_counted(len(self.cropped), 'layer')} removed ({effect}"
            f"{f', {folded:,} folded into biases' if folded else ''})"
        ]

    def _layers(self) -> Table:
        columns = ("layers", "n", "shape", "structure", "density", "source", "packed", "error")
        table = new_table(f"{self.source}, packed as {self.layers[0].values}", columns)
        rows = [(label, _cells(layers)) for label, layers in _grouped(self.layers)]
        add_rows_by_layer(table, rows)
        return table

    def _sizes(self) -> Table:
        columns = ("size", "parameters", "FP32", "values", "packed", "FP32 / packed")
        table = new_table("", columns)
        parts = {
            "encoder linears": self.size.linears,
            "embeddings": self.size.embeddings,
            "rest": self.size.rest,
            "whole model": self.size.model,
        }
        for label, part in parts.items():
            table.add_row(
                label,
                f"{part.parameters:,}",
                human_bytes(part.fp32),
                human_bytes(part.values),
                human_bytes(part.packed),
                f"{part.fp32 / part.packed:.2f}×" if part.packed else "",
            )
        return table


def unpruned(prune: str | None, policy: Compression, layers: list[LayerReport]) -> list[str]:
    """A note of the layers of which a share was to go that rounds to no block at all."""
    share, structure = policy.sparsity, policy.structure
    if not share or structure is None or structure.kind != "block":
        return []
    rows, cols = structure.rows, structure.cols
    grids = ((layer.name, *layer.shape) for layer in layers)
    whole = [name for name, r, c in grids if not round(share * ceil(r / rows) * ceil(c / cols))]
    if not whole:
        return []
    return [
        f"prune {prune!r} removed nothing of {listed(whole)}: the share rounds to no block of "
        "theirs; take smaller ones"
    ]


def _cells(layers: list[LayerReport]) -> list[str]:
    """One row for layers of the same shape and structure."""
    return [
        f"{len(layers)}",
        shape_text(layers[0].shape),
        layers[0].structure,
        percent(sum(layer.density for layer in layers) / len(layers)),
        human_bytes(sum(layer.source_bytes for layer in layers)),
        human_bytes(sum(layer.bytes for layer in layers)),
        percent(max(layer.error for layer in layers)),
    ]


def _grouped(layers: list[LayerReport]) -> list[tuple[str, list[LayerReport]]]:
    """Layers by name with "*" for the number, apart where shape or structure differ."""
    groups: dict[tuple[object, ...], list[LayerReport]] = {}
    for layer in layers:
        label = re.sub(r"\.\d+\.", ".*.", layer.name)
        key = (label, layer.shape, layer.structure)
        groups.setdefault(key, []).append(layer)
    return [(str(key[0]), group) for key, group in groups.items()]


def _counted(number: int, what: str) -> str:
    """ "1 head", "2 heads"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
