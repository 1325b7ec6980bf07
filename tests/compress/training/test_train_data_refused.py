"""Data that nothing can be learnt from is refused with its place."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from sparse_runtime.compress.training import rows
from sparse_runtime.compress.training.data import Data, Part, load_data, load_texts, set_aside
from sparse_runtime.compress.training.run import train


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\na,x\nb,\n", "a.csv: row 3: label is empty; give every row one"),
        ("a.tsv", "text\tcategory\na\t \n", "a.tsv: row 2: category is empty"),
        ("a.csv", "text,score\na,\n", "row 2: score is empty"),
        ("a.jsonl", '{"text": "a", "label": ""}\n', "line 1: label: expected a text or a number"),
        ("a.csv", "text,label,label\na,x,y\n", "2 columns are called label; rename one"),
        ("a.csv", "text,score\na,1\nb,nan\n", "finite numbers in the column score, got nan"),
        ("a.jsonl", '{"text": "a", "score": Infinity}\n', "finite numbers .*, got inf"),
    ],
)
def test_rows_that_are_refused(name, content, message, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content.encode())
    with pytest.raises(ValueError, match=message):
        load_data(tmp_path / name)


def test_columns_that_nobody_reads_may_share_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,,\na,,\n")
    assert load_data(tmp_path / "a.csv").train.texts == ("a",)


def test_long_fields_and_a_mark_before_json_lines(tmp_path: Path, monkeypatch) -> None:
    limit = csv.field_size_limit()
    (tmp_path / "a.csv").write_text(f"text,label\n{'w ' * 100_000},x\n")
    assert len(load_data(tmp_path / "a.csv").train.texts[0]) == 200_000
    assert csv.field_size_limit() == limit
    monkeypatch.setattr(rows, "_LONGEST_FIELD", 1000)
    with pytest.raises(ValueError, match=r"a.csv: line 2: field larger than field limit"):
        load_data(tmp_path / "a.csv")
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\n')
    assert load_data(tmp_path / "a.jsonl").train.texts == ("a",)


def test_texts_alone(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("sentence1\tsentence2\tscore\na\tb\t1\na\tc\t2\n")
    assert load_texts(tmp_path) == load_texts(tmp_path / "train.tsv") == ["a", "b", "c"]
    (tmp_path / "texts.txt").write_text("x\n\ny\n")
    assert load_texts(tmp_path) == ["x", "y"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: expected train.csv, .* or texts.txt, found none"):
        load_texts(tmp_path / "empty")


def test_a_development_part_by_another_name(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,x\n")
    (tmp_path / "validation.csv").write_text("text,label\na,x\n")
    with pytest.warns(UserWarning, match=r"validation.csv: is not read; .* is called dev.csv"):
        assert load_data(tmp_path).dev is None


@pytest.mark.parametrize(
    ("count", "shares", "message"),
    [
        (4, {"test": 0.1}, r"test \(--test\) 0.1: is no row of 4"),
        (4, {"dev": 0.1}, r"dev \(--dev\) 0.1: is no row of 4"),
        (2, {"dev": 0.5, "test": 0.45}, "leave none of 2 rows to train on"),
        (9, {"dev": 0.6, "test": 0.6}, "together 1.2 of the rows; expected less than 1"),
        (9, {"dev": float("nan")}, "expected a share from 0 to below 1"),
    ],
)
def test_shares_leave_rows_in_every_part(count, shares, message) -> None:
    data = Data(Part(tuple(map(str, range(count)))))
    with pytest.raises(ValueError, match=message):
        set_aside(data, **shares)


def test_classes_are_two_or_more(checkpoints, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("text,label\nw1,x\nw2,x\n")
    with pytest.raises(ValueError, match="two classes or more, and all rows have 'x'"):
        train(checkpoints["bert"], "dense", file, tmp_path / "out")
    file.write_text("text,topic\nw1,x\nw2,y\n")
    with pytest.raises(ValueError, match=r"no classes \(its columns: text, topic\); expected a c"):
        train(checkpoints["bert"], "dense", file, tmp_path / "out")
    assert not (tmp_path / "out.training").exists()


def test_a_training_that_diverges_writes_nothing(checkpoints, labelled, tmp_path: Path) -> None:
    changes = ["*.steps=4", "*.learning_rate=1e30", "*.warmup=0", "*.clip=0"]
    with pytest.raises(ValueError, match=r"stage .*: the training has diverged \(bert.*; lower"):
        train(checkpoints["bert"], "dense", labelled, tmp_path / "out", changes=changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("task", "expected"),
    [("classification", "single_label_classification"), ("regression", "regression")],
)
def test_a_head_is_of_the_task_whatever_the_source_was(
    task, expected, checkpoints, labelled, scored_pairs, tmp_path: Path
) -> None:
    import shutil

    from transformers import AutoConfig

    from sparse_runtime.compress.training.models import load_model

    source = tmp_path / "source"
    shutil.copytree(checkpoints["bert"], source)
    config = AutoConfig.from_pretrained(source, problem_type="multi_label_classification")
    config.save_pretrained(source)
    data = labelled if task == "classification" else scored_pairs
    assert load_model(source, task, data).config.problem_type == expected
