"""What a training begins with: the same when it goes on, and whole."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from sparse_runtime.compress.training.run import train
from sparse_runtime.compress.training.stage_run import StageRunner

SHORT = ("*.steps=2", "*.batch_size=8")


def interrupt(monkeypatch, model, data, out: Path, recipe="gradual-magnitude-distilled", **more):
    """Leaves ``out``.training with its first stage done."""
    stage = StageRunner.stage

    def second_fails(self, one, workspace, pace):
        if one is not self.recipe.stages[0]:
            raise KeyboardInterrupt
        return stage(self, one, workspace, pace)

    with monkeypatch.context() as patch:
        patch.setattr(StageRunner, "stage", second_fails)
        with pytest.raises(KeyboardInterrupt):
            train(model, recipe, data, out, changes=SHORT, **more)


def other_weights(folder: Path, out: Path) -> Path:
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, out)
    tensors = load_file(out / "model.safetensors")
    first = next(iter(tensors))
    tensors[first] = tensors[first] + 1
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def test_a_training_goes_on_with_its_own_models_alone(
    checkpoints, labelled, tmp_path, monkeypatch
) -> None:
    model, out, recipe = checkpoints["bert"], tmp_path / "out", "gradual-magnitude-distilled"
    train(model, "dense", labelled, tmp_path / "dense", changes=SHORT)
    given = {"teacher": tmp_path / "dense"}
    interrupt(monkeypatch, model, labelled, out, given=given)
    more = {"changes": SHORT, "resume": True}
    other = other_weights(model, tmp_path / "other")
    with pytest.raises(ValueError, match="begun with other model;"):
        train(other, recipe, labelled, out, given=given, **more)
    with pytest.raises(ValueError, match="begun with other given;"):
        train(model, recipe, labelled, out, **more)
    worse = {"teacher": other_weights(tmp_path / "dense", tmp_path / "worse")}
    with pytest.raises(ValueError, match="begun with other given;"):
        train(model, recipe, labelled, out, given=worse, **more)
    # A copy is the same model.
    copy = shutil.copytree(model, tmp_path / "copy")
    report = train(copy, recipe, labelled, out, given=given, **more)
    assert [stage.steps for stage in report.stages] == [0, 2]


def test_a_given_model_is_a_directory(checkpoints, labelled, tmp_path) -> None:
    recipe = "gradual-magnitude-distilled"
    with pytest.raises(ValueError, match="stage 'teacher': nowhere: no such directory"):
        train(checkpoints["bert"], recipe, labelled, tmp_path / "out", given={"teacher": "nowhere"})


def test_a_model_without_a_tokenizer_is_refused(checkpoints, labelled, tmp_path) -> None:
    # transformers would make a tokenizer to which every word is unknown.
    shutil.copytree(
        checkpoints["bert"],
        tmp_path / "bare",
        ignore=shutil.ignore_patterns("tokenizer*", "vocab*"),
    )
    with pytest.raises(ValueError, match=r"bare: no tokenizer \(tokenizer.json, "):
        train(tmp_path / "bare", "dense", labelled, tmp_path / "out", changes=SHORT)


# 64 positions, of RoBERTa's 66 the first is the padding's (whose number is 0); recipes ask for 128.
@pytest.mark.parametrize(("family", "most"), [("bert", 64), ("roberta", 65)])
def test_texts_are_cut_to_what_the_model_reads(
    family, most, checkpoints, labelled, tmp_path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(checkpoints[family], model)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    del settings["model_max_length"]
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    part = labelled.train
    long = tuple(f"{text} {'w9 ' * 100}" for text in part.texts)
    data = replace(labelled, train=replace(part, texts=long), test=None)
    report = train(model, "dense", data, tmp_path / "out", changes=SHORT)
    assert report.stages[-1].steps == 2
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert written["model_max_length"] == most


def test_bars_are_on_stderr_and_only_where_asked(checkpoints, labelled, tmp_path, capsys) -> None:
    for name, progress in (("bare", None), ("shown", True)):
        train(
            checkpoints["bert"],
            "dense",
            labelled,
            tmp_path / name,
            changes=SHORT,
            progress=progress,
        )
        told = capsys.readouterr()
        assert told.out == ""
        assert ("steps: 100%" in told.err) == (progress is True)


def test_a_hub_id_brings_its_files_along(
    sentence_encoder, scored_pairs, tmp_path, monkeypatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *_, **__: str(sentence_encoder)
    )
    train("someone/encoder", "int8-embedding", scored_pairs, tmp_path / "out", changes=SHORT)
    for name in ("modules.json", "1_Pooling/config.json"):
        assert (tmp_path / "out" / name).is_file()


def test_pooling_can_be_said_beside_the_recipe(checkpoints, scored_pairs, tmp_path) -> None:
    import json

    arguments = (checkpoints["bert"], "int8-embedding", scored_pairs)
    with pytest.raises(ValueError, match="--pooling mean"):
        train(*arguments, tmp_path / "out", changes=SHORT)
    with pytest.raises(ValueError, match="pooling 'max': expected one of auto, mean, cls"):
        train(*arguments, tmp_path / "out", changes=SHORT, pooling="max")  # type: ignore[arg-type]
    train(*arguments, tmp_path / "out", changes=SHORT, pooling="cls")
    record = json.loads((tmp_path / "out" / "compression.json").read_text())
    assert record["arguments"]["pooling"] == "cls"


def test_there_must_be_a_training_to_go_on_with(checkpoints, labelled, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"out\.training: holds no unfinished training"):
        train(checkpoints["bert"], "dense", labelled, tmp_path / "out", changes=SHORT, resume=True)
    assert not list(tmp_path.iterdir())


def test_only_floats_are_trained(
    checkpoints, sentence_encoder, labelled, scored_pairs, tmp_path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    import sparse_runtime as sr

    def refused(message: str, model: Path, **given: Path) -> None:
        out, recipe = tmp_path / "never", "gradual-magnitude-distilled"
        with pytest.raises(ValueError, match=message):
            train(model, recipe, labelled, out, changes=SHORT, given=given)
        assert not out.exists()

    int8, encoder = tmp_path / "int8", checkpoints["bert"]
    train(sentence_encoder, "int8-embedding", scored_pairs, int8, changes=SHORT)
    refused("int8: its linear layers are integers already", int8)
    packed = tmp_path / "packed"
    sr.convert(encoder, packed, progress=False)
    refused("packed", packed)
    refused("packed", encoder, teacher=packed)
    # torch.nn.utils.prune: transformers would find no weight in the pair.
    pruned = shutil.copytree(encoder, tmp_path / "pruned")
    tensors = load_file(pruned / "model.safetensors")
    name = "encoder.layer.0.output.dense.weight"
    weight = tensors.pop(name)
    tensors |= {f"{name}_orig": weight, f"{name}_mask": torch.ones_like(weight)}
    save_file(tensors, pruned / "model.safetensors", metadata={"format": "pt"})
    refused("stored as torch.nn.utils.prune, which a recipe does not read", pruned)
