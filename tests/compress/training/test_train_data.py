"""Files -> rows -> batches."""

from __future__ import annotations

import pytest
import torch

from sparse_runtime.compress.oneshot.calibrate import least_length
from sparse_runtime.compress.training.batches import GroupedBatches, TrainingLoader
from sparse_runtime.compress.training.data import (
    Data,
    Part,
    labelled_lines,
    load_data,
    set_aside,
)
from sparse_runtime.compress.training.encoding import IGNORED, EncodedTexts, Masking


@pytest.fixture
def tokenizer(checkpoints):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(checkpoints["bert"])


def test_csv_folder(tmp_path) -> None:
    (tmp_path / "train.csv").write_text('text,category\n"a, b",two\nc,one\n')
    (tmp_path / "test.csv").write_text("text,category\nd,two\n")
    (tmp_path / "texts.txt").write_text("x\n\ny\n")
    data = load_data(tmp_path)
    assert data.label_names == ("one", "two")
    assert data.train == Part(("a, b", "c"), labels=(1, 0))
    assert data.test == Part(("d",), labels=(1,))
    assert data.dev is None and data.plain.texts == ("x", "y")


def test_tsv_pairs_have_scores_and_no_quoting(tmp_path) -> None:
    header = "source\tscore\tsentence1\tsentence2\n"
    (tmp_path / "train.tsv").write_text(f'{header}s\t2.5\tsay "a\tb\n')
    data = load_data(tmp_path)
    assert data.train == Part(('say "a',), ("b",), (2.5,))
    assert data.label_names is None and data.plain.texts == ('say "a', "b")


def test_json_lines_and_numbered_labels(tmp_path) -> None:
    lines = ['{"text": "a", "label": 10}', '{"text": "b", "label": 9}']
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    data = load_data(tmp_path / "all.jsonl")
    # By number and not by spelling.
    assert data.label_names == ("9", "10") and data.train.labels == (1, 0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": null, "label": 1}', "line 2: text: expected a text, got None"),
        ('{"text": 3, "label": 1}', "line 2: text: expected a text, got 3"),
        ('{"text": "b", "label": null}', "line 2: label: expected a text or a number, got None"),
        ('{"text": "b", "label": [1]}', r"line 2: label: expected a text or a number, got \[1\]"),
    ],
)
def test_json_lines_hold_texts_and_labels(line, message, tmp_path) -> None:
    (tmp_path / "all.jsonl").write_text(f'{{"text": "a", "label": 0, "note": null}}\n{line}\n')
    with pytest.raises(ValueError, match=message):
        load_data(tmp_path / "all.jsonl")


def test_json_numbers_of_one_value_are_one_class(tmp_path) -> None:
    lines = [f'{{"text": "a", "label": {label}}}' for label in ("1", "1.0", "0")]
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    data = load_data(tmp_path / "all.jsonl")
    assert data.label_names == ("0", "1") and data.train.labels == (1, 1, 0)


def test_labelled_lines_split_at_line_feeds_alone(tmp_path) -> None:
    (tmp_path / "x.all").write_bytes("1 good\x85 film\n0 bad\n".encode("iso-8859-1"))
    part = labelled_lines(tmp_path / "x.all", encoding="iso-8859-1")
    assert part == Part(("good\x85 film", "bad"), labels=(1, 0))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.csv", "words,label\na,b\n", "expected a column text"),
        ("train.csv", "text,label\na\n", "row 2 has another number of columns"),
        ("train.csv", "text,label\n", "expected rows, got none"),
        ("train.jsonl", "{\n", "line 1 is not JSON"),
        ("train.tsv", "score\tsentence1\tsentence2\nx\ta\tb\n", "expected numbers"),
        ("other.csv", "text,label\na,b\n", "expected train.csv"),
    ],
)
def test_wrong_files(name, content, message, tmp_path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_data(tmp_path)


def test_data_that_is_not_there_is_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data \(--data\) .*none.csv: there is no such"):
        load_data(tmp_path / "none.csv")


def test_an_unknown_label_and_two_training_files_are_refused(tmp_path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,x\n")
    (tmp_path / "test.csv").write_text("text,label\na,y\n")
    with pytest.raises(ValueError, match="'y' does not occur"):
        load_data(tmp_path)
    (tmp_path / "train.tsv").write_text("text\tlabel\na\tx\n")
    with pytest.raises(ValueError, match="one train file"):
        load_data(tmp_path)


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        ("text,label\na,1\n", "text\nb\n", "texts with labels as in the .*got texts without"),
        ("text,label\na,1\n", "text,score\nb,2\n", "texts with labels .* got texts with scores"),
        (
            "sentence1,sentence2,label\na,b,1\n",
            "text,label\nb,1\n",
            "pairs of texts with labels as .* got texts with labels",
        ),
    ],
)
def test_parts_are_alike(train, test, expected, tmp_path) -> None:
    (tmp_path / "train.csv").write_text(train)
    (tmp_path / "test.csv").write_text(test)
    with pytest.raises(ValueError, match=f"test: expected {expected}"):
        load_data(tmp_path)


def test_plain_texts_to_train_on_and_scores_to_report(tmp_path) -> None:
    (tmp_path / "texts.txt").write_text("x\ny\n")
    (tmp_path / "test.tsv").write_text("sentence1\tsentence2\tscore\na\tb\t2\n")
    data = load_data(tmp_path)
    assert data.train == Part(("x", "y")) and data.test == Part(("a",), ("b",), (2.0,))


