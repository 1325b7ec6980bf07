"""Pipelines of sentence-transformers that ask for what does not run here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparse_runtime.encoders.pipeline import runs_base_model

LIMIT = 1e-5

MODULES = "modules.json"
BERT = "sentence_bert_config.json"
POOLING = "1_Pooling/config.json"
DENSE = "2_Dense/config.json"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (MODULES, lambda m: m.pop(1), "expected Transformer, Pooling"),
        (MODULES, lambda m: m[2].update(type="sentence_transformers.models.LSTM"), "LSTM"),
        (MODULES, lambda m: m[2].update(type="my_code.Dense"), "my_code.Dense.*own"),
        (MODULES, lambda m: m[1].update(path="../other"), "a path inside"),
        (MODULES, lambda m: m[0].update(path="0_Transformer"), "files at the root"),
        (MODULES, lambda m: m.append("x"), "expected modules with a type"),
        (BERT, lambda b: b.update(query_length=32), "query_length 32 is not supported"),
        (BERT, lambda b: b.update(max_seq_length="long"), "max_seq_length 'long'"),
        (BERT, lambda b: b.update(max_seq_length=2), "max_seq_length 2: expected more than the 2"),
        (BERT, lambda b: b.update(processing_kwargs={"text": {}}), "processing_kwargs"),
        (POOLING, lambda p: p.update(pooling_mode="median"), r"pooling_mode \['median'\]"),
        (POOLING, lambda p: p.update(pooling_mode=[]), r"pooling_mode \[\]"),
        (POOLING, lambda p: p.update(weights=[1]), "weights .* is not supported"),
        (POOLING, lambda p: p.update(embedding_dimension=8), "the encoder gives 16"),
        (DENSE, lambda d: d.update(activation_function="my.Sin"), "activation_function 'my.Sin'"),
        (DENSE, lambda d: d.update(module_input_name="token_embeddings"), "module_input_name"),
        (DENSE, lambda d: d.update(use_residual=True), "use_residual True"),
        (DENSE, lambda d: d.update(in_features=8), "Dense takes 8 features, it is given 16"),
        (DENSE, lambda d: d.update(out_features=5), "expected tensors"),
        (DENSE, lambda d: d.update(in_features=None), "as integers"),
    ],
)
def test_pipelines_that_are_refused(
    file: str,
    change: Any,
    message: str,
    tiny: Path,
    tmp_path: Path,
    make_dense: Any,
    make_pipeline: Any,
) -> None:
    from sentence_transformers.base.modules import Dense

    saved = tmp_path / "saved"
    make_pipeline(tiny, saved, Dense(16, 6))
    data = json.loads((saved / file).read_text())
    change(data)
    (saved / file).write_text(json.dumps(data))
    ours = make_dense(saved)
    with pytest.raises(ValueError, match=message):
        ours.encode("x")


@pytest.mark.parametrize(
    ("kind", "settings", "base"),
    [
        ("sentence_transformers.models.Transformer", None, True),
        ("sentence_transformers.base.modules.transformer.Transformer", "feature-extraction", True),
        # SPLADE, since sentence-transformers 6 and before
        ("sentence_transformers.base.modules.transformer.Transformer", "fill-mask", False),
        ("sentence_transformers.sparse_encoder.models.MLMTransformer.MLMTransformer", None, False),
    ],
)
def test_which_pipelines_run_the_base_model(
    kind: str, settings: str | None, base: bool, tmp_path: Path
) -> None:
    assert not runs_base_model(tmp_path)
    (tmp_path / MODULES).write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": kind}]))
    if settings is not None:
        (tmp_path / BERT).write_text(json.dumps({"transformer_task": settings}))
    assert runs_base_model(tmp_path) == base


def test_a_prompt_that_is_not_pooled_is_refused(
    tiny: Path, tmp_path: Path, make_dense: Any, make_pipeline: Any
) -> None:
    saved = tmp_path / "saved"
    theirs = make_pipeline(tiny, saved)
    pooling = json.loads((saved / POOLING).read_text())
    (saved / POOLING).write_text(json.dumps({**pooling, "include_prompt": False}))
    # without a prompt there is nothing to leave out
    assert np.abs(make_dense(saved).encode("x") - theirs.encode("x")).max() < LIMIT
    path = saved / "config_sentence_transformers.json"
    path.write_text(json.dumps({"prompts": {"q": "find "}, "default_prompt_name": "q"}))
    with pytest.raises(ValueError, match="without the prompt's tokens"):
        make_dense(saved).encode("x")
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"prompt 'find ': .*without the prompt's tokens"):
        make_dense(saved).encode("x", prompt="find ")


def test_a_pooling_without_settings_is_refused(
    tiny: Path, tmp_path: Path, make_dense: Any, make_pipeline: Any
) -> None:
    saved = tmp_path / "saved"
    make_pipeline(tiny, saved)
    (saved / POOLING).unlink()
    with pytest.raises(ValueError, match=r"1_Pooling.config\.json: missing"):
        make_dense(saved).encode("x")


def test_a_default_prompt_that_is_none_of_the_prompts_is_refused(
    tiny: Path, tmp_path: Path, make_dense: Any, make_pipeline: Any
) -> None:
    saved = tmp_path / "saved"
    theirs = make_pipeline(tiny, saved)
    path = saved / "config_sentence_transformers.json"
    path.write_text(json.dumps({"prompts": {"q": "find "}, "default_prompt_name": "ask"}))
    with pytest.raises(ValueError, match=r"default_prompt_name 'ask': expected one of .*'q'"):
        make_dense(saved).encode("x")
    # as in sentence-transformers, these two are always there
    path.write_text(json.dumps({"default_prompt_name": "query"}))
    assert np.abs(make_dense(saved).encode("x") - theirs.encode("x")).max() < LIMIT
    path.write_text(json.dumps({"prompts": {"q": 1}}))
    with pytest.raises(ValueError, match=r"expected prompts by name, got {'q': 1}"):
        make_dense(saved).encode("x")
