"""Eight neighbouring int8 of which some are stored, expanded as two 32-bit words.

One instruction of the GPU (PRMT) takes four bytes out of eight, each by its number. How many values
are stored below each position is just that number.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def pick_bytes(low, high, numbers):
    """Four bytes out of eight, as uint32.

    Args:
        low: uint32, bytes 0 to 3.
        high: uint32, bytes 4 to 7.
        numbers: uint32, its four lowest nibbles say which, 0 to 7.
    """
    if INTERPRETED:
        both = (high.to(tl.uint64) << 32) | low.to(tl.uint64)
        picked = ((both >> ((numbers & 7) * 8).to(tl.uint64)) & 0xFF).to(tl.uint32)
        for place in tl.static_range(1, 4):
            number = ((numbers >> (4 * place)) & 7) * 8
            picked |= ((both >> number.to(tl.uint64)) & 0xFF).to(tl.uint32) << (8 * place)
    else:
        picked = tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, $2, $3;",
            "=r,r,r,r",
            [low, high, numbers],
            dtype=tl.uint32,
            is_pure=True,
            pack=1,
        )
    return picked


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
def whole_bytes(bits):
    """uint32 bits 0 .. 3 -> four bytes, 255 where a bit is set."""
    return (((bits & 15) * 0x00204081) & 0x01010101) * 0xFF


@triton.jit
def expand_bytes(low, high, bits):
    """Stored bytes -> int8 [..., 8].

    Args:
        low: uint32 [rows, columns], the first four stored bytes.
        high: uint32, four more.
        bits: uint32, the lowest 8 say which of 8 positions take the next stored byte.
    """
    numbers = counts_below(bits)
    first = pick_bytes(low, high, numbers) & whole_bytes(bits)
    second = pick_bytes(low, high, numbers >> 16) & whole_bytes(bits >> 4)
    # By joins, so that both words stay in the threads that have them until the end.
    even = tl.join(
        tl.join(byte(first, 0), byte(second, 0)), tl.join(byte(first, 2), byte(second, 2))
    )
    odd = tl.join(
        tl.join(byte(first, 1), byte(second, 1)), tl.join(byte(first, 3), byte(second, 3))
    )
    return tl.reshape(tl.join(even, odd), (bits.shape[0], bits.shape[1], 8))


@triton.jit
def byte(words, place: tl.constexpr):
    """One byte of uint32 as int8."""
    return (words >> (8 * place)).to(tl.int8)


@triton.jit
def load_bytes(nonzeros, place):
    """Eight bytes from any place on, as two uint32; eleven bytes behind it must be readable.

    Args:
        nonzeros: pointer to int8, aligned to 4 bytes.
        place: int32 [rows, columns].
    """
    words = nonzeros.to(tl.pointer_type(tl.uint32), bitcast=True) + (place >> 2)
    a, b, c = tl.load(words), tl.load(words + 1), tl.load(words + 2)
    numbers = ((place & 3) * 0x1111 + 0x3210).to(tl.uint32)
    return pick_bytes(a, b, numbers), pick_bytes(b, c, numbers)