def test_rows_are_set_aside_once_each_and_always_the_same() -> None:
    data = Data(Part(tuple(map(str, range(100))), labels=tuple(range(100))))
    cut = set_aside(data, dev=0.1, test=0.2)
    assert cut.dev is not None and cut.test is not None
    assert (len(cut.train), len(cut.dev), len(cut.test)) == (70, 10, 20)
    rows = [*cut.train.texts, *cut.dev.texts, *cut.test.texts]
    assert sorted(rows, key=int) == list(data.train.texts)
    assert set_aside(data, dev=0.1, test=0.2) == cut
    with pytest.raises(ValueError, match="has a dev part"):
        set_aside(cut, dev=0.1)
    assert cut.fingerprint() != data.fingerprint() == Data(data.train).fingerprint()


def test_batches_hold_each_row_once_and_texts_of_like_length() -> None:
    # 70 rows in batches of 16, each in two parts; the last batch has 6 rows: one part.
    lengths = [(row * 7) % 30 + 1 for row in range(70)]
    batches = GroupedBatches(lengths, 16, 2, seed=3, grouped=True)
    first = list(batches)
    assert len(first) == len(batches) == 4 * 2 + 1
    assert [len(batch) for batch in first] == [8] * 8 + [6]
    assert sorted(row for batch in first for _, row in batch) == list(range(70))
    assert list(batches) == first
    spread = [max(lengths[r] for _, r in b) - min(lengths[r] for _, r in b) for b in first]
    assert max(spread) <= 8, "all 70 rows are sorted together"
    batches.set_epoch(1)
    second = list(batches)
    assert {epoch for batch in second for epoch, _ in batch} == {1}
    assert [[r for _, r in b] for b in second] != [[r for _, r in b] for b in first]


def test_a_loader_draws_nothing_from_the_global_generator(tokenizer) -> None:
    texts = EncodedTexts(Part(("w1 w2", "w3")), tokenizer, None)
    loader = TrainingLoader(texts, GroupedBatches(texts.lengths, 1, 1, 0, grouped=False))
    before = torch.random.get_rng_state()
    assert len(list(loader)) == 2
    assert torch.equal(before, torch.random.get_rng_state())


def test_encoding_pads_and_cuts(tokenizer) -> None:
    part = Part(("w1 w2 w3 w4", "w5"), labels=(1, 0))
    texts = EncodedTexts(part, tokenizer, max_length=5)
    batch = texts.batch([1, 0], epoch=0)
    assert batch.inputs["input_ids"].shape == (2, 8)  # rounded up to 8 tokens
    assert batch.inputs["attention_mask"].sum(1).tolist() == [3, 5]
    assert batch.labels is not None and batch.labels.tolist() == [0, 1]
    assert batch.indices.tolist() == [1, 0]
    pairs = EncodedTexts(Part(("w1",), ("w2 w3",)), tokenizer, None).batch([0], 0)
    # Both texts in one row, the second of another type.
    assert pairs.inputs["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1, 0, 0]]


@pytest.mark.parametrize("seconds", [None, ("w5 w6 w7",)])
def test_the_least_length_cuts(seconds, tokenizer) -> None:
    part = Part(("w1 w2 w3 w4",), seconds)
    least = least_length(tokenizer, pairs=seconds is not None)
    assert EncodedTexts(part, tokenizer, least).lengths == [least]


def test_no_batch_is_longer_than_the_model_reaches(tokenizer) -> None:
    tokenizer.model_max_length = 12
    texts = EncodedTexts(Part(("w1 " * 20, "w2")), tokenizer, max_length=None)
    for part in (texts, texts.first(2)):
        assert part.batch([0, 1], epoch=0).inputs["input_ids"].shape == (2, 12)
        assert part.batch([1], epoch=0).inputs["input_ids"].shape == (1, 8)
    ((inputs, _),) = texts.in_order(2)
    assert inputs["attention_mask"].sum(1).tolist() == [12, 3]


def test_masks_depend_on_the_row_and_the_epoch_alone() -> None:
    masking = Masking(0.4, mask=4, vocabulary=1000, special=frozenset({0, 2, 3}), seed=5)
    tokens = torch.cat([torch.tensor([2]), torch.arange(10, 4010), torch.tensor([3])])
    hidden, labels = masking.apply(tokens, epoch=1, index=7)
    again = masking.apply(tokens, epoch=1, index=7)
    assert torch.equal(hidden, again[0]) and torch.equal(labels, again[1])
    assert not torch.equal(labels, masking.apply(tokens, 2, 7)[1])
    assert not torch.equal(labels, masking.apply(tokens, 1, 8)[1])
    asked = labels != IGNORED
    assert torch.equal(labels[asked], tokens[asked])
    assert torch.equal(hidden[~asked], tokens[~asked])
    assert not asked[0] and not asked[-1]
    assert float(asked.float().mean()) == pytest.approx(0.4, abs=0.04)
    assert float((hidden[asked] == 4).float().mean()) == pytest.approx(0.8, abs=0.04)
    kept = float((hidden[asked] == tokens[asked]).float().mean())
    assert kept == pytest.approx(0.1, abs=0.03)
