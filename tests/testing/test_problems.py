"""The problem generator: seeds, structures, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from sparse_runtime.spec import ActivationSpec
from sparse_runtime.testing import make_activations, make_linear_problem, make_packed, make_weight


def test_the_seed_decides() -> None:
    same = [make_weight((6, 8), "unstructured", 0.5, seed=3) for _ in range(2)]
    assert torch.equal(same[0], same[1])
    assert not torch.equal(same[0], make_weight((6, 8), "unstructured", 0.5, seed=4))
    assert torch.equal(make_activations(3, 4, seed=1), make_activations(3, 4, seed=1))
    assert not torch.equal(make_activations(3, 4, seed=1), make_activations(3, 4, seed=2))


def test_weights_and_inputs_of_one_seed_are_not_the_same_numbers() -> None:
    weight = make_weight((4, 8), seed=0) * 8**0.5
    assert not torch.allclose(weight, make_activations(4, 8, seed=0))


@pytest.mark.parametrize(
    ("structure", "sparsity", "zeros"),
    [
        ("dense", None, 0),
        ("unstructured", 0.9, 173),  # round(0.9 * 192)
        ("unstructured", None, 0),  # holds any matrix, so nothing is pruned
        ("2:4", None, 96),
        ("1:8", None, 168),
        ("block:4x4", 0.75, 144),  # 9 of 12 whole blocks
        ("block:5x5", 0.5, None),  # blocks that pad: 6 blocks of 15, counted below
    ],
)
def test_structures_have_the_zeros_that_were_asked_for(
    structure: str, sparsity: float | None, zeros: int | None
) -> None:
    weight = make_weight((12, 16), structure, sparsity)
    if zeros is not None:
        assert int((weight == 0).sum()) == zeros
    else:
        assert 0 < int((weight == 0).sum()) < weight.numel()
    assert weight.std() < 1


@pytest.mark.parametrize("values", ["fp32", "bf16", "fp16", "int8", "int4"])
def test_packed_weights_round_trip_and_quantize_their_input_only_as_integers(values: str) -> None:
    packed = make_packed((7, 9), "unstructured", 0.5, values=values, scales="chunk:3")
    packed.validate()
    expected = ActivationSpec("dynamic", "uint8") if values.startswith("int") else None
    assert packed.spec.activations == expected
    weight = make_weight((7, 9), "unstructured", 0.5)
    step = {"fp32": 0, "bf16": 2**-8, "fp16": 2**-11, "int8": 1 / 254, "int4": 1 / 14}[values]
    assert (packed.dequantize() - weight).abs().max() <= step * weight.abs().max() * 1.001


def test_activations_can_be_left_alone_or_described() -> None:
    assert make_packed((4, 4), values="int8", activations="none").spec.activations is None
    static = ActivationSpec("static", "uint8", 0.1, 128)
    assert make_packed((4, 4), values="int8", activations=static).spec.activations == static
    with pytest.raises(ValueError, match=r"'auto', 'dynamic', 'symmetric', 'none'"):
        make_packed((4, 4), values="int8", activations="sometimes")


@pytest.mark.parametrize("structure", ["dense", "2:4"])
def test_a_sparsity_that_the_structure_leaves_no_room_for_is_refused(structure: str) -> None:
    with pytest.raises(ValueError, match=r"sparsity 0.5: structure .* leaves none"):
        make_weight((4, 4), structure, 0.5)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, float("nan")])
def test_a_sparsity_out_of_range_is_refused(sparsity: float) -> None:
    with pytest.raises(ValueError, match="from 0 to below 1"):
        make_weight((4, 4), "unstructured", sparsity)


def test_a_problem_has_fitting_parts() -> None:
    problem = make_linear_problem((6, 10), 3, "2:4", values="int8")
    assert problem.packed.spec.shape == (6, 10)
    assert problem.bias.shape == (6,)
    assert problem.x.shape == (3, 10)
    assert problem.residual.shape == (3, 6)
