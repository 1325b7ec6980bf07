"""The policy from strings to a packed weight that layers and convert share."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparse_runtime.formats import Compression, compress
from sparse_runtime.spec import ActivationSpec
from sparse_runtime.testing import make_weight

# The zeros of each are recognised as what was pruned.
SHOWN = {"dense": None, "unstructured": 0.7, "2:4": None, "1:4": None, "block:8x8": 0.5}


@pytest.mark.parametrize("structure", SHOWN)
def test_auto_keeps_the_structure_the_zeros_show_and_loses_nothing(structure: str) -> None:
    weight = make_weight((32, 48), structure, SHOWN[structure])
    packed, note = compress(weight, values="fp32")
    assert str(packed.spec.structure) == structure
    assert torch.equal(packed.dequantize(), weight)
    assert note.zeroed == 0
    assert note.error == 0
    assert note.nonzeros == int((weight != 0).sum())


@pytest.mark.parametrize("structure", ["dense", "unstructured", "block:4x1", "block:32x32"])
def test_these_structures_hold_any_matrix_and_prune_nothing(structure: str) -> None:
    weight = make_weight((21, 43))
    packed, note = compress(weight, structure=structure, values="fp32")
    assert str(packed.spec.structure) == structure
    assert torch.equal(packed.dequantize(), weight)
    assert note.zeroed == 0


def test_an_explicit_n_to_m_prunes_by_magnitude_and_counts() -> None:
    weight = torch.tensor([[1.0, -4.0, 3.0, 2.0], [0.0, 5.0, 0.0, 0.0]])
    packed, note = compress(weight, structure="2:4", values="fp32")
    assert torch.equal(
        packed.dequantize(), torch.tensor([[0.0, -4.0, 3.0, 0.0], [0.0, 5.0, 0.0, 0.0]])
    )
    assert (note.nonzeros, note.zeroed) == (5, 2)
    assert note.error == pytest.approx((5 / 55) ** 0.5)


@pytest.mark.parametrize(
    ("prune", "structure", "kept"),
    [
        ("2:4", "2:4", 0.5),
        ("unstructured@0.75", "unstructured", 0.25),
        ("block:8x8@0.5", "block:8x8", 0.5),
    ],
)
def test_prune_names_the_structure_and_the_sparsity(
    prune: str, structure: str, kept: float
) -> None:
    weight = make_weight((32, 48))
    for explicit in ("auto", structure):
        packed, note = compress(weight, structure=explicit, values="fp32", prune=prune)
        assert str(packed.spec.structure) == structure
        assert int((packed.unpack() != 0).sum()) == kept * weight.numel()
        assert note.zeroed == (1 - kept) * weight.numel()


def test_values_and_activations_go_together() -> None:
    weight = make_weight((8, 16))

    def spec(**strings: str) -> tuple[str, str, ActivationSpec | None]:
        made = compress(weight, **strings)[0].spec
        return made.values.dtype, made.values.scales, made.activations

    asymmetric = ActivationSpec("dynamic", "uint8")
    assert spec() == ("int8", "row", asymmetric)
    assert spec(values="int4") == ("int4", "row", asymmetric)
    assert spec(values="int8", scales="chunk:3") == ("int8", "chunk:3", asymmetric)
    assert spec(activations="dynamic") == ("int8", "row", asymmetric)
    assert spec(activations="symmetric") == ("int8", "row", ActivationSpec("dynamic", "int8"))
    assert spec(activations="none") == ("int8", "row", None)
    for floats in ("fp32", "bf16", "fp16"):
        assert spec(values=floats) == (floats, "row", None)
        assert spec(values=floats, activations="none")[2] is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_source_types_are_computed_with_in_float32(dtype: torch.dtype) -> None:
    weight = make_weight((8, 16)).to(dtype)
    packed, note = compress(weight)
    assert torch.equal(packed.dequantize(), compress(weight.float())[0].dequantize())
    assert 0 < note.error < 0.01


def test_an_all_zero_weight_is_packed_without_error() -> None:
    packed, note = compress(torch.zeros(8, 16))
    assert str(packed.spec.structure) == "unstructured"
    assert (note.nonzeros, note.zeroed, note.error) == (0, 0, 0.0)


@pytest.mark.parametrize(
    ("strings", "message"),
    [
        ({"structure": "sparse"}, "structure 'sparse': expected"),
        ({"structure": "4:2"}, "structure 4:2"),
        ({"values": "int3"}, "values 'int3': expected 'auto', 'fp32'"),
        ({"scales": "column"}, "scales 'column'"),
        ({"values": "fp32", "scales": "tensor"}, "scales 'tensor': fp32 values carry none"),
        ({"activations": "static"}, "activations 'static': expected 'auto', 'dynamic', "),
        ({"values": "bf16", "activations": "dynamic"}, "needs int8 or int4 values, got bf16"),
        ({"prune": "unstructured"}, "prune 'unstructured'"),
        ({"prune": "block:4x4@1.5"}, "the sparsity is a number from 0 to below 1"),
        ({"prune": "2:4", "structure": "dense"}, "structure 'dense' contradicts prune '2:4'"),
        ({"prune": "2:4", "structure": "1:4"}, "structure '1:4' contradicts prune '2:4'"),
    ],
)
def test_strings_that_make_no_sense_are_refused(strings: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Compression.parse(**strings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(4), r"expected a 2-D float matrix .* got torch.float32 \[4\]"),
        (torch.ones(4, 4, dtype=torch.int8), "got torch.int8"),
        (torch.ones(0, 4), r"\[0, 4\]"),
        (torch.full((4, 4), torch.nan), r"weight\[0, 0\] is nan"),
        (torch.full((4, 4), 1e300, dtype=torch.float64), r"weight\[0, 0\] is inf"),
    ],
)
def test_a_weight_that_cannot_be_packed_is_refused(weight: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compress(weight)


@pytest.mark.parametrize(
    "argument", [{"structure": None}, {"values": 8}, {"scales": None}, {"activations": True}]
)
def test_arguments_that_are_no_strings_are_named(argument: dict[str, Any]) -> None:
    ((name, value),) = argument.items()
    with pytest.raises(TypeError, match=rf"^{name}: expected a string such as '.*', got {value}$"):
        Compression.parse(**argument)
    with pytest.raises(TypeError, match=r"^prune: expected a string such as .*@0\.9', got 0\.5$"):
        Compression.parse(prune=0.5)  # type: ignore[arg-type]
