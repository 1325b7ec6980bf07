"""The families on wgmma as the CUDA backend sees them: packing, configurations, offers, refusals.

Their kernels have no emulator; what a built library says of them needs no GPU.
"""

from __future__ import annotations

import copy
import ctypes
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from sparse_runtime.kernels import cuda_loading
from sparse_runtime.kernels.cuda_interface import Kernel, describe_layer
from sparse_runtime.kernels.cuda_library import Library
from sparse_runtime.kernels.linear import linear_cuda, linear_hopper
from sparse_runtime.kernels.linear.linear_cuda import MmaConfig
from sparse_runtime.kernels.linear.linear_hopper import TILES, candidates, clocks_of, cycles
from sparse_runtime.kernels.linear.operands import Epilogue, Quantized, Target
from sparse_runtime.ops import LinearRequest, LinearWeight
from sparse_runtime.ops.cuda.candidate import CudaCandidate
from sparse_runtime.ops.cuda.choosing import REGIMES, compare, why_not
from sparse_runtime.ops.cuda.hopper_families import HOPPER_FAMILIES, HopperDense, HopperTwoOfFour
from sparse_runtime.ops.cuda.machine import H100
from sparse_runtime.ops.cuda.problem import Problem
from sparse_runtime.ops.cuda.stacked import stack_layers
from sparse_runtime.testing import make_packed

DTYPES = {torch.int8: "int8", torch.bfloat16: "bf16", torch.float16: "f16"}
SPARSE = Problem("int8", 768, 3072, "2:4", 0.5)
NAMES = {"hopper.dense", "hopper.2:4"}


@pytest.fixture
def with_hopper(emulated, monkeypatch: pytest.MonkeyPatch):
    """The emulator as if it held the wgmma kernels too: all but launching them."""
    library = copy.copy(emulated)
    library.__dict__.pop("by_tile", None)
    kinds = product(DTYPES, ("dense", "2:4"), TILES)
    library.kernels += tuple(
        Kernel(100 + i, f"hopper.{i}", dtype, structure, tile.block_n, tile.block_m, "hopper")
        for i, (dtype, structure, tile) in enumerate(kinds)
    )
    monkeypatch.setattr(cuda_loading, "load", lambda: cuda_loading.Loaded(library, None))
    return library


@pytest.fixture
def built() -> Library:
    if not cuda_loading.BUILT.exists():
        pytest.skip("the CUDA library is not built here")
    library = Library(cuda_loading.BUILT)
    if not any(kernel.order == "hopper" for kernel in library.kernels):
        pytest.skip("the CUDA library was built without CUTLASS's headers")
    return library


@pytest.mark.parametrize("structure", ["dense", "2:4", "1:4", "1:2"])
@pytest.mark.parametrize("values", ["int8", "bf16"])
def test_families_pack_what_can_be_unpacked(with_hopper, values: str, structure: str) -> None:
    # 70 outputs end within an atom of 64, 132 inputs within a stage of 128 or 64.
    packed = make_packed((70, 132), structure, None, values=values, seed=3)
    dtype = torch.bfloat16 if values == "bf16" else torch.float32
    request = LinearRequest((LinearWeight("layer", packed),), torch.device("cpu"), dtype)
    layers = stack_layers(request)
    family = HopperDense() if structure == "dense" else HopperTwoOfFour()
    weight = family.pack(layers)
    matrix = layers.matrix
    assert (weight.order, weight.structure, weight.dtype) == (
        "hopper",
        family.structure,
        matrix.dtype,
    )
    back = with_hopper.unpack_hopper(weight.packed, weight.structure, matrix.dtype, (70, 132))
    assert torch.equal(back, matrix)
    assert family.rejects(layers.problem) is None


def test_the_two_orders_differ_and_refuse_the_same(emulator) -> None:
    weight = torch.arange(-64, 64).repeat(64, 2).to(torch.int8)
    weight[:, 1::2] = 0
    assert not torch.equal(emulator.pack(weight, "2:4"), emulator.pack_hopper(weight, "2:4"))
    weight[3, 8:11] = 1
    for pack in (emulator.pack, emulator.pack_hopper):
        with pytest.raises(ValueError, match="two nonzero"):
            pack(weight, "2:4")


