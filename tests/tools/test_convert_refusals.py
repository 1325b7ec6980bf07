"""What convert() refuses, and that nothing is written then."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from sparse_runtime import store
from sparse_runtime.checkpoints import AlreadyPackedError, CheckpointError
from sparse_runtime.tools.convert import convert

QUERY = "encoder.layer.0.attention.self.query"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"structure": "3:2"}, "1 <= N < M"),
        ({"structure": "sparse"}, "structure 'sparse'"),
        ({"values": "int2"}, "values 'int2'"),
        ({"scales": "column"}, "scales 'column'"),
        ({"values": "fp32", "scales": "tensor"}, "scales 'tensor'"),
        ({"activations": "static"}, "activations 'static'"),
        ({"values": "bf16", "activations": "dynamic"}, "activations 'dynamic'"),
        ({"prune": "2:4@0.5"}, "prune '2:4@0.5'"),
        ({"prune": "unstructured"}, "prune 'unstructured'"),
        ({"prune": "2:4", "structure": "1:4"}, "structure '1:4' contradicts prune '2:4'"),
        ({"prune": "unstructured@0.9", "structure": "dense"}, "contradicts"),
        ({"prune_method": "foo"}, "prune_method 'foo': expected one of 'magnitude'"),
        ({"prune_method": "obs"}, "prune_method 'obs': needs texts"),
    ],
)
def test_bad_arguments_are_refused_and_nothing_is_written(
    arguments: dict[str, str], message: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        # In the last layer, so that all others have been packed by then.
        ("encoder.layer.1.output.dense.weight", float("nan"), "got nan at"),
        ("encoder.layer.1.output.dense.bias", float("inf"), "got inf at"),
        ("pooler.dense.weight", float("nan"), "got nan at"),
        # 1e5 is above the largest fp16 number.
        ("encoder.layer.1.output.dense.weight", 1e5, "overflows fp16"),
    ],
)
def test_bad_numbers_are_refused_before_anything_is_written(
    name: str, value: float, message: str, model: BertModel, tmp_path: Path
) -> None:
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state[name].view(-1)[3] = value
    model.save_pretrained(tmp_path / "source", state_dict=state)
    with pytest.raises(CheckpointError, match=rf"{name}: .*{message}"):
        convert(tmp_path / "source", tmp_path / "out", values="fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_bias_of_another_size_is_refused(model: BertModel, tmp_path: Path) -> None:
    state = dict(model.state_dict()) | {f"{QUERY}.bias": torch.zeros(31)}
    model.save_pretrained(tmp_path / "source", state_dict=state)
    with pytest.raises(CheckpointError, match=rf"{QUERY}.bias: expected 32 values.*\[31\]"):
        convert(tmp_path / "source", tmp_path / "out")


def test_a_model_without_an_encoder_is_refused(tmp_path: Path) -> None:
    network = BertModel(
        BertConfig(vocab_size=50, hidden_size=32, num_attention_heads=4, num_hidden_layers=0)
    )
    network.save_pretrained(tmp_path / "source")
    with pytest.raises(CheckpointError) as caught:
        convert(tmp_path / "source", tmp_path / "out")
    assert "a bert model whose matrices are" in str(caught.value)
    assert "embeddings.word_embeddings.weight" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_packed_model_is_no_source(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out")
    with pytest.raises(AlreadyPackedError, match="already packed"):
        convert(tmp_path / "out", tmp_path / "again")


def test_only_packed_models_are_overwritten(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    convert(source, out, values="fp32")
    before = (out / "config.json").read_text()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        convert(source, out)
    assert (out / "config.json").read_text() == before
    convert(source, out, overwrite=True)
    assert store.load(out).linears[QUERY].packed.spec.values.dtype == "int8"
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.jpg").write_text("purr")
    with pytest.raises(FileExistsError, match="and nothing else"):
        convert(source, other, overwrite=True)
    with pytest.raises(FileExistsError, match="got a file"):
        convert(source, other / "cat.jpg", overwrite=True)
    assert (other / "cat.jpg").read_text() == "purr"


@pytest.mark.parametrize("inside", ["", "packed"])
def test_the_source_is_never_written_to(inside: str, source: Path) -> None:
    (source / "packed").mkdir(exist_ok=True)
    with pytest.raises(ValueError, match="lies in the source"):
        convert(source, source / inside, overwrite=True)
    (source / "packed").rmdir()


def test_arguments_that_name_nothing(source: Path, tmp_path: Path) -> None:
    for arguments, error, message in (
        ((None, tmp_path / "out"), TypeError, "source: expected a directory or a hub id, got None"),
        (("", tmp_path / "out"), ValueError, "source: .* got an empty string"),
        ((source, None), TypeError, "out_dir: expected a path, got NoneType"),
        ((source, ""), ValueError, "out_dir: expected a path, got an empty string"),
    ):
        with pytest.raises(error, match=message):
            convert(*arguments)
    with pytest.raises(TypeError, match=r"finalise: expected answers by name, .* got str"):
        convert(source, tmp_path / "out", finalise="x")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
