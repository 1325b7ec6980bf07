"""Tiny checkpoints and a little text that can be learnt: the label is which words occur."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sparse_runtime.compress.training.data import Data, Part

WORDS = [f"w{i}" for i in range(40)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SIZES = {"vocab_size": len(WORDS) + len(SPECIAL), "max_position_embeddings": 64}
BERT = {
    **SIZES,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
DISTILBERT = {**SIZES, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}


@pytest.fixture(autouse=True)
def _extra_is_installed() -> None:
    """What `sparse-runtime[train]` brings."""
    pytest.importorskip("accelerate")
    pytest.importorskip("yaml")


def _config(family: str):
    import transformers

    if family == "distilbert":
        return transformers.DistilBertConfig(**DISTILBERT)
    if family == "roberta":
        return transformers.RobertaConfig(**{**BERT, "max_position_embeddings": 66}, pad_token_id=0)
    return transformers.BertConfig(**BERT)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Family -> directory of an encoder without a head."""
    import transformers

    made = {}
    for family in ("bert", "distilbert", "roberta"):
        folder = tmp_path_factory.mktemp(family)
        torch.manual_seed(0)
        transformers.AutoModel.from_config(_config(family)).save_pretrained(folder)
        vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
        tokenizer = transformers.BertTokenizer(vocab=vocabulary, model_max_length=64)
        if family != "bert":
            tokenizer.model_input_names = ["input_ids", "attention_mask"]
        tokenizer.save_pretrained(folder)
        made[family] = folder
    return made


@pytest.fixture(scope="session")
def sentence_encoder(checkpoints, tmp_path_factory) -> Path:
    """A BERT with the settings that sentence-transformers keeps."""
    import shutil

    folder = tmp_path_factory.mktemp("sentence") / "model"
    shutil.copytree(checkpoints["bert"], folder)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {
            "idx": 1,
            "name": "1",
            "path": "1_Pooling",
            "type": "sentence_transformers.models.Pooling",
        },
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def sentence(generator: random.Random, label: int) -> str:
    """3 to 14 words, one of which the label names."""
    words = generator.choices(WORDS[8:], k=generator.randint(2, 13))
    words.insert(generator.randrange(len(words) + 1), generator.choice(WORDS[label * 2 :][:2]))
    return " ".join(words)


@pytest.fixture(scope="session")
def labelled() -> Data:
    """3 classes, 90 training and 30 test rows."""
    generator = random.Random(0)
    labels = [i % 3 for i in range(120)]
    texts = [sentence(generator, label) for label in labels]
    return Data(
        Part(tuple(texts[:90]), labels=tuple(labels[:90])),
        test=Part(tuple(texts[90:]), labels=tuple(labels[90:])),
        label_names=("a", "b", "c"),
    )


@pytest.fixture(scope="session")
def scored_pairs() -> Data:
    """Plain texts to train on, and pairs to test on whose score is how many words they share."""
    generator = random.Random(1)
    firsts = [sentence(generator, i % 4) for i in range(60)]
    seconds = [" ".join(text.split()[: 1 + i % 5]) for i, text in enumerate(firsts)]
    scores = [
        len({*a.split()} & {*b.split()}) / len({*a.split()})
        for a, b in zip(firsts, seconds, strict=True)
    ]
    test = Part(tuple(firsts[40:]), tuple(seconds[40:]), tuple(scores[40:]))
    return Data(Part(tuple(firsts[:40])), test=test)


@pytest.fixture(scope="session")
def chosen_by(labelled: Data) -> Data:
    """With a development part."""
    return replace(labelled, dev=labelled.test)


@pytest.fixture(scope="session")
def tuned(checkpoints: Any, chosen_by: Data, tmp_path_factory: Any) -> Path:
    """A model with a head: the teacher of each recipe here."""
    from sparse_runtime.compress.training.run import train

    out = tmp_path_factory.mktemp("tuned") / "out"
    train(checkpoints["bert"], "dense", chosen_by, out, changes=["*.steps=3"])
    return out


@pytest.fixture
def search(checkpoints: Any, chosen_by: Data, tuned: Path, tmp_path: Path) -> Callable[..., Any]:
    """Trains with a search, by default of nxmiformer with its teacher given."""
    from sparse_runtime.compress.training.run import train

    def run(wanted: Any, recipe: Any = "nxmiformer", **options: Any) -> Any:
        arguments: dict[str, Any] = {
            "given": {"teacher": tuned},
            "changes": ("*.steps=3", "*.batch_size=15"),
            **options,
        }
        data = arguments.pop("data", chosen_by)
        return train(
            checkpoints["bert"], recipe, data, tmp_path / "out", search=wanted, **arguments
        )

    return run
