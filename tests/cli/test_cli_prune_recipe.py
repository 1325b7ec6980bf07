"""`sparse-runtime prune --recipe` from the files to the report."""

from __future__ import annotations

import json
import random
import shlex

import pytest
from typer.testing import CliRunner

pytest.importorskip("accelerate")

from sparse_runtime.cli.app import app

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import transformers

    folder = tmp_path_factory.mktemp("prune")
    config = transformers.BertConfig(
        vocab_size=8,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    transformers.BertModel(config).save_pretrained(folder / "model")
    tokenizer = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
    tokenizer.save_pretrained(folder / "model")
    rows = [f"{word} film,{word}" for word in ("good", "bad")] * 10
    (folder / "all.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return folder


def command(folder, out, *more):
    parts = ["prune", "--model", folder / "model", "--data", folder / "all.csv", "--out", out]
    return CliRunner().invoke(app, [str(part) for part in (*parts, "--quiet", *more)])


def test_a_recipe_from_the_command_line(folder, tmp_path) -> None:
    done = command(
        folder,
        tmp_path / "out",
        *("--recipe", "gradual-magnitude", "--set", "prune.steps=2", "--test", "0.2", "--json"),
        *("--set", "prune.pruning.structure=2:4"),
    )
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["recipe"] == "gradual-magnitude"
    assert "accuracy" in report["metrics"]
    (stage,) = report["stages"]
    assert set(stage["layers"].values()) == {0.5}
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_formats_that_are_searched_for(folder, tmp_path) -> None:
    # Layers are solved for inputs of more than two kinds.
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS[5:], k=3 + i % 9)) for i in range(60)]
    rows = [f"{text},{'good' if 'good' in text else 'bad'}" for text in texts]
    (tmp_path / "all.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    short = ("--recipe", "nxmiformer", "--set", "*.steps=2", "--dev", "0.2", "--top", "1")
    short = (*short, "--data", tmp_path / "all.csv")
    done = command(
        folder, tmp_path / "out", *short, *("--search", "0.15", "--evaluations", "2", "--json")
    )
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)["search"]
    assert (found["scored"], len(found["trained"]), found["chosen"]) == (2, 1, 0)
    assert found["trained"][0]["cost"] <= 0.15
    # Measured here, for each layer; shown as a table.
    target = ("--search", "latency=1x", "--formats", "dense int8,2:4 int8", "--shape", "1x8")
    done = command(folder, tmp_path / "fast", *short, *target)
    assert done.exit_code == 0, done.stderr
    assert "formats under latency=1x: 16 candidates" in " ".join(done.stdout.split())
    assert (tmp_path / "fast" / "search.json").is_file()


