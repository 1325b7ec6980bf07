"""The INT8 linears over panels: every layout on every instruction set, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_runtime import _C

LAYOUTS = (
    "dense",
    "band4_grouped",
    "band4_gathered",
    "band1_grouped",
    "band1_gathered",
    "tiles",
    "tile_bits",
)
ISAS = [row["name"] for row in _C.isas() if row["available"]]
RUNS = [(isa, layout) for isa in ISAS for layout in LAYOUTS if _C.int8_panels_runs(layout, isa)]
SLOTS, BLOCK = 64, 32


def aligned(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Zeros that begin on a cache line."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 64, dtype=np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def byte_of_slot(slot: int) -> int:
    return 16 * (slot % 16 // 4) + 4 * (slot // 16) + slot % 4


def to_panels(x: np.ndarray, plain: bool) -> np.ndarray:
    """uint8 [tokens, k] -> the plain or the grouped form; unused slots hold noise."""
    tokens, k = x.shape
    panels, padded = -(-tokens // SLOTS), -(-k // 64) * 64
    full = np.full((panels * SLOTS, padded), 0xA5, dtype=np.uint8)
    full[:, k:] = 0
    full[:tokens, :k] = x
    full = full.reshape(panels, SLOTS, padded)
    out = aligned((panels, padded * SLOTS), np.uint8)
    if plain:
        order = np.argsort([byte_of_slot(s) for s in range(SLOTS)])
        out[:] = full[:, order].transpose(0, 2, 1).reshape(panels, -1)
    else:
        grouped = full.reshape(panels, SLOTS, padded // 4, 4).transpose(0, 2, 1, 3)
        out[:] = grouped.reshape(panels, -1)
    return out


def multiply(w: np.ndarray, x: np.ndarray, layout: str, isa: str, rows: int = 0) -> np.ndarray:
    """int32 [tokens, n], all rows in one call or in calls of ``rows``."""
    n, k = w.shape
    weight = _C.int8_panels_pack(w.ctypes.data, n, k, layout)
    tokens = x.shape[0]
    panels = to_panels(x, weight.reads_plain)
    padded = -(-n // BLOCK) * BLOCK
    step = rows or padded
    last = -(-(tokens - SLOTS * (len(panels) - 1)) // 16)
    parts = []
    for row in range(0, padded, step):
        count = min(step, padded - row)
        acc = aligned((len(panels), count, SLOTS), np.int32)
        acc.fill(0x5A5A5A5A)  # whatever was there is not added to
        _C.int8_panels_accumulate(
            weight, row, count, panels.ctypes.data, panels.shape[1], len(panels), last,
            acc.ctypes.data, isa,
        )  # fmt: skip
        parts.append(acc.transpose(0, 2, 1).reshape(-1, count)[:tokens])
    return np.concatenate(parts, axis=1)[:, :n]


def group(layout: str, n: int, k: int) -> int:
    """Rows that a call takes whole."""
    if not layout.startswith("band1"):
        return BLOCK
    return 64 if n <= 768 or k < -(-n // BLOCK) * BLOCK <= 3 * k else 128


def problem(n: int, k: int, tokens: int, density: float, seed: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    w = rng.integers(-128, 128, (n, k)).astype(np.int8)
    w *= rng.random((n, k)) < density
    return w, rng.integers(0, 256, (tokens, k)).astype(np.uint8)


SHAPES = [
    (32, 64, 64),  # one block of rows, one tile, one whole panel
    (1, 1, 1),  # everything padded
    (33, 65, 17),  # one over: second block, second tile column, second vector
    (31, 63, 33),  # one under; three vectors
    (64, 128, 128),  # two whole panels
    (96, 100, 200),  # four panels, the last with one vector; k off every unit
    (40, 2200, 70),  # more tile columns than fit the scratch memory
    (5, 4, 48),  # a single group
    (160, 769, 33),  # rows of their own: groups of 64, the last of 32; one input in a second block
    (224, 1540, 16),  # the last group of 32, three blocks of inputs
    (860, 800, 20),  # groups of 64, as of queries, keys and values
    (860, 280, 20),  # groups of 128, the last of 96 with padding
]


@pytest.mark.parametrize(("isa", "layout"), RUNS)
@pytest.mark.parametrize(("n", "k", "tokens"), SHAPES)
@pytest.mark.parametrize("density", [1.0, 0.1, 0.0])
def test_products_are_exact(
    isa: str, layout: str, n: int, k: int, tokens: int, density: float
) -> None:
    w, x = problem(n, k, tokens, density, seed=n + k)
    expected = x.astype(np.int32) @ w.astype(np.int32).T
    np.testing.assert_array_equal(multiply(w, x, layout, isa), expected)


@pytest.mark.parametrize(("isa", "layout"), RUNS)
def test_extremes_do_not_saturate(isa: str, layout: str) -> None:
    """255 * -128 in all inputs: pairs of products beyond 16 bits, sums near 2^25."""
    w = np.where(np.arange(64 * 256).reshape(64, 256) % 2, 127, -128).astype(np.int8)
    w[1::2] = -128
    x = np.full((20, 256), 255, dtype=np.uint8)
    expected = x.astype(np.int32) @ w.astype(np.int32).T
    np.testing.assert_array_equal(multiply(w, x, layout, isa), expected)


@pytest.mark.parametrize(("isa", "layout"), RUNS)
def test_rows_in_several_calls_and_empty_rows(isa: str, layout: str) -> None:
    w, x = problem(100, 192, 90, 0.2, seed=5)
    w[8:60] = 0  # bands, strips and a whole block without units
    expected = x.astype(np.int32) @ w.astype(np.int32).T
    np.testing.assert_array_equal(
        multiply(w, x, layout, isa, rows=group(layout, 100, 192)), expected
    )


@pytest.mark.parametrize(("isa", "layout"), RUNS)
@pytest.mark.parametrize("n", [200, 830])
def test_rows_of_very_different_length(isa: str, layout: str, n: int) -> None:
    """Long rows beside empty ones, in some blocks of inputs and not in others."""
    w, x = problem(n, 1600, 50, 0.3, seed=n)
    w[3::4, :768] = 0  # no units in the first block, where sums begin
    w[:40, 768:1536] = 0
    w[64:127] = 0  # of a group, one row is left
    w[127] = np.where(w[127] == 0, 1, w[127])  # all units that a row can have
    w[128:192] = 0  # nothing
    expected = x.astype(np.int32) @ w.astype(np.int32).T
    np.testing.assert_array_equal(
        multiply(w, x, layout, isa, rows=group(layout, n, 1600)), expected
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("n", "k"), [(0, 5), (5, 0), (1, 1), (33, 65), (64, 130), (101, 771), (769, 1537)]
)
@pytest.mark.parametrize("density", [1.0, 0.15, 0.0])
def test_unpack_returns_what_was_packed(layout: str, n: int, k: int, density: float) -> None:
    w, _ = problem(n, k, 1, density, seed=k)
    weight = _C.int8_panels_pack(w.ctypes.data, n, k, layout)
    back = np.full_like(w, 7)
    weight.unpack(back.ctypes.data)
    np.testing.assert_array_equal(back, w)
    assert weight.bytes >= 0


def units_of_fours(rows: np.ndarray) -> int:
    """Units of groups of 64 rows, where the longest of four that follow each other sets theirs."""
    groups = [-np.sort(-rows[i : i + 64]) for i in range(0, len(rows), 64)]
    return sum(4 * int(group[::4].sum()) for group in groups)


def test_units_are_counted_as_they_are_packed() -> None:
    w, _ = problem(70, 131, 1, 0.1, seed=1)
    w[::4] = 0
    units = _C.int8_panels_count(w.ctypes.data, *w.shape)
    assert units["nonzeros"] == np.count_nonzero(w)
    padded = np.zeros((96, 192), dtype=bool)
    padded[:70, :131] = w != 0
    assert units["dense"] == 96 // 4 * 33
    assert units["band1_grouped"] == units_of_fours(padded.reshape(96, 48, 4).any(2).sum(1))
    assert units["band4_grouped"] == padded.reshape(24, 4, 48, 4).any((1, 3)).sum()
    shared = padded.reshape(24, 4, 192).any(1).sum(1)
    assert units["band4_gathered"] == (-(-shared // 4)).sum()
    assert units["band1_gathered"] == units_of_fours(-(-padded.sum(1) // 4))
    assert units["tiles"] == padded.reshape(6, 16, 3, 64).any((1, 3)).sum() == units["tile_bits"]


@pytest.mark.parametrize(("layout", "size"), [("band1_grouped", 6), ("band1_gathered", 12)])
@pytest.mark.parametrize(
    ("n", "k"),
    [(200, 1540), (830, 1540), (830, 277), (830, 278)],  # groups of 64; 64; 128; 64, of a head
)
def test_rows_of_their_own_take_what_is_counted(layout: str, size: int, n: int, k: int) -> None:
    """Of values and index; beside them two bytes a row and block, starts and sums of rows."""
    w, _ = problem(n, k, 1, 0.05, seed=n)
    w[::3, :700] = 0
    units = _C.int8_panels_count(w.ctypes.data, n, k)[layout]
    padded, blocks = -(-n // BLOCK) * BLOCK, -(-k // 768)
    groups = -(-padded // group(layout, n, k))
    beside = 2 * blocks * padded + 4 * (blocks * groups + 1) + 4 * padded * 2
    weight = _C.int8_panels_pack(w.ctypes.data, n, k, layout)
    assert weight.bytes == size * units + beside


def test_compressed_tiles_are_small() -> None:
    """90 % zeros: a byte a nonzero, a bit a position, 10 bytes a tile."""
    w, _ = problem(768, 768, 1, 0.1, seed=3)
    weight = _C.int8_panels_pack(w.ctypes.data, 768, 768, "tile_bits")
    nonzeros, tiles = np.count_nonzero(w), 48 * 12
    assert weight.bytes <= nonzeros + 768 * 768 / 8 + tiles * 10 + 49 * 4 + 768 * 8 + 64


def test_bad_arguments_are_named() -> None:
    w, x = problem(32, 64, 64, 1.0, seed=0)
    with pytest.raises(ValueError, match=r'layout: expected one of dense.*got "csr"'):
        _C.int8_panels_pack(w.ctypes.data, 32, 64, "csr")
    with pytest.raises(ValueError, match=r"k: expected a value in 0\.\.65535"):
        _C.int8_panels_pack(w.ctypes.data, 32, 65536, "dense")
    with pytest.raises(ValueError, match="w_ptr: expected a non-null address"):
        _C.int8_panels_pack(0, 32, 64, "dense")
    weight = _C.int8_panels_pack(w.ctypes.data, 32, 64, "dense")
    panels, acc = to_panels(x, False), aligned((32, 64), np.int32)

    def call(row: int, rows: int, isa: str = "generic") -> None:
        _C.int8_panels_accumulate(
            weight, row, rows, panels.ctypes.data, panels.shape[1], 1, 4, acc.ctypes.data, isa
        )

    with pytest.raises(ValueError, match="rows: expected whole groups of 32"):
        call(0, 16)
    with pytest.raises(ValueError, match=r"row: expected a value in 0\.\.32"):
        call(64, 32)
    taller, _ = problem(96, 64, 1, 1.0, seed=0)
    weight = _C.int8_panels_pack(taller.ctypes.data, 96, 64, "band1_grouped")
    with pytest.raises(ValueError, match="rows: expected whole groups of 64; got 0 and 32"):
        call(0, 32)
    tiles = _C.int8_panels_pack(w.ctypes.data, 32, 64, "tiles")
    with pytest.raises(RuntimeError, match="layout tiles has no kernel for instruction set"):
        _C.int8_panels_accumulate(
            tiles, 0, 32, panels.ctypes.data, panels.shape[1], 1, 4, acc.ctypes.data, "generic"
        )
