"""What recipes may say, and how they refuse what they may not."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from sparse_runtime.compress.training.reading import load_recipe, parse, recipe_names
from sparse_runtime.compress.training.recipe import Recipe
from sparse_runtime.compress.training.report import StageReport, TrainReport
from sparse_runtime.compress.training.sections import Schedule

STAGE = {"name": "prune", "task": "classification", "epochs": 2}


def recipe(**stage: object) -> Recipe:
    return parse({"name": "test", "stages": [{**STAGE, **stage}]})


def test_defaults_and_numbers() -> None:
    (stage,) = recipe(epochs=3).stages
    # A whole number is a number.
    assert stage.epochs == 3.0 and isinstance(stage.epochs, float)
    assert stage.pruning is None and stage.batch_size == 32


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            {"learning_rat": 1},
            r"stage .prune.: unknown key 'learning_rat'; did you mean 'learning_r",
        ),
        ({"task": "classificaton"}, "did you mean 'classification'"),
        ({"epochs": None}, "either epochs or steps"),
        ({"steps": 3}, "either epochs or steps"),
        ({"batch_size": 2.5}, "batch_size: expected a whole number"),
        ({"bf16": 1}, "bf16: expected true or false"),
        ({"batch_size": 32, "accumulation": 3}, "multiple of accumulation"),
        ({"teacher": "later", "distillation": {}}, "'later' is no earlier stage"),
        ({"teacher": "model"}, "teacher: nothing asks 'model' without a distillation section"),
        ({"distillation": {"logits": 1}}, "needs a teacher"),
        ({"task": "embedding"}, "give a teacher"),
        ({"name": "model"}, "name a folder"),
        ({"name": "a.b"}, "up to 64 letters"),
        ({"name": "a b"}, "up to 64 letters"),
        ({"name": "a" * 65}, "up to 64 letters"),
        ({"pruning": {"method": "magnitud"}}, "did you mean 'magnitude'"),
        ({"pruning": {"method": "magnitude", "regow": True}}, "did you mean 'regrow'"),
        ({"pruning": {"method": "lock", "regrow": True}}, "unknown key 'regrow'"),
        ({"pruning": {"method": "magnitude", "schedule": {"begin": 0.9}}}, "begin <= end"),
        ({"pruning": {"method": "magnitude", "per": {"query": 4}}}, "expected a text"),
        ({"quantization": {"start": 0.9, "freeze": 0.1}}, "start <= freeze"),
        ({"freeze": "embeddings"}, "expected a list"),
    ],
)
def test_refusals(stage, message) -> None:
    with pytest.raises(ValueError, match=message):
        recipe(**stage)


def test_stages_refer_to_earlier_ones() -> None:
    taught = {"start": "model", "teacher": "a", "distillation": {"logits": 1}}
    two = [{**STAGE, "name": "a"}, {**STAGE, "name": "b", **taught}]
    made = parse({"name": "test", "stages": two})
    assert made.start_of(made.stages[0]) == "model"
    assert made.start_of(made.stages[1]) == "model"
    made = parse({"name": "test", "stages": [two[0], {**STAGE, "name": "b"}]})
    assert made.start_of(made.stages[1]) == "a"
    with pytest.raises(ValueError, match="two stages are called 'a'"):
        parse({"name": "test", "stages": [two[0], two[0]]})


def test_changes() -> None:
    data = {"name": "test", "stages": [{**STAGE}, {**STAGE, "name": "quantize"}]}
    made = load_recipe(
        data,
        (
            "prune.steps=5",
            "prune.pruning.method=magnitude",
            "prune.pruning.structure=2:4",
            "prune.pruning.regrow=false",
            "*.learning_rate=1e-3",
            "quantize.freeze=[embeddings]",
        ),
    )
    prune, quantize = made.stages
    assert (prune.steps, prune.epochs, quantize.epochs) == (5, None, 2)
    assert prune.pruning is not None and prune.pruning.options.regrow is False
    # YAML 1.1 reads 2:4 as 124 and 1e-3 as a text.
    assert prune.pruning.structure == "2:4"
    assert prune.learning_rate == quantize.learning_rate == 1e-3
    assert quantize.freeze == ("embeddings",)
    assert data["stages"][0] == STAGE, "the caller's mapping was changed"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("epochs=1", "STAGE.KEY=VALUE"),
        ("prune.epochs", "STAGE.KEY=VALUE"),
        ("other.epochs=1", "no stage 'other'"),
        ("prune.epochs.x=1", "holds a value"),
        ("prune.epoch=1", "did you mean 'epochs'"),
        ("prune.epochs=[", r"--set 'prune.epochs=\[': not YAML"),
        ("prune.freeze={a: 1, a: 2}", "--set .*: key 'a' stands twice in the section of line 1"),
    ],
)
def test_wrong_changes(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe({"name": "test", "stages": [{**STAGE}]}, [change])


def test_a_recipe_survives_its_own_words() -> None:
    made = load_recipe("sparsebert")
    again = parse(made.to_dict())
    assert again == made


def test_a_file(tmp_path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("name: own\nstages:\n  - {name: a, task: regression, steps: 1}\n")
    assert load_recipe(path).stages[0].task == "regression"
    with pytest.raises(FileNotFoundError):
        load_recipe(tmp_path / "none.yaml")


def test_schedules_in_steps() -> None:
    from sparse_runtime.compress.training.pruners.base import cubic

    steps = cubic(Schedule(begin=0.1, end=0.5, stop=1.0, updates=9), 0.9, 100)
    # The last update comes before the last step, or it would never be made.
    assert (steps.begin, steps.end, steps.last, steps.every) == (10, 50, 99, 10)
    assert steps.is_update(99) and not steps.is_update(98)
    assert sum(map(steps.is_update, range(100))) == 1 + 9  # where it begins, and 9 more
    # More updates than steps: one at every step.
    assert cubic(Schedule(begin=0, end=0.5, stop=0.8, updates=100), 0.9, 50).every == 1
    # Few more steps than updates: not twice as many updates.
    close = cubic(Schedule(begin=0, end=0.5, stop=1.0, updates=100), 0.9, 200)
    assert sum(map(close.is_update, range(200))) == 101
    assert cubic(Schedule(begin=0, end=0, stop=0), 0.5, 7).value(0) == 0.5


def test_the_documentation_lists_every_recipe(checkout_root) -> None:
    text = (checkout_root / "docs" / "compress" / "training.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE)
    assert sorted(rows) == recipe_names()


def test_the_report_shows_what_began_random() -> None:
    from rich.console import Console

    def shown(*new: str) -> str:
        stage = StageReport("tune", "classification", 1, 1.0, {}, {}, 0.0, new_parameters=new)
        console = Console(width=200, record=True, file=io.StringIO())
        console.print(TrainReport("own", Path("out"), 0, (stage,), 1.0))
        return console.export_text()

    text = shown("classifier.weight")
    assert "began random" in text and "classifier.weight" in text
    assert "began random" not in shown()


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    with pytest.raises(
        FileNotFoundError, match=r"recipe \(--recipe\) .*mine.yaml.* one of .*int8-qat"
    ):
        load_recipe(path)
    path.write_bytes(b"name: \xe9\n")
    with pytest.raises(ValueError, match=r"recipe \(--recipe\) .*mine.yaml: not UTF-8 .*convert"):
        load_recipe(path)
    path.write_text("name: mine\nstages: [\n")
    with pytest.raises(ValueError, match=r"mine.yaml: not YAML: "):
        load_recipe(path)
    path.write_text("name: mine\nstages: []\nname: yours\n")
    with pytest.raises(ValueError, match=r"mine.yaml: key 'name' stands twice in the section of "):
        load_recipe(path)
    path.write_text("name: mine\nstages:\n- {name: prune, task: classification, epoch: 2}\n")
    with pytest.raises(ValueError, match=r"mine.yaml: recipe: stage .prune.: unknown key 'epoch'"):
        load_recipe(path)
