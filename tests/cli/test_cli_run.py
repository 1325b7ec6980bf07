"""run: every head's results, as text and as JSON lines, from every kind of input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from typer.testing import Result

import sparse_runtime as sr

Command = Callable[..., Result]
Make = Callable[[str], Path]


def lines(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_embeddings(command: Command, packed: Make) -> None:
    found = lines(command("run", packed("base"), "a cat", "dog", "--json"))
    expected = sr.SparseModel.from_pretrained(packed("base")).encode(["a cat", "dog"])
    assert [each["text"] for each in found] == ["a cat", "dog"]
    vectors = torch.tensor([each["embedding"] for each in found])
    torch.testing.assert_close(vectors, torch.from_numpy(expected), rtol=0, atol=1e-5)
    text = command("run", packed("base"), "a cat", "dog").stdout.splitlines()
    assert "of 32, cosine with the first 1.0000  a cat" in text[0]
    cosine = torch.cosine_similarity(vectors[0], vectors[1], dim=0)
    assert f"cosine with the first {cosine:.4f}  dog" in text[1]


def test_texts_come_from_a_file_or_stdin_in_their_order(
    command: Command, packed: Make, tmp_path: Path
) -> None:
    # Long and short texts, an empty one, more than one chunk: batches are sorted, results not.
    texts = ["a b c d e f g", "", "é 猫", *(letter * 3 for letter in "abcdefghijklmnopqrs")]
    file = tmp_path / "texts.txt"
    file.write_bytes("\r\n".join(texts).encode("utf-8-sig"))
    for key in ("base", "labels"):
        arguments = ["run", packed(key), "--json", "--batch-size", "2"]
        from_file = lines(command(*arguments, "--file", file))
        from_stdin = lines(command(*arguments, "-", stdin="\n".join(texts).encode()))
        assert [each["text"] for each in from_file] == texts
        assert [each["text"] for each in from_stdin] == texts


def test_pairs_of_an_embedding_model_give_a_cosine(
    command: Command, packed: Make, tmp_path: Path
) -> None:
    file = tmp_path / "pairs.tsv"
    file.write_text("sentence1\tsentence2\na\ta\na\tb c\n", encoding="utf-8")
    found = lines(command("run", packed("base"), "--pairs", file, "--json"))
    assert found[0] == {"sentence1": "a", "sentence2": "a", "cosine": pytest.approx(1.0)}
    assert found[1]["cosine"] < 0.999


def test_sequence_classification(
    command: Command, packed: Make, source: Make, tmp_path: Path
) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(source("labels"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(source("labels"))
    [found] = lines(command("run", packed("labels"), "a cat", "--json"))
    with torch.no_grad():
        scores = model.eval()(**tokenizer("a cat", return_tensors="pt")).logits[0].softmax(0)
    assert found["scores"] == pytest.approx(
        dict(zip(("low", "mid", "high"), scores.tolist(), strict=True)), abs=1e-5
    )
    assert found["label"] == ("low", "mid", "high")[int(scores.argmax())]
    text = command("run", packed("labels"), "a cat").stdout
    assert text == f"{found['label']}  {found['score']:.4f}  a cat\n"
    # Two texts are read together.
    file = tmp_path / "pairs.tsv"
    file.write_text("sentence1\tsentence2\na\tb\n", encoding="utf-8")
    [pair] = lines(command("run", packed("labels"), "--pairs", file, "--json"))
    with torch.no_grad():
        scores = model(**tokenizer("a", "b", return_tensors="pt")).logits[0].softmax(0)
    assert pair["score"] == pytest.approx(float(scores.max()), abs=1e-5)
    assert pair["sentence2"] == "b"


def test_regression_and_multi_label(command: Command, packed: Make, source: Make) -> None:
    [found] = lines(command("run", packed("score"), "a cat", "--json"))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(source("score"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(source("score"))
    with torch.no_grad():
        expected = float(model.eval()(**tokenizer("a cat", return_tensors="pt")).logits)
    assert found == {"text": "a cat", "score": pytest.approx(expected, abs=1e-5)}
    [found] = lines(command("run", packed("scores"), "a cat", "--json"))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(source("scores"))
    pipe = transformers.pipeline("text-classification", model, tokenizer=tokenizer, top_k=None)
    expected = {each["label"]: each["score"] for each in pipe("a cat")[0]}
    assert found == {"text": "a cat", "scores": pytest.approx(expected, abs=1e-5)}
    shown = ", ".join(f"{label} {score:.4f}" for label, score in found["scores"].items())
    assert command("run", packed("scores"), "a cat").stdout == f"{shown}  a cat\n"
    [found] = lines(command("run", packed("multi"), "a cat", "--json"))
    assert found["labels"] == [name for name, score in found["scores"].items() if score > 0.5]
    assert list(found["scores"]) == ["low", "mid", "high"]


def test_token_classification_gives_offsets_without_special_tokens(
    command: Command, packed: Make
) -> None:
    [found] = lines(command("run", packed("tokens"), "ab c", "--json"))
    assert [token["token"] for token in found["tokens"]] == ["a", "##b", "c"]
    assert [(token["start"], token["end"]) for token in found["tokens"]] == [(0, 1), (1, 2), (3, 4)]
    assert {token["label"] for token in found["tokens"]} <= {"low", "mid", "high"}
    text = command("run", packed("tokens"), "ab c").stdout.splitlines()
    assert text[0] == "ab c"
    assert text[1].startswith("  a  ")


def test_masked_words(command: Command, packed: Make) -> None:
    [found] = lines(command("run", packed("words"), "a [MASK] c [MASK]", "--json", "--top-k", "3"))
    assert len(found["masks"]) == 2
    for mask in found["masks"]:
        scores = [word["score"] for word in mask]
        assert len(scores) == 3
        assert scores == sorted(scores, reverse=True)
    assert len(command("run", packed("words"), "a [MASK]").stdout.splitlines()[1].split(", ")) == 5
    none = command("run", packed("words"), "a b")
    assert none.exit_code == 1
    assert none.stderr == "error: 'a b': expected the mask token [MASK] in the text\n"


def test_answers_lie_in_the_context(command: Command, packed: Make) -> None:
    arguments = ["run", packed("answers"), "--question", "what is b", "--json", "--context"]
    for context in ("a b c", "a b c " * 40):
        [found] = lines(command(*arguments, context))
        assert found["answer"] == context[found["start"] : found["end"]] != ""
        assert 0 < found["score"] <= 1
    for arguments, message in (
        (["a text"], "expected --question with --context"),
        (["--question", "a", "--context", ""], "context: expected a text with the answer"),
        (["--question", "a " * 50, "--context", "b"], "leave no room for the context"),
    ):
        result = command("run", packed("answers"), *arguments)
        assert result.exit_code == 1
        assert message in result.stderr


def test_max_length_of_a_head(command: Command, packed: Make) -> None:
    [found] = lines(command("run", packed("tokens"), "a b c d", "--max-length", "4", "--json"))
    assert [token["token"] for token in found["tokens"]] == ["a", "b"]
    for length in ("2", "41"):  # a text has two special tokens
        result = command("run", packed("tokens"), "a", "--max-length", length)
        assert result.exit_code == 1
        assert f"max_length: expected 3 to 40 for this model, got {length}" in result.stderr
