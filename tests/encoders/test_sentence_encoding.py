"""encode() gives what sentence-transformers gives for the same directory."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparse_runtime import SparseModel
from sparse_runtime.encoders.pooling import POOLINGS, pool

LIMIT = 1e-5
TEXTS = [
    "Sparse weights leave out most of the products.",
    "Why?",
    "",
    "A cat sat on the mat, and the mat had been there for a long time before the cat was. " * 8,
    "Die Katze saß auf der Matte.",
]


def test_real_minilm(minilm: Path, make_dense: Any) -> None:
    from sentence_transformers import SentenceTransformer

    theirs, ours = SentenceTransformer(str(minilm), device="cpu"), make_dense(minilm)
    texts = [*TEXTS, "word " * 400]  # cut to 256 tokens by sentence_bert_config.json
    expected = theirs.encode(texts)
    for batch_size in (1, 2, 32):
        got = ours.encode(texts, batch_size=batch_size)
        assert got.dtype == np.float32 and got.shape == expected.shape
        assert np.abs(got - expected).max() < LIMIT


@pytest.mark.parametrize("poolings", [*POOLINGS, ("weightedmean", "cls", "max")], ids=str)
def test_poolings(
    poolings: Any, tiny: Path, tmp_path: Path, make_dense: Any, make_pipeline: Any
) -> None:
    theirs = make_pipeline(tiny, tmp_path / "saved", poolings=poolings)
    ours = make_dense(tmp_path / "saved")
    assert np.abs(ours.encode(TEXTS) - theirs.encode(TEXTS)).max() < LIMIT
    assert ours.encode([]).shape == (0, 48 if isinstance(poolings, tuple) else 16)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("mode", list(POOLINGS))
def test_pooling_with_padding_on_either_side(mode: str, side: str) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    mask = mask.flip(1) if side == "left" else mask
    tokens = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0)) * mask.unsqueeze(2)
    features = {"token_embeddings": tokens, "attention_mask": mask}
    expected = Pooling(8, mode)(features)["sentence_embedding"]
    assert (pool(tokens, mask.bool(), (mode,)) - expected).abs().max().item() < 1e-6


def test_older_pooling_flags(
    tiny: Path, tmp_path: Path, make_dense: Any, make_pipeline: Any
) -> None:
    make_pipeline(tiny, tmp_path / "saved")
    flags = {
        "word_embedding_dimension": 16,
        "pooling_mode_max_tokens": True,
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": False,
    }
    (tmp_path / "saved/1_Pooling/config.json").write_text(json.dumps(flags))
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    ours = make_dense(tmp_path / "saved")
    assert np.abs(ours.encode(TEXTS) - theirs.encode(TEXTS)).max() < LIMIT


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["Tanh", "ReLU", "Identity"])
def test_dense_and_normalize(
    bias: bool, activation: str, tiny: Path, tmp_path: Path, make_dense: Any, make_pipeline: Any
) -> None:
    from sentence_transformers.base.modules import Dense, Normalize

    function = getattr(torch.nn, activation)()
    torch.manual_seed(5)
    steps = Dense(16, 12, bias=bias, activation_function=function), Normalize(), Dense(12, 6)
    theirs = make_pipeline(tiny, tmp_path / "saved", *steps)
    ours = make_dense(tmp_path / "saved")
    assert np.abs(ours.encode(TEXTS) - theirs.encode(TEXTS)).max() < LIMIT
    # the pipeline's weights travel along
    ours.save_pretrained(tmp_path / "packed")
    loaded = SparseModel.from_pretrained(tmp_path / "packed")
    assert np.array_equal(loaded.encode(TEXTS), ours.encode(TEXTS))
    assert loaded.to(torch.bfloat16).encode("x", convert_to_numpy=False).dtype == torch.bfloat16


def test_model_settings(tiny: Path, tmp_path: Path, make_dense: Any, make_pipeline: Any) -> None:
    # a limit of tokens, a default prompt, and a cut to the first features
    make_pipeline(tiny, tmp_path / "saved", max_seq_length=20)
    path = tmp_path / "saved/config_sentence_transformers.json"
    settings = {
        "prompts": {"query": "Search for: ", "document": ""},
        "default_prompt_name": "query",
        "truncate_dim": 10,
    }
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    ours = make_dense(tmp_path / "saved")
    for normalize in (False, True):
        got = ours.encode(TEXTS, normalize_embeddings=normalize)
        assert got.shape == (5, 10)
        expected = theirs.encode(TEXTS, normalize_embeddings=normalize)
        assert np.abs(got - expected).max() < LIMIT
    assert ours.encode([]).shape == (0, 10)
    for chosen in ({"prompt_name": "document"}, {"prompt": "the "}, {"prompt": ""}):
        assert np.abs(ours.encode(TEXTS, **chosen) - theirs.encode(TEXTS, **chosen)).max() < LIMIT
    assert np.array_equal(ours.encode(TEXTS, prompt_name="query"), ours.encode(TEXTS))


def test_lower_case_reaches_a_cased_tokenizer(
    tiny: Path, tmp_path: Path, make_dense: Any, make_pipeline: Any
) -> None:
    cased = shutil.copytree(tiny, tmp_path / "cased")
    data = json.loads((cased / "tokenizer.json").read_text())
    data["normalizer"]["lowercase"] = False
    (cased / "tokenizer.json").write_text(json.dumps(data))
    settings = json.loads((cased / "tokenizer_config.json").read_text())
    (cased / "tokenizer_config.json").write_text(json.dumps({**settings, "do_lower_case": False}))
    make_pipeline(cased, tmp_path / "saved")
    settings = {"max_seq_length": 30, "do_lower_case": True}
    (tmp_path / "saved/sentence_bert_config.json").write_text(json.dumps(settings))
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    ours = make_dense(tmp_path / "saved")
    texts = ["SPARSE Weights", "sparse weights"]
    got = ours.encode(texts)
    assert np.abs(got - theirs.encode(texts)).max() < LIMIT
    assert np.abs(got[0] - got[1]).max() < 1e-6


def test_without_modules_json_the_mean_is_taken(
    tiny: Path, caplog: pytest.LogCaptureFixture, make_dense: Any
) -> None:
    from sentence_transformers import SentenceTransformer

    theirs, ours = SentenceTransformer(str(tiny), device="cpu"), make_dense(tiny)
    # the tokenizer allows 512 tokens, the model has positions for 64
    texts = [*TEXTS, "word " * 100]
    assert np.abs(ours.encode(texts) - theirs.encode(texts)).max() < LIMIT
    assert "no modules.json, sentences are embedded by mean pooling" in caplog.text


def test_order_and_types(tiny: Path, make_dense: Any) -> None:
    model = make_dense(tiny)
    rows = model.encode(TEXTS, batch_size=2)
    for text, row in zip(TEXTS, rows, strict=True):
        one = model.encode(text)
        assert one.shape == (16,) and np.abs(one - row).max() < LIMIT
    for how in ({"convert_to_numpy": False}, {"convert_to_tensor": True}):
        tensor = model.encode(tuple(TEXTS), **how)
        assert isinstance(tensor, torch.Tensor) and np.abs(tensor.numpy() - rows).max() < LIMIT
    assert np.array_equal(model.encode(np.array(TEXTS[:2])), model.encode(TEXTS[:2]))
    lengths = np.linalg.norm(model.encode(TEXTS, normalize_embeddings=True), axis=1)
    assert np.abs(lengths - 1).max() < 1e-6


def test_wrong_arguments(tiny: Path, make_dense: Any) -> None:
    model = make_dense(tiny)
    with pytest.raises(TypeError, match=r"sentences\[1\]: expected a string, got int"):
        model.encode(["a", 1])  # type: ignore[list-item]
    for wrong in (None, b"a", {"a": 1}, {"a", "b"}, 3):
        with pytest.raises(TypeError, match=f"sentences: .* list .* got {type(wrong).__name__}"):
            model.encode(wrong)
    with pytest.raises(ValueError, match=r"sentences\[1\]: no valid Unicode: .*surrogates"):
        model.encode(["a", "\ud800"])
    for size in (0, True, 2.0, "2"):
        with pytest.raises(ValueError, match=f"batch_size {size!r}"):
            model.encode(["a"], batch_size=size)
    assert model.encode(["a", "b"], batch_size=np.int64(1)).shape == (2, 16)
    with pytest.raises(ValueError, match="prompt_name 'ask': expected one of 'query', 'document'"):
        model.encode("a", prompt_name="ask")
    with pytest.raises(ValueError, match="prompt_name and prompt: expected one"):
        model.encode("a", prompt_name="query", prompt="b")
    with pytest.raises(TypeError, match="prompt: expected a string, got int"):
        model.encode("a", prompt=1)


def test_progress_bar_follows_the_log_level(
    tiny: Path, capsys: pytest.CaptureFixture[str], caplog: Any, make_dense: Any
) -> None:
    model = make_dense(tiny)
    logger = "sparse_runtime.encoders.sentence"
    with caplog.at_level(logging.WARNING, logger):
        model.encode(["a"])
        assert "Batches" not in capsys.readouterr().err
        model.encode(["a"], show_progress_bar=True)
        assert "Batches" in capsys.readouterr().err
    with caplog.at_level(logging.INFO, logger):
        model.encode(["a"])
        assert "Batches" in capsys.readouterr().err


def test_models_that_cannot_encode(
    tiny: Path, tmp_path: Path, make_reference: Any, make_packed: Any
) -> None:
    packed = make_packed(make_reference("bert", "Model"))
    with pytest.raises(ValueError, match="no tokenizer files"):
        SparseModel.from_packed(packed).encode("x")
    packed.extra_files = tmp_path  # an empty directory
    with pytest.raises(ValueError, match=r"no tokenizer .tokenizer.json, "):
        SparseModel.from_packed(packed).encode("x")
    classifier = make_packed(make_reference("bert", "ForSequenceClassification"))
    classifier.extra_files = tiny
    with pytest.raises(ValueError, match="expected a base model, this one is for sequence_class"):
        SparseModel.from_packed(classifier).encode("x")


def test_a_pipeline_runs_the_base_model_of_a_checkpoint_with_another_class(
    tiny: Path, tmp_path: Path, make_dense: Any, make_pipeline: Any
) -> None:
    theirs = make_pipeline(tiny, tmp_path / "saved")
    ours = make_dense(tmp_path / "saved", architectures=["BertForMaskedLM"])
    assert ours.task == "base"
    assert np.abs(ours.encode(TEXTS) - theirs.encode(TEXTS)).max() < LIMIT


def test_calls_overlap(tiny: Path, make_dense: Any) -> None:
    model = make_dense(tiny)
    expected = [make_dense(tiny).encode(text) for text in TEXTS]
    with ThreadPoolExecutor(4) as threads:  # the first calls set up the tokenizer at once
        got = list(threads.map(model.encode, TEXTS * 8))
    for mine, other in zip(got, expected * 8, strict=True):
        assert np.array_equal(mine, other)


def test_files_are_those_of_the_model_wherever_the_process_goes(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_dense: Any,
    make_pipeline: Any,
) -> None:
    for place, pooling in (("here", "mean"), ("there", "cls")):
        make_pipeline(tiny, tmp_path / place / "saved", poolings=pooling)
        make_dense(tmp_path / place / "saved").save_pretrained(tmp_path / place / "packed")
    expected = SparseModel.from_pretrained(tmp_path / "here/packed").encode(TEXTS)
    monkeypatch.chdir(tmp_path / "here")
    model = SparseModel.from_pretrained("packed")
    monkeypatch.chdir(tmp_path / "there")  # where a directory has the same name
    assert np.array_equal(model.encode(TEXTS), expected)
    # written anew with the same content, the files are still the model's
    model.save_pretrained(tmp_path / "here/packed", overwrite=True)
    copied = pickle.loads(pickle.dumps(model))
    assert np.array_equal(copied.encode(TEXTS), expected)


@pytest.mark.parametrize("change", ["pooling", "tokenizer", "gone"])
def test_files_that_changed_since_the_model_was_loaded_are_refused(
    change: str, tiny: Path, tmp_path: Path, make_dense: Any, make_pipeline: Any
) -> None:
    saved = tmp_path / "saved"
    make_pipeline(tiny, saved)
    ours = make_dense(saved)
    stored = pickle.dumps(ours)
    if change == "pooling":
        (saved / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode": "cls"}))
    elif change == "tokenizer":
        text = (saved / "tokenizer.json").read_text()
        (saved / "tokenizer.json").write_text(text.replace('"cat"', '"dog"'))
    else:
        shutil.rmtree(saved)
    for model in (ours, pickle.loads(stored)):
        with pytest.raises(ValueError, match=r"saved: .*not those .*; load the model again"):
            model.encode("x")
        with pytest.raises(ValueError, match="load the model again"):
            model.save_pretrained(tmp_path / "copy")
