"""Which structure the zeros of a matrix show: every pattern is told from every other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparse_runtime.formats import compress, observe, pack, project
from sparse_runtime.formats.detect import BLOCK_CANDIDATES, NM_CANDIDATES, heads_without_nonzero
from sparse_runtime.spec import LinearSpec, Structure, ValueSpec


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("text", NM_CANDIDATES)
def test_n_m_patterns_are_recognised(text: str) -> None:
    # 100 inputs: the last group of 8 or 16 is a short one.
    seen = observe(project(normal(64, 100), Structure.parse(text)))
    assert str(seen.structure) == text
    assert seen.fill == 1


@pytest.mark.parametrize("sides", BLOCK_CANDIDATES)
@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_blocks_are_recognised_with_their_orientation(sides: str, sparsity: float) -> None:
    # 16 blocks of the largest size, of which 0.9 leaves 2.
    seen = observe(project(normal(256, 256), Structure.parse(f"block:{sides}"), sparsity))
    assert str(seen.structure) == f"block:{sides}"
    assert seen.density == pytest.approx(1 - sparsity, abs=0.03)
    assert seen.sizes[f"block:{sides}"] < min(seen.sizes["dense"], seen.sizes["unstructured"])


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.8, 0.9, 0.97])
def test_zeros_without_a_pattern_are_unstructured(sparsity: float) -> None:
    generator = torch.Generator().manual_seed(1)
    scattered = normal(128, 128) * (torch.rand(128, 128, generator=generator) >= sparsity)
    assert str(observe(scattered).structure) == "unstructured"


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (3, 5), (16, 16), (128, 128)])
def test_a_full_matrix_is_dense(shape: tuple[int, int]) -> None:
    seen = observe(normal(*shape))
    assert (str(seen.structure), seen.density, seen.fill) == ("dense", 1, 1)


def test_a_few_zeros_do_not_make_a_matrix_sparse() -> None:
    weight = normal(64, 64)
    weight[::9, ::9] = 0
    assert str(observe(weight).structure) == "dense"


def test_nothing_but_zeros_is_unstructured_and_empty() -> None:
    seen = observe(torch.zeros(16, 24))
    assert (str(seen.structure), seen.density) == ("unstructured", 0)
    assert (seen.empty_rows, seen.empty_cols) == (16, 24)
    assert seen.sizes["unstructured"] < seen.sizes["dense"]


def test_empty_rows_columns_and_heads_are_counted() -> None:
    weight = normal(24, 16)
    weight[8:16] = 0
    weight[:, [3, 5]] = 0
    seen = observe(weight)
    assert (seen.empty_rows, seen.empty_cols) == (8, 2)
    assert heads_without_nonzero(weight, 3) == 1
    assert heads_without_nonzero(weight, 6) == 2
    assert heads_without_nonzero(weight, 5) == 0
    assert heads_without_nonzero(weight, 0) == 0


STRUCTURES = st.sampled_from(
    ["dense", "unstructured", *NM_CANDIDATES, *(f"block:{sides}" for sides in BLOCK_CANDIDATES)]
)


@given(
    STRUCTURES,
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from([0.0, 0.5, 0.9]),
    st.sampled_from(["fp32", "int8", "int4"]),
    st.integers(0, 2**32),
)
def test_what_is_observed_holds_the_matrix_without_loss(
    text: str, shape: tuple[int, int], sparsity: float, dtype: str, seed: int
) -> None:
    structure, values = Structure.parse(text), ValueSpec(dtype)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    chosen = sparsity if structure.kind in ("unstructured", "block") else None
    weight = project(weight, structure, chosen)
    stored = weight.sign().to(values.torch_dtype)
    seen = observe(weight, values)
    assert 0 <= seen.fill <= 1
    assert {"dense", "unstructured", str(seen.structure)} <= set(seen.sizes)
    scales = torch.ones(values.scale_count(*shape)) if values.is_integer else None
    for offered, size in seen.sizes.items():
        packed = pack(stored, LinearSpec(shape, Structure.parse(offered), values), scales)
        assert torch.equal(packed.unpack(), stored)
        assert packed.size().total == size
        if offered == str(seen.structure):
            assert size <= seen.sizes["dense"]


# Between 3/4 and 7/8 a bitmask pays for 8 bits and not for 4; 100 inputs leave short groups, 7
# inputs a bitmask of whole bytes.
@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("density", [0.05, 0.5, 0.7, 0.76, 0.85, 0.9])
@pytest.mark.parametrize("cols", [128, 100, 7])
def test_auto_never_packs_larger_than_dense(dtype: str, density: float, cols: int) -> None:
    generator = torch.Generator().manual_seed(2)
    kept = torch.rand(96, cols, generator=generator) < density
    weight = (normal(96, cols).clamp(min=0.5) * kept).contiguous()
    auto, _ = compress(weight, values=dtype)
    dense, _ = compress(weight, values=dtype, structure="dense")
    assert auto.size().total <= dense.size().total


def test_rounding_to_int4_does_not_make_a_dense_matrix_sparse() -> None:
    packed, _ = compress(normal(128, 256), values="int4")
    assert 0.75 < float((packed.unpack() != 0).double().mean()) < 0.875
    assert str(observe(packed.unpack(), ValueSpec("int4")).structure) == "dense"
    # In 8 bits the same zeros pay.
    assert str(observe(packed.unpack()).structure) == "unstructured"


@pytest.mark.parametrize("text", ["2:4", "block:1x4", "block:16x16"])
def test_zeros_of_int4_rounding_do_not_hide_a_pattern(text: str) -> None:
    # A sixth of what is kept rounds to zero, at random places.
    structure = Structure.parse(text)
    weight = project(normal(128, 128), structure, None if structure.kind == "nm" else 0.7)
    lost = torch.rand(128, 128, generator=torch.Generator().manual_seed(3)) < 1 / 6
    assert str(observe(weight * ~lost, ValueSpec("int4")).structure) == text


def test_an_n_m_pattern_larger_than_dense_is_not_taken() -> None:
    # 8:16 of 4 bits has as many bits of positions as of values; the short last group stores more.
    weight = project(normal(64, 100), Structure.parse("8:16"))
    seen = observe(weight, ValueSpec("int4"))
    assert str(seen.structure) == "unstructured"
    assert seen.sizes["unstructured"] < seen.sizes["dense"]
