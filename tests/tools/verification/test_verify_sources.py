"""Which sources and arguments verify() refuses before anything runs, and which it reads."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from sparse_runtime.tools.verification import verify
from sparse_runtime.tools.verification.trial import Trial

Checkpoints = Callable[..., Path]
Converter = Callable[..., Path]

TEXTS = ["", "a", "the cat sat on the mat", "what is this", "dogs and cats " * 12, "é 猫"]
PAIRS = [("a cat", "a dog"), ("one two", "one two three"), ("red", "blue sky"), ("up", "down")]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 65}, "vocab_size is 64 in the packed model and 65 in the source"),
        ({"num_hidden_layers": 1}, "num_hidden_layers is 2 in the packed model and 1 in"),
        ({"intermediate_size": 32}, "intermediate_size"),
        ({"name": "BertForMaskedLM"}, "architectures"),
        ({"model_type": "electra", "name": "ElectraModel"}, "model_type is 'bert' in"),
    ],
)
def test_another_network_is_refused_before_anything_runs(
    make_checkpoint: Checkpoints,
    base: Path,
    pack: Converter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr(Trial, "run", lambda *_: pytest.fail("the models ran"))
    other = make_checkpoint(tmp_path / "other", **fields)
    with pytest.raises(ValueError, match=message):
        verify(pack(base), other, TEXTS, progress=False)


def test_another_tokenizer_is_refused(base: Path, pack: Converter, tmp_path: Path) -> None:
    other = shutil.copytree(base, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="tokenizer is not the packed model's: 'a' becomes"):
        verify(pack(base), other, TEXTS, progress=False)


def test_a_source_without_tokenizer_or_weights_is_refused(
    make_checkpoint: Checkpoints, tmp_path: Path, pack: Converter
) -> None:
    source = make_checkpoint(tmp_path / "s", name="BertForSequenceClassification")
    packed = pack(source)
    for path in source.glob("tokenizer*"):
        path.rename(tmp_path / path.name)
    for path in source.glob("vocab*"):
        path.unlink()
    with pytest.raises(ValueError, match="no tokenizer"):
        verify(packed, source, TEXTS, progress=False)
    for path in tmp_path.glob("tokenizer*"):
        shutil.copy(path, source)
    tensors = load_file(source / "model.safetensors")
    del tensors["classifier.weight"]
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks the weights classifier\.weight of a BertFor"):
        verify(packed, source, TEXTS, progress=False)


def test_a_source_saved_from_a_wrapper_is_read(base: Path, pack: Converter, tmp_path: Path) -> None:
    wrapped = shutil.copytree(base, tmp_path / "wrapped")
    tensors = load_file(base / "model.safetensors")
    renamed = {f"module.{name}": tensor for name, tensor in tensors.items()}
    save_file(renamed, wrapped / "model.safetensors", {"format": "pt"})
    report = verify(pack(base, values="fp32"), wrapped, TEXTS, progress=False)
    assert report.output.max_abs < 1e-5


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"texts": "one"}, TypeError, "texts: expected a list of texts, got str"),
        ({"texts": []}, ValueError, "texts: expected at least one"),
        ({"texts": ["a", 3]}, TypeError, r"texts\[1\]: expected a text, got int"),
        ({"pairs": []}, ValueError, "pairs: expected a list of at least one pair"),
        ({"pairs": ["ab"]}, TypeError, r"pairs\[0\]: expected two texts, got 'ab'"),
        ({"pairs": PAIRS, "scores": [1.0]}, ValueError, "each of the 4 pairs, got 1"),
        ({"scores": [1.0, 2.0]}, ValueError, "each of the 0 pairs, got 2"),
        ({"pairs": PAIRS, "scores": [1.0] * 4}, ValueError, "scores: expected different"),
        ({"pairs": PAIRS, "scores": [1, 2, 3, math.nan]}, ValueError, r"scores\[3\]"),
        ({"batch_size": 0}, ValueError, "batch_size: expected an integer from 1, got 0"),
        ({"max_length": 41}, ValueError, "max_length: expected 3 to 40 for this model, got 41"),
        ({"max_length": 2}, ValueError, "max_length: expected 3 to 40 for this model, got 2"),
        ({"max_length": "x"}, TypeError, "max_length: expected an integer, got str"),
        ({"finalise": "x"}, TypeError, "finalise: expected answers by name, .* got str"),
        ({"pairs": PAIRS, "scores": "1234"}, TypeError, "scores: expected a list of numbers"),
        ({"pairs": PAIRS, "scores": 4}, TypeError, "scores: expected a list of numbers, got int"),
        ({"backend": "gpu"}, ValueError, "backend 'gpu'"),
    ],
)
def test_bad_arguments_are_refused(
    base: Path,
    pack: Converter,
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        verify(pack(base), base, progress=False, **arguments)


def test_a_packed_model_is_no_source_and_a_source_no_packed_model(
    base: Path, pack: Converter
) -> None:
    with pytest.raises(ValueError, match="already packed"):
        verify(pack(base), pack(base), TEXTS, progress=False)
    with pytest.raises(ValueError, match="convert"):
        verify(base, base, TEXTS, progress=False)


def test_names_of_nothing_are_refused(base: Path) -> None:
    for packed, source, error, message in (
        (None, base, TypeError, "packed: expected a path, got NoneType"),
        ("", base, ValueError, "packed: expected a path, got an empty string"),
        (base, None, TypeError, "source: expected a directory or a hub id, got NoneType"),
        (base, "", ValueError, "source: expected a directory or a hub id, got an empty string"),
    ):
        with pytest.raises(error, match=message):
            verify(packed, source, progress=False)
