"""bitsandbytes itself writes; what is read equals what it computes, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertForSequenceClassification, BitsAndBytesConfig

import sparse_runtime as sr
from sparse_runtime.checkpoints import CheckpointError, open_checkpoint
from sparse_runtime.spec import ActivationSpec
from sparse_runtime.tools.convert import convert
from sparse_runtime.tools.integers import pack_integers

bitsandbytes = pytest.importorskip("bitsandbytes", minversion="0.50")
pytest.importorskip("accelerate")  # transformers places the model with it


@pytest.fixture
def written(
    small_bert: BertForSequenceClassification, tmp_path: Path
) -> tuple[Path, BertForSequenceClassification]:
    """(the directory, the quantized model)."""
    small_bert.bert.encoder.layer[1].output.dense.weight.data[3] = 0
    small_bert.save_pretrained(tmp_path / "floats")
    quantized = BertForSequenceClassification.from_pretrained(
        tmp_path / "floats",
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),
        device_map="cpu",
    )
    quantized.save_pretrained(tmp_path / "model")
    return tmp_path / "model", quantized


def test_weights_equal_the_packages_own(
    written: tuple[Path, BertForSequenceClassification], tmp_path: Path
) -> None:
    directory, model = written
    with pytest.raises(CheckpointError, match=r"above 6\.0 .*--finalise activations=none"):
        open_checkpoint(directory)
    checkpoint = open_checkpoint(directory, finalise={"activations": "none"})
    assert len(checkpoint.linears) >= 12
    x = torch.eye(64)
    for module, linear in checkpoint.linears.items():
        theirs = model.get_submodule(module)
        ours = pack_integers(linear, None)[0].dequantize()
        # What it multiplies with in training, on a row of each unit vector.
        state = bitsandbytes.MatmulLtState()
        state.CB, state.SCB = theirs.weight.CB, theirs.weight.SCB
        state.CB = theirs.weight.data if state.CB is None else state.CB
        state.SCB = theirs.state.SCB if state.SCB is None else state.SCB
        state.is_training, state.has_fp16_weights = True, False
        columns = linear.shape[1]
        product = bitsandbytes.matmul(x[:columns, :columns], theirs.weight, state=state)
        assert torch.equal(torch.nan_to_num(product.float()).T, ours), module
    report = convert(
        directory, tmp_path / "packed", finalise={"activations": "none"}, progress=False
    )
    assert len(report.layers) == len(checkpoint.linears)


@pytest.mark.parametrize("choice", ["none", "symmetric"])
def test_packed_models_are_near_what_the_package_computes(
    choice: str, written: tuple[Path, BertForSequenceClassification], tmp_path: Path
) -> None:
    directory, model = written
    convert(directory, tmp_path / "packed", finalise={"activations": choice}, progress=False)
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        theirs = model(tokens).logits
    ours = sr.SparseModel.from_pretrained(tmp_path / "packed")(tokens).logits
    # float16 and columns in floats are its own: the weights are the same, the inputs are not.
    assert 0 < (ours - theirs).abs().max() < 3e-2 * theirs.abs().max()


def test_symmetric_inputs_may_be_asked_for(
    written: tuple[Path, BertForSequenceClassification],
) -> None:
    checkpoint = open_checkpoint(written[0], finalise={"activations": "symmetric"})
    chosen = {linear.activations for linear in checkpoint.linears.values()}
    assert chosen == {ActivationSpec("dynamic", "int8")}


def test_four_bits_are_refused(small_bert: BertForSequenceClassification, tmp_path: Path) -> None:
    small_bert.save_pretrained(tmp_path / "floats")
    quantized = BertForSequenceClassification.from_pretrained(
        tmp_path / "floats",
        quantization_config=BitsAndBytesConfig(load_in_4bit=True),
        device_map="cpu",
    )
    quantized.save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match="bitsandbytes' 4-bit layout"):
        open_checkpoint(tmp_path / "model")
