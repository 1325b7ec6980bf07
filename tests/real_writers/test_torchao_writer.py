"""torchao itself writes; what is read equals what it reads, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification, TorchAoConfig

import sparse_runtime as sr
from sparse_runtime.checkpoints import CheckpointError, open_checkpoint
from sparse_runtime.kernels.linear.reference import quantize_rows_full_range
from sparse_runtime.spec import ActivationSpec
from sparse_runtime.tools.convert import convert
from sparse_runtime.tools.integers import pack_integers

pytest.importorskip("torchao", minversion="0.18")

from torchao.quantization import (
    Float8WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8Tensor,
    Int8WeightOnlyConfig,
    MappingType,
    PerGroup,
    PerRow,
    PerTensor,
)

DYNAMIC = ActivationSpec("dynamic", "int8", narrow_range=False)


@pytest.fixture
def write(
    small_bert: BertForSequenceClassification, tmp_path: Path
) -> Callable[[Any], BertForSequenceClassification]:
    """write(config) -> the model that lies in tmp_path / "model"."""

    def quantize_and_save(config: Any) -> BertForSequenceClassification:
        small_bert.save_pretrained(tmp_path / "floats")
        quantized = BertForSequenceClassification.from_pretrained(
            tmp_path / "floats", quantization_config=TorchAoConfig(config)
        )
        quantized.save_pretrained(tmp_path / "model")
        return quantized

    return quantize_and_save


@pytest.mark.parametrize(
    ("config", "scales", "activations"),
    [
        (Int8DynamicActivationInt8WeightConfig(), "row", DYNAMIC),
        (
            Int8DynamicActivationInt8WeightConfig(granularity=[PerRow(), PerTensor()]),
            "tensor",
            DYNAMIC,
        ),
        (Int8WeightOnlyConfig(), "row", None),
        (Int8WeightOnlyConfig(granularity=PerTensor()), "tensor", None),
        (Int8WeightOnlyConfig(granularity=PerGroup(16)), "group:16", None),
    ],
)
def test_weights_equal_the_packages_own(
    config: Any, scales: str, activations: ActivationSpec | None, write: Any, tmp_path: Path
) -> None:
    model = write(config)
    checkpoint = open_checkpoint(tmp_path / "model")
    assert len(checkpoint.linears) == 14  # six in each of two layers, pooler and classifier
    for module, linear in checkpoint.linears.items():
        assert linear.values.scales == scales
        assert linear.activations == activations
        theirs = model.get_submodule(module).weight.dequantize()
        assert torch.equal(pack_integers(linear, None)[0].dequantize(), theirs), module
    assert "quantization_config" not in checkpoint.config
    report = convert(tmp_path / "model", tmp_path / "packed", progress=False)
    assert len(report.layers) == 14


def test_dynamic_inputs_have_the_packages_integers_but_for_ties() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(500, 64, generator=generator) * torch.logspace(-3, 3, 500).unsqueeze(1)
    theirs = Int8Tensor.from_hp(x, PerRow())
    ours, scale = quantize_rows_full_range(x)
    assert torch.equal(scale, theirs.scale.flatten())
    differs = ours != theirs.qdata
    # The largest magnitude of each token is 127.5 scales, and -127.5 is a tie.
    exact = x.double() / scale.double().unsqueeze(1)
    assert (((exact.abs() % 1) - 0.5).abs()[differs] < 1e-4).all()
    assert differs.sum() <= 500
    assert ((ours.int() - theirs.qdata.int()).abs() <= 1).all()


@pytest.mark.parametrize(
    ("config", "tolerance"),
    [
        (Int8WeightOnlyConfig(), 1e-6),
        (Int8WeightOnlyConfig(granularity=PerGroup(16)), 1e-6),
        # Integers that differ by one in ties; 3e-5 was seen.
        (Int8DynamicActivationInt8WeightConfig(), 1e-3),
    ],
)
def test_packed_models_compute_what_the_package_computes(
    float_attention: None, config: Any, tolerance: float, write: Any, tmp_path: Path
) -> None:
    quantized = write(config)
    convert(tmp_path / "model", tmp_path / "packed", progress=False)
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        theirs = quantized(tokens).logits
    ours = sr.SparseModel.from_pretrained(tmp_path / "packed")(tokens).logits
    assert (ours - theirs).abs().max() < tolerance * theirs.abs().max()


def test_inputs_without_a_counterpart_are_asked_for(write: Any, tmp_path: Path) -> None:
    write(Int8DynamicActivationInt8WeightConfig(act_mapping_type=MappingType.ASYMMETRIC))
    with pytest.raises(CheckpointError, match=r"ASYMMETRIC.*--finalise activations=none"):
        open_checkpoint(tmp_path / "model")
    checkpoint = open_checkpoint(tmp_path / "model", finalise={"activations": "dynamic"})
    chosen = {linear.activations for linear in checkpoint.linears.values()}
    assert chosen == {ActivationSpec("dynamic", "uint8")}


def test_other_subclasses_are_refused_by_name(write: Any, tmp_path: Path) -> None:
    write(Float8WeightOnlyConfig())
    with pytest.raises(CheckpointError, match=r"got its Float8Tensor: float8 products"):
        open_checkpoint(tmp_path / "model")