def test_a_weight_is_multiplied_by_kernels_of_its_order(with_hopper) -> None:
    matrix = torch.ones(4, 64, dtype=torch.int8)
    config = MmaConfig(128, 128)  # which both orders have
    for pack, order in ((linear_cuda.pack, "mma"), (linear_hopper.pack, "hopper")):
        assert linear_cuda.kernel_of(pack(matrix, "dense"), config).order == order
    with pytest.raises(ValueError, match="no kernel"):
        linear_cuda.kernel_of(linear_cuda.pack(matrix, "dense"), MmaConfig(256, 128))


@pytest.mark.parametrize("tokens", REGIMES)
@pytest.mark.parametrize("dtype", ["int8", "bf16"])
@pytest.mark.parametrize("family", HOPPER_FAMILIES, ids=lambda family: family.name)
def test_configurations_have_kernels_and_survive_a_table(
    with_hopper, family, dtype: str, tokens: int
) -> None:
    problem = SPARSE._replace(dtype=dtype)
    kind = torch.int8 if dtype == "int8" else torch.bfloat16
    weight = linear_hopper.pack(torch.zeros(4, 64, dtype=kind), family.structure)
    configs = family.configs(weight, problem, tokens, H100)
    # 3,072 inputs are 24 stages of int8 and 48 of bf16: eight splits get whole ones.
    assert len(set(configs)) == len(configs) == 16
    for config in configs:
        kernel = linear_cuda.kernel_of(weight, config)
        assert (kernel.tile_tok, kernel.tile_out) == config[:2]
        assert family.decode(tuple(config)) == config
    work = family.work(problem, tokens, H100)
    assert 0 < work.peak_share < 2 and work.programs > 0


def test_splits_hold_whole_stages() -> None:
    def splits(product: str, inputs: int) -> set[int]:
        return {c.split_k for c in candidates(product, "2:4", 16, 768, inputs)}

    assert splits("int8", 768) == {1, 2}  # six stages: thirds only beyond
    assert splits("half", 768) == {1, 2, 4}  # twelve stages; eighths are less than two
    assert splits("int8", 1000) == splits("half", 65) == {1}


def test_the_model_follows_the_floors() -> None:
    # docs/kernels/cuda_hopper.md: memory bounds two of four, and the epilogue short inputs.
    plain, sparse = (clocks_of(MmaConfig(256, 128), "int8", s, 4096) for s in ("dense", "2:4"))
    assert plain.main == plain.ideal
    assert 0.5625 * plain.ideal < sparse.main < 0.7 * plain.ideal  # L2 bounds it a little more
    short = clocks_of(MmaConfig(128, 128), "int8", "2:4", 768)
    assert short.ending > short.main
    narrow = clocks_of(MmaConfig(32, 64), "int8", "dense", 4096)
    assert narrow.main > 1.4 * narrow.ideal
    # One tile for all: few tokens take the narrow one, many a wide one.
    few, many = (candidates("int8", "dense", tokens, 3072, 768)[0] for tokens in (16, 16384))
    assert few.block_m == 32 and many.block_m >= 128
    sizes = ("int8", "dense", 16384, 3072, 768)
    assert cycles(many, *sizes) < cycles(MmaConfig(32, 64), *sizes)


@pytest.mark.parametrize("capability", [80, 86, 89, 100, 120])
def test_other_gpus_are_not_offered_them(with_hopper, capability: int) -> None:
    machine = replace(H100, capability=capability)
    for family in HOPPER_FAMILIES:
        assert "compute capability 9.0 alone" in str(why_not(family, SPARSE, None, machine))
    for regime in compare(SPARSE, machine, ()):
        assert not NAMES & set(regime.estimates)
        assert "mma.2:4" in regime.estimates


def test_an_h100_is_not_given_them_unmeasured(with_hopper, monkeypatch: pytest.MonkeyPatch) -> None:
    for regime in compare(SPARSE, H100, ()):
        assert not NAMES & set(regime.estimates)
    monkeypatch.setattr(HopperDense, "predicted", True)  # as they will be once a GPU has run them
    for regime in compare(SPARSE, H100, ()):
        assert set(regime.estimates) >= NAMES
    packed = make_packed((768, 768), "2:4", None, values="int8", activations="dynamic")
    request = LinearRequest((LinearWeight("layer", packed),), torch.device("cpu"), torch.float32)
    text = CudaCandidate().note(request)
    assert all(name in text for name in NAMES)


