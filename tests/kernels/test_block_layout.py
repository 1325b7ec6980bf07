"""The GPU's layout of block weights, its schedule, and the choice of tiles; without Triton."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparse_runtime.formats.bits import pack_bits
from sparse_runtime.formats.block import to_blocks
from sparse_runtime.kernels.block.configs import (
    SPLIT_TOKENS,
    BlockConfig,
    choices,
    default_config,
    workspace_needs,
)
from sparse_runtime.kernels.block.layout import BlockTiles, default_step, pack, unpack, why_not
from sparse_runtime.kernels.block.schedule import (
    PROGRAMS_WANTED,
    SHORTEST_PART,
    TileRow,
    parts_of_rows,
    whole_rows,
)
from sparse_runtime.spec import Structure

SHAPES = [
    ((48, 64), (16, 16)),  # four blocks a step
    ((128, 256), (64, 64)),  # a block a step
    ((150, 300), (128, 128)),  # a block in two steps; both edges off the grid
    ((40, 37), (16, 1)),  # single inputs
    ((70, 50), (32, 4)),  # half a run at the edge
    ((60, 50), (24, 8)),  # rows padded
    ((100, 130), (48, 24)),  # blocks across steps
    ((330, 64), (160, 32)),  # block rows cut in two
    ((520, 64), (256, 64)),  # block rows cut in two equal tiles; the last has 8 outputs
    ((16, 16), (64, 64)),  # less than a block
]


def packed(
    shape: tuple[int, int], block: tuple[int, int], dtype: torch.dtype, density: float
) -> tuple[BlockTiles, Tensor]:
    """Tiles and their matrix, with zeros of both signs within stored blocks."""
    generator = torch.Generator().manual_seed(shape[0])
    (r, c), (rows, cols) = block, shape
    kept = torch.rand(-(-rows // r), -(-cols // c), generator=generator) < density
    mask = kept.repeat_interleave(r, 0).repeat_interleave(c, 1)[:rows, :cols]
    matrix = torch.randn(shape, generator=generator) * 50
    matrix[torch.rand(shape, generator=generator) < 0.2] = -0.0
    matrix = torch.where(mask, matrix, 0.0).to(dtype)
    blocks = to_blocks(matrix, Structure("block", rows=r, cols=c))[kept]
    return pack(blocks, pack_bits(kept), shape, block), matrix


@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("shape", "block"), SHAPES)
def test_unpacking_gives_the_matrix_bit_for_bit(
    shape: tuple[int, int], block: tuple[int, int], dtype: torch.dtype, density: float
) -> None:
    weight, matrix = packed(shape, block, dtype, density)
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32}[dtype.itemsize]  # -0.0 is not 0
    assert torch.equal(unpack(weight).view(bits), matrix.view(bits))
    assert weight.tiles.is_contiguous() and weight.starts.is_contiguous()  # kernels ask no strides
    assert weight.whole[:, :2].sum(0)[1] == shape[0]  # every output has its row, also empty ones
    lengths = weight.whole[:, 3] - weight.whole[:, 2]
    assert (lengths.diff() <= 0).all() and weight.longest == lengths[0]


def test_tiles_are_what_the_document_says() -> None:
    """docs/kernels/triton_block.md, its example: 32 x 64 in blocks of 16 x 16, tiles of 32."""
    kept = torch.tensor([[True, False, True, True], [False, True, False, False]])
    blocks = torch.arange(1, 5, dtype=torch.int8)[:, None].repeat(1, 256)
    weight = pack(blocks, pack_bits(kept), (32, 64), (16, 16), step=32)
    assert weight.tiles.shape == (3, 16, 32) and weight.run == 16
    first, second, third = (tile[0].view(2, 16)[:, 0].tolist() for tile in weight.tiles)
    assert (first, second, third) == ([1, 2], [3, 0], [4, 0])
    nothing = 1 << 30
    assert weight.starts.tolist() == [[0, 32], [48, nothing], [16, nothing]]
    assert weight.whole[:, :4].tolist() == [[0, 16, 0, 2], [16, 16, 2, 3]]


def test_a_low_block_is_refused_with_the_kernels_that_take_it() -> None:
    blocks, bits = torch.ones(1, 16, dtype=torch.int8), torch.ones(1, 1, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"blocks of 4 rows.*unstructured and the dense"):
        pack(blocks, bits, (4, 4), (4, 4))
    assert why_not(16) is None
    assert "zero points" in str(why_not(16, zero_points=True))


def test_steps_are_as_long_as_a_line_of_the_caches() -> None:
    assert default_step(torch.bfloat16, 64) * 2 == default_step(torch.float32, 64) * 4 == 128
    assert default_step(torch.int8, 128) == 128
    assert default_step(torch.int8, 64) == 64  # a row of one block would be half padding


def test_parts_cover_their_rows() -> None:
    lengths = [700, 3, 0, 41, 5]
    ends = torch.tensor(lengths).cumsum(0).tolist()
    rows = [
        TileRow(16 * i, 16, end - length, end)
        for i, (length, end) in enumerate(zip(lengths, ends, strict=True))
    ]
    items, slots, counters = parts_of_rows(rows)
    spans = items[:, 3] - items[:, 2]
    assert (spans.diff() <= 0).all() and spans.max() <= SHORTEST_PART
    cut, taken = set(), []
    for row in rows:
        mine = sorted(items[items[:, 0] == row.output].tolist(), key=lambda item: item[4])
        edges = [mine[0][2], *(item[3] for item in mine)]
        assert edges[0] == row.first and edges[-1] == row.end
        assert [item[2] for item in mine] == edges[:-1]  # one behind the other
        assert [item[4] for item in mine] == list(range(len(mine)))
        assert all(item[5] == len(mine) for item in mine)
        if len(mine) > 1:
            taken += [mine[0][6] + part for part in range(len(mine))]
            cut.add(mine[0][7])
    assert sorted(taken) == list(range(slots)) and cut == set(range(counters))
    assert len(whole_rows(rows)) == len(rows)
    long = [TileRow(0, 16, 0, 100 * PROGRAMS_WANTED)]
    assert len(parts_of_rows(long)[0]) == PROGRAMS_WANTED


def test_defaults_follow_tokens_rows_and_capability() -> None:
    wide, _ = packed((1024, 2048), (64, 64), torch.bfloat16, 0.4)
    few = default_config(wide, 1, 90)
    assert few.block_m == 16 and few.parts  # 16 rows for 132 multiprocessors
    assert workspace_needs(wide, 1, few) == (wide.slots * 16 * 64, wide.counters)
    many = default_config(wide, 8192, 90)
    assert many.block_m == 128 and not many.parts and many.num_warps == 8
    assert default_config(wide, 32768, 90).block_m == 256
    assert workspace_needs(wide, 8192, many) == (0, 0)
    assert not default_config(wide, SPLIT_TOKENS + 1, 90).parts
    short, _ = packed((1024, 64), (64, 64), torch.bfloat16, 1.0)
    assert not short.slots and not default_config(short, 1, 90).parts  # nothing to cut


@pytest.mark.parametrize("capability", [75, 80, 86, 90, 100])
@pytest.mark.parametrize("tokens", [1, 40, 500, 5000])
def test_candidates_fit_and_begin_with_the_default(tokens: int, capability: int) -> None:
    weight, _ = packed((512, 1024), (128, 128), torch.float32, 0.5)
    candidates = choices(weight, tokens, capability)
    assert candidates[0] == default_config(weight, tokens, capability)
    assert len(set(candidates)) == len(candidates)
    for config in candidates:
        assert isinstance(config, BlockConfig) and config.group_m >= 1
        shared = config.num_stages * (config.block_m + weight.rows) * weight.step * 4
        assert shared <= (227 if capability >= 90 else 163) * 1024
