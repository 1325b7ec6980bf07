"""Default configurations of linear layers: rules, shipped tables, the memory that they ask for."""

from __future__ import annotations

import pytest
import torch

from sparse_runtime.kernels.ahead_of_time import SHARED_LIMITS
from sparse_runtime.kernels.defaults import TOKENS
from sparse_runtime.kernels.dense.layout import pack, unpack
from sparse_runtime.kernels.linear.configs import TABLE, choices, default_config, offered
from sparse_runtime.kernels.linear.rules import ITEM_BYTES, MACHINES, candidates, cycles
from sparse_runtime.kernels.linear.tiles import Config, row_blocks, workspace_needs


@pytest.mark.parametrize("product", ITEM_BYTES)
@pytest.mark.parametrize("capability", MACHINES)
def test_candidates_fit_and_the_best_is_first(capability: int, product: str) -> None:
    machine = MACHINES[capability]
    for sizes in ((1, 1, 1), (128, 768, 3072), (5000, 4096, 1000)):
        found = candidates(product, *sizes, capability)
        times = [cycles(config, product, *sizes, machine) for config in found]
        assert times == sorted(times) and len(set(found)) == len(found)
        for config in found:
            operands = (config.block_m + config.block_n) * config.block_k * ITEM_BYTES[product]
            assert operands * config.num_stages <= SHARED_LIMITS.get(capability, 99 * 1024)
            assert config.tma <= (capability == 90)


@pytest.mark.parametrize("product", ITEM_BYTES)
@pytest.mark.parametrize("capability", MACHINES)
def test_what_is_offered_serves_every_size(capability: int, product: str) -> None:
    known = offered(product, capability)
    for tokens, outputs, inputs in ((1, 1, 1), (100, 52, 700), (700, 5000, 8192)):
        found = choices(product, tokens, outputs, inputs, capability)
        assert found and set(found) <= known.keys() and len(set(found)) == len(found)


def test_few_tokens_are_split_until_most_multiprocessors_work() -> None:
    # BERT base, one sentence of 128 tokens: 12 tiles of 128 x 64, of 132 multiprocessors.
    config = default_config("half", 128, 768, 3072, 90)
    tiles = -(-128 // config.block_m) * -(-768 // config.block_n)
    assert tiles * config.split_k >= 66 and config.split_k > 1


def test_many_tokens_take_large_tiles_that_the_copy_engine_fetches() -> None:
    config = default_config("int8", 16384, 3072, 768, 90)
    assert config.block_m >= 128 and config.split_k == 1 and config.tma
    assert not default_config("int8", 16384, 3072, 768, 80).tma


def test_tokens_are_rounded_up_and_unknown_gpus_take_the_nearest_below() -> None:
    shape, table = (768, 768), TABLE.read(90)
    assert default_config("int8", 100, *shape, 90) == table[("int8", 128, *shape)]
    assert default_config("int8", 10**6, *shape, 90) == table[("int8", TOKENS[-1], *shape)]
    assert default_config("int8", 100, *shape, 87) == default_config("int8", 100, *shape, 86)
    assert default_config("int8", 100, *shape, 100) == default_config("int8", 100, *shape, 90)


def test_needs_of_workspaces() -> None:
    config = Config(16, 32, 64, split_k=4)
    assert workspace_needs(17, 33, config) == (4 * 4 * 16 * 32, 4)  # 2 x 2 tiles
    assert workspace_needs(17, 33, config._replace(split_k=1)) == (0, 0)
    assert row_blocks(17, config) == 2


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("inputs", [1, 16, 17])  # less than 16 bytes, whole words, padded
def test_dense_weights_keep_every_bit(inputs: int, dtype: torch.dtype) -> None:
    matrix = torch.randint(-128, 128, (3, inputs)).to(dtype)
    if dtype.is_floating_point:
        matrix[1] = -0.0
    packed = pack(matrix.T.contiguous().T)  # columns side by side
    assert packed.tiles.stride(0) * packed.tiles.element_size() % 16 == 0
    assert not packed.tiles[:, inputs:].any()
    bits = torch.int8
    assert torch.equal(unpack(packed, matrix.shape).view(bits), matrix.contiguous().view(bits))
