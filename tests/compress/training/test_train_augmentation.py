"""Copies of texts with other words: which words, which texts, and which stages may have them."""

from __future__ import annotations

import pytest
import torch

from sparse_runtime.compress.training.augmentation import (
    Augmentation,
    Copies,
    nearest,
    whole_words,
)
from sparse_runtime.compress.training.batches import GroupedBatches
from sparse_runtime.compress.training.data import Data, Part
from sparse_runtime.compress.training.encoding import EncodedTexts
from sparse_runtime.compress.training.reading import parse
from sparse_runtime.compress.training.recipe import Stage
from sparse_runtime.compress.training.run import train
from sparse_runtime.compress.training.task_data import training_texts

TAUGHT = {"teacher": "model", "distillation": {"task": 0.0, "logits": 1.0}}
TEXTS = Part(("w0 w1 w2 w3", "w4 w5", "w6 w7 w8 w9 w10 w11"))


@pytest.fixture
def tokenizer(checkpoints):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(checkpoints["bert"])


def stage_of(augment: dict[str, float]) -> Stage:
    stage = {"name": "prune", "task": "embedding", "steps": 1, "teacher": "model"}
    stage |= {"distillation": {"embedding": 1.0}}
    (made,) = parse({"name": "own", "stages": [{**stage, "augment": augment}]}).stages
    return made


def texts_of(augment: dict[str, float], tokenizer, seed: int = 0, part: Part = TEXTS):
    torch.manual_seed(0)
    words = torch.randn(len(tokenizer), 8)
    return training_texts(stage_of(augment), Data(part), tokenizer, seed, words)


def test_neighbours_are_the_nearest_words_by_angle() -> None:
    angles = torch.deg2rad(torch.tensor([0.0, 10.0, 25.0, 90.0, 12.0]))
    lengths = torch.tensor([1.0, 5.0, 0.1, 2.0, 1.0])  # no part of a cosine
    embeddings = torch.stack((angles.cos(), angles.sin()), dim=1) * lengths.unsqueeze(1)
    found = nearest(embeddings, torch.tensor([0, 1, 2, 3]), 2)
    # Token 4 is no word: it is nobody's neighbour, and stands for itself.
    assert found.tolist() == [[1, 2], [0, 2], [1, 0], [2, 1], [4, 4]]


def test_more_neighbours_than_words_are_refused() -> None:
    with pytest.raises(ValueError, match=r"augment.neighbours: expected fewer .* \(3\), got 3"):
        nearest(torch.randn(5, 2), torch.tensor([0, 1, 4]), 3)


def test_pieces_and_special_tokens_are_no_whole_words(tmp_path) -> None:
    import transformers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##do", "it", "."]
    tokenizer = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    single, pair = Part(("it undo .",)), Part(("undo it",), ("it",))
    # [CLS] it un ##do . [SEP]; [CLS] un ##do it [SEP] it [SEP]: two words, not pieces of one.
    assert whole_words(single, tokenizer, None)[0].tolist() == [
        False, True, False, False, True, False
    ]  # fmt: skip
    assert whole_words(pair, tokenizer, None)[0].tolist() == [
        False, False, False, True, False, True, False
    ]  # fmt: skip
    assert len(whole_words(single, tokenizer, 4)[0]) == 4
    unknown = whole_words(Part(("it never .",)), tokenizer, None)[0]
    assert unknown.tolist() == [False, True, False, True, False]


def test_a_copy_replaces_words_by_their_neighbours_and_nothing_else(tokenizer) -> None:
    texts = texts_of({"replace": 1.0, "neighbours": 3}, tokenizer)
    assert texts.copies is not None
    table = texts.copies.table
    batch = texts.batch([0, 1, 2, 3, 4, 5], epoch=0)
    originals, copies = batch.inputs["input_ids"].chunk(2)
    special = torch.tensor(tokenizer.all_special_ids)
    for text, copy in zip(originals.flatten().tolist(), copies.flatten().tolist(), strict=True):
        if text in special:
            assert copy == text
        else:
            assert copy != text and copy in table[text]
    # A copy is one of its text, with the same mask.
    assert batch.indices.tolist() == [0, 1, 2, 0, 1, 2]
    mask, other = batch.inputs["attention_mask"].chunk(2)
    assert torch.equal(mask, other)


def test_share_of_the_words_that_are_replaced(tokenizer) -> None:
    part = Part(tuple(" ".join(f"w{(i + j) % 40}" for j in range(20)) for i in range(40)))
    texts = texts_of({"copies": 5, "replace": 0.25, "neighbours": 2}, tokenizer, part=part)
    ids = texts.batch(range(240), epoch=0).inputs["input_ids"].view(6, 40, -1)
    changed = (ids[:1] != ids[1:]).sum() / (5 * 40 * 20)
    assert float(changed) == pytest.approx(0.25, abs=0.03)
    unchanged = texts_of({"replace": 0.0}, tokenizer).batch([0, 3], epoch=0).inputs["input_ids"]
    assert torch.equal(unchanged[0], unchanged[1])