def test_what_they_cannot_do_is_said(emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    for family in HOPPER_FAMILIES:
        assert "no kernels for sm_90a" in str(family.rejects(SPARSE))  # the emulator has none
    assert "2:4" in str(HopperTwoOfFour().rejects(SPARSE._replace(structure="4:8")))
    assert "int8, bf16 and fp16" in str(HopperDense().rejects(SPARSE._replace(dtype="fp32")))
    zeros = Epilogue(weight_zero=torch.ones(4, dtype=torch.int32))
    assert "zero points" in str(HopperDense().refuses(zeros))
    missing = cuda_loading.Loaded(None, "was not built")
    monkeypatch.setattr(cuda_loading, "load", lambda: missing)
    assert HopperDense().rejects(SPARSE) == linear_hopper.missing() == "was not built"


def test_the_built_kernels_say_what_they_need(built: Library) -> None:
    found = {k.name: built.needs(k) for k in built.kernels if k.order == "hopper"}
    kinds = product(DTYPES.values(), ("dense", "2to4"), TILES)
    assert found.keys() == {f"hopper.{t}.{s}.{i.block_n}x{i.block_m}" for t, s, i in kinds}
    for name, needs in found.items():
        assert (needs.capability, needs.weight_alignment, needs.threads) == (90, 128, 384)
        assert needs.split_multiple == (128 if "int8" in name else 64)
        assert 100_000 < needs.shared_bytes <= 227 * 1024
    for kernel in built.kernels:
        needs = built.workspace_needs(kernel, 130, 257, 2)
        tiles = -(-130 // kernel.tile_tok) * -(-257 // kernel.tile_out)
        assert needs.partial_bytes == tiles * 2 * kernel.tile_tok * kernel.tile_out * 4
        if kernel.order == "hopper":  # both warpgroups of the widest tile count themselves in
            each = 2 if kernel.tile_tok == 256 else 1
            assert needs.tile_counters == each * tiles


@pytest.mark.parametrize(
    ("inputs", "split_k", "shift", "refused"),
    [
        (256, 2, 0, False),  # a stage each
        (192, 2, 0, True),  # a split begins within a stage
        (192, 1, 0, False),
        (192, 1, 1, True),  # rows that do not begin at multiples of 16 bytes
    ],
)
def test_a_launch_is_checked_before_anything_is_enqueued(
    built: Library, inputs: int, split_k: int, shift: int, refused: bool
) -> None:
    weight = built.pack_hopper(torch.ones(64, inputs, dtype=torch.int8), "dense")
    aligned = torch.zeros(weight.numel() + 128, dtype=torch.uint8)
    weight = aligned[-aligned.data_ptr() % 128 :][: weight.numel()].copy_(weight)
    rows = torch.zeros(16 * inputs + 32, dtype=torch.int8)
    rows = rows[-rows.data_ptr() % 16 + shift :][: 16 * inputs].view(16, inputs)
    x = Quantized(rows, inputs, torch.ones(16), None, 1)
    target = Target(torch.zeros(16, 64), 64)
    epilogue = Epilogue(weight_scale=torch.ones(64))
    layer = describe_layer(x, weight, 64, epilogue, None, target, "none")
    layer.split_k = split_k
    kernel = next(k for k in built.kernels if k.name == "hopper.int8.dense.64x32")
    layer.tokens = 0 if not refused else 16  # nothing to do, once it is accepted
    assert built.handle.sr_linear(kernel.number, ctypes.byref(layer), None) == (2 if refused else 0)


def test_the_epilogue_and_the_table_of_tiles_agree(checkout_root: Path) -> None:
    text = (checkout_root / "csrc/cuda/hopper_linear/kernel.h").read_text()
    for tile in TILES:
        schedule = "Pingpong" if tile.pingpong else "Cooperative"
        name = f"Tile{tile.block_n}x{tile.block_m} = Tile<{tile.block_n}, {tile.block_m}, "
        assert f"{name}{schedule}, {tile.sharing_m}, {tile.sharing_n}>" in text
