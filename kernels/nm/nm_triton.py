"""N:M weights of layout.py: how the tile kernel expands them."""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from ..unstructured.layout import WORD as INPUTS
from ..unstructured.unstructured_triton import EACH, count_bits, counts_below, expand

WORD = tl.constexpr(INPUTS)


@triton.jit
def expand_words(
    words, bits, kind: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Words of kept values -> the inputs they stand for.

    Args:
        words: integers [INPUTS / COLUMNS, OUTPUTS], values side by side, the first lowest.
        bits: uint32 of that shape, the lowest COLUMNS say which inputs take a value.
        kind: type of the values.
        OUTPUTS: columns.
        INPUTS: rows.
        COLUMNS: inputs of a word.

    Returns:
        [INPUTS, OUTPUTS] of that type.
    """
    width: tl.constexpr = kind.primitive_bitwidth
    i = tl.arange(0, COLUMNS).to(tl.uint32)[None, None, :]
    below = (counts_below(bits)[:, :, None] >> (4 * i)) & 15
    # Behind the last value of a word nothing is wanted: the shift stays inside of it.
    wide: tl.constexpr = tl.uint64 if words.dtype.primitive_bitwidth == 64 else tl.uint32
    most: tl.constexpr = wide.primitive_bitwidth - width
    shift = tl.minimum(below * width, most).to(wide)
    value = words.to(wide, bitcast=False)[:, :, None] >> shift
    value = tl.where(((bits[:, :, None] >> i) & 1) != 0, value, 0)
    if width == 8:
        value = value.to(tl.int8)
    elif width == 16:
        value = value.to(tl.int16).to(kind, bitcast=True)
    else:
        value = value.to(tl.int32).to(kind, bitcast=True)
    return tl.reshape(tl.permute(value, (0, 2, 1)), (INPUTS, OUTPUTS))


@triton.jit
def load_weight_tile(
    weight, outputs, first, out_features, in_features,
    N: tl.constexpr, M: tl.constexpr, COLUMNS: tl.constexpr, SLOTS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """One tile, k down and n across, as it was before it was packed.

    Args:
        weight: an ``NMWeight``.
        outputs: int32 [BLOCK_N], which rows of the matrix; those from ``out_features`` on repeat
            the last, for nobody stores what is computed of them.
        first: the first of BLOCK_K columns, a multiple of BLOCK_K.
        out_features: rows of the matrix.
        in_features: columns of the matrix.
        N: values of a group.
        M: inputs of a group.
        COLUMNS: inputs of a word of ``kept``, 0 where there are no such words (``word_of``).
        SLOTS: values of such a word.
        BLOCK_N: rows of the tile.
        BLOCK_K: columns of the tile, a multiple of ``WORD``.
        EVEN_K: no tile reaches beyond ``in_features``.

    Returns:
        [BLOCK_K, BLOCK_N], zeros from ``in_features`` on.
    """
    kind: tl.constexpr = weight.kept.dtype.element_ty
    each: tl.constexpr = COLUMNS if COLUMNS > 0 else EACH
    row_words = tl.cdiv(in_features, WORD)
    row = tl.minimum(outputs, out_features - 1).to(tl.int64)[None, :]
    piece = tl.arange(0, BLOCK_K // each)[:, None]
    word = first // WORD + piece // (WORD // each)
    inside = word < row_words
    masks = weight.masks + row * row_words + word
    mask = tl.load(masks) if EVEN_K else tl.load(masks, mask=inside, other=0)
    mask = mask.to(tl.uint32, bitcast=True)
    before = (piece % (WORD // each) * each).to(tl.uint32)
    bits = mask >> before
    if COLUMNS > 0:
        integer: tl.constexpr = word_type(SLOTS * kind.primitive_bitwidth)
        words = weight.kept.to(tl.pointer_type(integer), bitcast=True)
        at = words + row * (row_words * (WORD // each)) + first // each + piece
        found = tl.load(at) if EVEN_K else tl.load(at, mask=inside, other=0)
        tile = expand_words(found, bits, kind, BLOCK_N, BLOCK_K, COLUMNS)
    else:
        # Bits of the groups before say nothing new: a group starts at its number times N.
        start = before // M * M
        one = tl.full(mask.shape, 1, tl.uint32)
        within = (mask & ((one << before) - 1)) >> start
        group = (first + piece * each) // M
        place = (row * (row_words * (WORD // M)) + group) * N + count_bits(within)
        tile = expand(weight.kept, place, bits, BLOCK_N, BLOCK_K)
    return tile


@triton.constexpr_function
def word_type(bits: int) -> tl.dtype:
    """The unsigned integer that holds so many bits."""
    return {8: tl.uint8, 16: tl.uint16, 32: tl.uint32, 64: tl.uint64}[bits]
