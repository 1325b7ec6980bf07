"""Dense weights of layout.py: how the tile kernel loads them."""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from .layout import ROW_BYTES

WORD = tl.constexpr(ROW_BYTES)


@triton.jit
def load_weight_tile(weight, outputs, inputs, out_features, in_features, EVEN_K: tl.constexpr):
    """One tile, k down and n across, as it is stored.

    Args:
        weight: a ``DenseWeight``.
        outputs: int32 [n], which rows of the matrix; those from ``out_features`` on repeat the
            last, for nobody stores what is computed of them.
        inputs: int32 [k], consecutive columns of the matrix.
        out_features: rows of the matrix.
        in_features: columns of the matrix.
        EVEN_K: no tile reaches beyond ``in_features``.

    Returns:
        [k, n], zeros from ``in_features`` on.
    """
    unit: tl.constexpr = WORD // (weight.tiles.dtype.element_ty.primitive_bitwidth // 8)
    stride = tl.cdiv(in_features, unit) * unit
    outputs = tl.minimum(outputs, out_features - 1)
    at = weight.tiles + outputs.to(tl.int64)[None, :] * stride + inputs[:, None]
    # The padding is zeros: with a bound at a multiple of 16 bytes, loads stay whole words.
    return tl.load(at) if EVEN_K else tl.load(at, mask=(inputs < stride)[:, None], other=0)
