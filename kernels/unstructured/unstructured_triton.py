"""Unstructured weights of layout.py: how the tile kernel expands them."""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from .layout import WORD as INPUTS

WORD = tl.constexpr(INPUTS)
EACH = tl.constexpr(8)  # neighbouring inputs that one thread expands from one entry


@triton.jit
def count_bits(bits):
    """Set bits of uint32; the compiler knows this form and makes one instruction of it."""
    bits = bits - ((bits >> 1) & 0x55555555)
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    return ((((bits + (bits >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def counts_below(bits):
    """uint32 bits 0 .. 7 -> eight nibbles: how many bits are set below each."""
    # Bit i goes to nibble i; a product with ones then adds up what is below and at each nibble.
    nibbles = bits & 0xFF
    nibbles = (nibbles | (nibbles << 12)) & 0x000F000F
    nibbles = (nibbles | (nibbles << 6)) & 0x03030303
    nibbles = (nibbles | (nibbles << 3)) & 0x11111111
    return (nibbles * 0x11111111) << 4


@triton.jit
def expand(nonzeros, place, bits, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr):
    """Columns of values of which some are stored, one behind the other.

    Args:
        nonzeros: pointer to stored values.
        place: int32 [INPUTS / EACH, OUTPUTS], of the first value of each piece.
        bits: uint32 of that shape, the lowest EACH say which are stored.
        OUTPUTS: columns.
        INPUTS: rows.

    Returns:
        [INPUTS, OUTPUTS].
    """
    i = tl.arange(0, EACH).to(tl.uint32)[None, None, :]
    one = tl.full((1, 1, EACH), 1, tl.uint32)
    below = (counts_below(bits)[:, :, None] >> (4 * i)) & 15
    at = (nonzeros + place)[:, :, None] + below.to(tl.int32)
    tile = tl.load(at, mask=(bits[:, :, None] & (one << i)) != 0, other=0)
    return tl.reshape(tl.permute(tile, (0, 2, 1)), (INPUTS, OUTPUTS))


@triton.jit
def load_weight_tile(
    weight,
    outputs,
    first,
    out_features,
    in_features,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """One tile, k down and n across, as it was before zeros were left out.

    Args:
        weight: an ``UnstructuredWeight``.
        outputs: int32 [BLOCK_N], which rows of the matrix; those from ``out_features`` on repeat
            the last, for nobody stores what is computed of them.
        first: the first of BLOCK_K columns, a multiple of BLOCK_K.
        out_features: rows of the matrix.
        in_features: columns of the matrix.
        BLOCK_N: rows of the tile.
        BLOCK_K: columns of the tile, a multiple of ``WORD``.
        EVEN_K: no tile reaches beyond ``in_features``.

    Returns:
        [BLOCK_K, BLOCK_N], zeros from ``in_features`` on.
    """
    words = tl.cdiv(in_features, WORD)
    piece = tl.arange(0, BLOCK_K // EACH)
    word = first // WORD + piece // (WORD // EACH)
    outputs = tl.minimum(outputs, out_features - 1)
    at = weight.entries + outputs.to(tl.int64)[None, :] * words + word[:, None]
    entry = tl.load(at) if EVEN_K else tl.load(at, mask=(word < words)[:, None], other=0)
    bits = entry.to(tl.uint32)
    before = (piece % (WORD // EACH) * EACH).to(tl.uint32)[:, None]
    one = tl.full(bits.shape, 1, tl.uint32)
    place = (entry >> WORD).to(tl.int32) + count_bits(bits & ((one << before) - 1))
    return expand(weight.nonzeros, place, bits >> before, BLOCK_N, BLOCK_K)
