"""Which structure the zeros of a matrix show."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import pad

from ..spec import Structure, ValueSpec
from .block import to_blocks
from .nm import position_bits

NM_CANDIDATES = ("1:16", "1:8", "2:16", "1:4", "2:8", "4:16", "1:2", "2:4", "4:8", "8:16")
BLOCK_CANDIDATES = (
    *("64x64", "32x32", "16x16", "8x8", "4x4"),
    *("64x1", "1x64", "32x1", "1x32", "16x1", "1x16", "8x1", "1x8", "4x1", "1x4"),
)

# A pattern is believed when the stored positions are nearly all nonzero: trained weights are
# hardly ever exactly zero by chance, while a pattern that merely happens to cover unstructured
# zeros stores many of them.
MIN_FILL = 0.9
# Rounding to 4 bits sets about a seventh of trained weights to zero that the pattern keeps.
MIN_FILL_INT4 = 0.75
# Above this share of nonzeros a bitmask costs more bytes than the INT8 zeros it leaves out; floats
# are held to the same share, and the bytes of each value type are compared besides.
DENSE_DENSITY = 1 - 1 / 8


@dataclass(frozen=True)
class Observation:
    """What the zeros of one matrix show.

    Attributes:
        density: share of nonzero values, 0 to 1.
        structure: the structure the zeros show; it represents the matrix without loss.
        fill: share of nonzeros among the positions ``structure`` stores.
        empty_rows: rows (outputs) without a nonzero.
        empty_cols: columns (inputs) without a nonzero.
        sizes: structure string -> packed bytes in the given value type, for dense, unstructured
            and every N:M and block candidate that holds the matrix without loss, is nearly full
            (``MIN_FILL``; for int4 ``MIN_FILL_INT4``) and takes no more bytes than dense.
    """

    density: float
    structure: Structure
    fill: float
    empty_rows: int
    empty_cols: int
    sizes: dict[str, int]


def observe(weight: Tensor, values: ValueSpec | None = None) -> Observation:
    """Examine a matrix [out, in] that is to be stored in ``values`` (default int8 per row).

    Packed, the structure never takes more bytes than dense.
    """
    values = values or ValueSpec("int8")
    nonzero = weight != 0
    density = nonzero.double().mean().item()
    fills = _patterns(nonzero, density, values) if 0 < density < DENSE_DENSITY else {}
    structure, fill = _shown(nonzero, fills, density, values)
    offered = {"dense", "unstructured", str(structure), *fills}
    return Observation(
        density=density,
        structure=structure,
        fill=fill,
        empty_rows=int((~nonzero.any(1)).sum()),
        empty_cols=int((~nonzero.any(0)).sum()),
        sizes={t: packed_bytes(nonzero, Structure.parse(t), values) for t in sorted(offered)},
    )


def _patterns(nonzero: Tensor, density: float, values: ValueSpec) -> dict[str, float]:
    """Share of nonzeros in what each believed N:M and block candidate stores, best first."""
    dense = packed_bytes(nonzero, Structure("dense"), values)
    least = MIN_FILL_INT4 if values.bits == 4 else MIN_FILL
    fills: dict[str, float] = {}
    for text in (*NM_CANDIDATES, *(f"block:{sides}" for sides in BLOCK_CANDIDATES)):
        structure = Structure.parse(text)
        if structure.kind == "nm" and not _fits_nm(nonzero, structure):
            continue
        fill = (
            _nm_fill(nonzero, structure)
            if structure.kind == "nm"
            else _block_fill(nonzero, structure)
        )
        # A grid whose blocks are nearly all kept is only a dense matrix cut into tiles.
        tiles = structure.kind == "block" and density >= DENSE_DENSITY * fill
        if fill >= least and not tiles and packed_bytes(nonzero, structure, values) <= dense:
            fills[text] = fill
    return fills


def _shown(
    nonzero: Tensor, fills: dict[str, float], density: float, values: ValueSpec
) -> tuple[Structure, float]:
    for text, fill in fills.items():
        return Structure.parse(text), fill
    unstructured, dense = Structure("unstructured"), Structure("dense")
    if density == 0:
        return unstructured, 1.0
    saves = packed_bytes(nonzero, unstructured, values) < packed_bytes(nonzero, dense, values)
    return (unstructured, 1.0) if density < DENSE_DENSITY and saves else (dense, density)


def _fits_nm(nonzero: Tensor, structure: Structure) -> bool:
    if nonzero.shape[1] < structure.m:
        return False  # not one whole group to show the pattern
    grouped = pad(nonzero, (0, -nonzero.shape[1] % structure.m)).unflatten(1, (-1, structure.m))
    return bool((grouped.sum(-1) <= structure.n).all())


def _nm_fill(nonzero: Tensor, structure: Structure) -> float:
    rows, cols = nonzero.shape
    groups, rest = divmod(cols, structure.m)
    return int(nonzero.sum()) / (rows * (groups * structure.n + min(rest, structure.n)))


def _block_fill(nonzero: Tensor, structure: Structure) -> float:
    stored = int(to_blocks(nonzero, structure).any(-1).sum()) * structure.rows * structure.cols
    return int(nonzero.sum()) / stored if stored else 0.0


def packed_bytes(nonzero: Tensor, structure: Structure, values: ValueSpec) -> int:
    """Bytes a matrix with these nonzeros takes, by the shapes of docs/formats.

    Args:
        nonzero: Bool [out, in].
        structure: one that holds the matrix without loss.
        values: the value type; its scales and zero points are counted.
    """
    (rows, cols), bits = nonzero.shape, values.bits
    scales = (4 + values.zero_points) * values.scale_count(rows, cols)
    if structure.kind == "dense":
        return rows * -(-cols * bits // 8) + scales
    if structure.kind == "unstructured":
        return -(-int(nonzero.sum()) * bits // 8) + rows * -(-cols // 8) + scales
    if structure.kind == "nm":
        kept = -(-cols // structure.m) * structure.n
        index = -(-kept * position_bits(structure.m) // 8)
        return rows * (-(-kept * bits // 8) + index) + scales
    mask = to_blocks(nonzero, structure).any(-1)
    block = -(-structure.rows * structure.cols * bits // 8)
    return int(mask.sum()) * block + mask.shape[0] * -(-mask.shape[1] // 8) + scales


def heads_without_nonzero(weight: Tensor, heads: int) -> int:
    """Heads (equal slices of rows of a query, key or value weight) that are all zero."""
    if heads < 1 or weight.shape[0] % heads:
        return 0
    return int((~(weight != 0).view(heads, -1).any(1)).sum())