def test_json_stands_alone_on_stdout(folder, tmp_path) -> None:
    # Without --quiet, where transformers' own bar would write its log to stdout.
    parts = ["--model", folder / "model", "--data", folder / "all.csv", "--out", tmp_path / "out"]
    more = ("--recipe", "dense", "--set", "teacher.steps=2", "--json")
    done = CliRunner().invoke(app, [str(part) for part in ("prune", *parts, *more)])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["recipe"] == "dense"
    assert "steps" not in done.stderr and "it/s" not in done.stderr  # no terminal, no bar


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--recipe", "sparsebrt"), "did you mean 'sparsebert'"),
        (("--recipe", "dense", "--set", "prune.steps=2"), "no stage 'prune'"),
        (("--recipe", "dense", "--pooling", "max"), "expected one of auto, mean, cls"),
        (("--recipe", "dense", "--device", "cuda:99"), "device 'cuda:99': PyTorch sees"),
        (("--recipe", "dense", "--device", "gpu"), "device 'gpu': expected cpu, cuda or cuda:N"),
        (("--recipe", "dense", "--stage", "teacher=nodir"), "nodir: no such directory"),
        (("--recipe", "dense", "--stage", "teacher"), "expected STAGE=DIRECTORY"),
        (("--recipe", "dense", "--paper-out", "paper"), "states no layout of a paper; add"),
        (("--recipe", "dense", "--search", "0.2"), "has no stage that prunes by a pattern"),
        (("--recipe", "nxmiformer", "--search", "2"), "expected a share of the size in FP32"),
        (("--recipe", "nxmiformer", "--search", "0.2"), "needs a development part to choose by"),
        (
            ("--recipe", "nxmiformer", "--search", "0.2", "--formats", ","),
            "--formats ',': expected one or more",
        ),
    ],
)
def test_errors_are_one_line(more, message, folder, tmp_path) -> None:
    done = command(folder, tmp_path / "out", *more)
    assert done.exit_code == 1
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_papers_own_files_open_as_the_output_says(folder, tmp_path) -> None:
    parts = ("--recipe", "movement", "--set", "*.steps=2", "--paper-out", tmp_path / "paper")
    more = ("--set", "prune.pruning.structure=unstructured@0.75")
    done = command(folder, tmp_path / "out", *parts, *more)
    assert done.exit_code == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("sparse-runtime ")]
    assert [line.split()[1] for line in lines] == ["inspect", "convert"]
    for line in lines:
        opened = CliRunner().invoke(app, shlex.split(line)[1:])
        assert opened.exit_code == 0, opened.stderr
    done = command(folder, tmp_path / "out2", *parts[:-1], tmp_path / "paper2", *more, "--json")
    paper = json.loads(done.stdout)["paper"]
    assert (paper["directory"], paper["layout"]) == (str(tmp_path / "paper2"), "cap")
    assert f"--finalise threshold={paper['finalise']['threshold']}" in lines[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--recipe", "dense", "--to", "2:4"), "--to: a recipe says this itself"),
        (("--recipe", "dense", "--formats", "2:4 int8"), "--formats: a recipe says this itself"),
        (("--recipe", "dense", "--sensitivity", "a.svg"), "--sensitivity: measures without"),
        (("--recipe", "dense", "--top", "2"), "--top: belongs to --search"),
        (
            ("--recipe", "nxmiformer", "--search", "0.2", "--shape", "1x8"),
            "--shape: belongs to --search latency",
        ),
        (("--to", "2:4", "--resume"), "--resume: belongs to training; give --recipe"),
        (("--to", "2:4", "--paper-out", "paper"), "--paper-out: belongs to training"),
        (("--search", "0.2"), "--search: belongs to training; give --recipe"),
        (("--to", "2:4", "--sensitivity", "a.svg"), "--sensitivity: with --out it draws what"),
        (("--to", "2:4", "--formats", "2:4 int8"), "--formats: belongs to --target"),
        (("--to", "2:4", "--shape", "8x16"), "--shape: belongs to --target latency"),
    ],
)
def test_options_that_contradict_each_other_are_wrong_usage(
    more, message, folder, tmp_path
) -> None:
    done = command(folder, tmp_path / "out", *more)
    assert done.exit_code == 2
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_seed_that_no_generator_takes_is_refused(folder, tmp_path) -> None:
    done = command(folder, tmp_path / "out", "--recipe", "dense", "--seed", str(2**32))
    assert done.exit_code == 2 and "--seed" in done.stderr and "4294967295" in done.stderr


def test_a_hub_id_is_taken_at_its_revision(folder, tmp_path, monkeypatch) -> None:
    import huggingface_hub

    asked = []

    def snapshot(repo_id, **more):
        asked.append((repo_id, more["revision"], more["local_files_only"]))
        return str(folder / "model")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    parts = ["--model", "some/one", "--data", folder / "all.csv", "--out", tmp_path / "out", "-q"]
    more = ("--recipe", "dense", "--set", "teacher.steps=1", "--revision", "v2")
    command = ("prune", *parts, *more, "--local-files-only")
    done = CliRunner().invoke(app, [str(part) for part in command])
    assert done.exit_code == 0, done.stderr
    assert asked and {*asked} == {("some/one", "v2", True)}