def test_a_joined_copy_is_half_of_two_texts(tokenizer) -> None:
    texts = texts_of({"replace": 0.0, "join": 1.0}, tokenizer)
    rows = [row.tolist() for row in texts.columns["input_ids"]]
    halves = {
        (i, tuple(first[: len(first) // 2] + second[len(second) // 2 :]))
        for i, first in enumerate(rows)
        for second in rows
    }
    seen = set()
    for epoch in range(20):
        for number in (3, 4, 5):
            (ids,) = texts.batch([number], epoch).inputs["input_ids"]
            seen.add((number - 3, tuple(i for i in ids.tolist() if i != tokenizer.pad_token_id)))
    assert seen == halves


def test_copies_depend_on_seed_epoch_and_number_alone(tokenizer) -> None:
    settings = {"copies": 2, "replace": 0.5, "join": 0.5, "neighbours": 4}

    def ids(seed: int, epoch: int, numbers: list[int]) -> list[list[int]]:
        batch = texts_of(settings, tokenizer, seed).batch(numbers, epoch).inputs
        return [
            row[mask.bool()].tolist()
            for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]

    whole = ids(0, 1, list(range(9)))
    assert ids(0, 1, [8, 3, 5]) == [whole[8], whole[3], whole[5]]
    assert ids(0, 1, [0, 1, 2]) == ids(7, 4, [0, 1, 2])  # the texts themselves
    assert ids(0, 2, list(range(3, 9))) != whole[3:] != ids(1, 1, list(range(3, 9)))
    assert whole[3:6] != whole[6:9]


def test_an_epoch_holds_every_text_and_its_copies_once(tokenizer) -> None:
    texts = texts_of({"copies": 2}, tokenizer)
    assert texts.epoch_lengths == texts.lengths * 3 and len(texts) == 3
    batches = GroupedBatches(texts.epoch_lengths, 4, 1, 0, grouped=True)
    assert sorted(row for batch in batches for _, row in batch) == list(range(9))
    # What is read in order, once, is the texts themselves.
    assert sorted(int(i) for _, rows in texts.in_order(2) for i in rows) == [0, 1, 2]
    assert texts.first(2).copies is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("copies", 0),
        ("replace", -0.1),
        ("replace", 1.5),
        ("replace", float("nan")),
        ("neighbours", 0),
        ("join", 1.1),
    ],
)
def test_a_number_out_of_its_range_is_refused(key, value) -> None:
    with pytest.raises(ValueError, match=f"augment.{key}: expected .*, got {value}"):
        stage_of({key: value})


def test_only_a_teacher_may_answer_copies() -> None:
    def stage(**more) -> None:
        made = {"name": "prune", "task": "classification", "steps": 1, "augment": {}, **more}
        parse({"name": "own", "stages": [made]})

    stage(**TAUGHT)
    with pytest.raises(ValueError, match="stage 'prune', augment: only a teacher"):
        stage()
    with pytest.raises(ValueError, match="stage 'prune', augment: only a teacher"):
        stage(**{**TAUGHT, "task": "masked_lm"})
    with pytest.raises(ValueError, match=r"no labels of their own; expected distillation.task 0"):
        stage(teacher="model", distillation={"logits": 1.0})
    with pytest.raises(ValueError, match="unknown key 'copy'; did you mean 'copies'"):
        stage(**{**TAUGHT, "augment": {"copy": 1}})


def test_pairs_are_copied_but_not_joined(tokenizer) -> None:
    pairs = Data(Part(("w1 w2", "w3"), ("w4", "w5 w6")))

    def texts(augment: dict[str, float]) -> EncodedTexts:
        stage = {"name": "prune", "task": "classification", "steps": 1, **TAUGHT}
        (made,) = parse({"name": "own", "stages": [{**stage, "augment": augment}]}).stages
        return training_texts(made, pairs, tokenizer, 0, torch.randn(len(tokenizer), 4))

    inputs = texts({"replace": 1.0, "neighbours": 1}).batch([0, 2], epoch=0).inputs
    assert torch.equal(*inputs["token_type_ids"])
    assert int((inputs["input_ids"][0] != inputs["input_ids"][1]).sum()) == 3
    with pytest.raises(ValueError, match=r"augment\.join: expected texts, got pairs"):
        texts({"join": 0.5, "neighbours": 1})


def test_a_tokenizer_that_does_not_tell_words_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match=r"augment: needs a fast tokenizer"):
        whole_words(TEXTS, Slow(), None)  # type: ignore[arg-type]


def test_a_recipe_trains_on_copies(checkpoints, labelled, tmp_path) -> None:
    augment = {"copies": 2, "replace": 0.5, "neighbours": 5, "join": 0.5}
    stages = [
        {"name": "teacher", "task": "classification", "steps": 2},
        {
            "name": "prune",
            "task": "classification",
            "epochs": 1,
            "teacher": "teacher",
            "distillation": {"task": 0.0, "logits": 1.0},
            "augment": augment,
            "batch_size": 27,
        },
    ]
    report = train(
        checkpoints["bert"], {"name": "own", "stages": stages}, labelled, tmp_path / "out", seed=1
    )
    assert report.stages[-1].steps == 10  # 90 texts and 180 copies
    assert report.metrics["accuracy"] >= 0


def test_copies_hold_every_column(tokenizer) -> None:
    columns = EncodedTexts(TEXTS, tokenizer, None).columns
    whole = whole_words(TEXTS, tokenizer, None)
    table = nearest(torch.randn(len(tokenizer), 4), torch.arange(5, 15), 2)
    copies = Copies(Augmentation(join=1.0, neighbours=2), table, whole, 0)
    for number in range(3, 12):
        made = copies.make(columns, number, 0)
        assert made.keys() == columns.keys()
        assert len({len(column) for column in made.values()}) == 1
