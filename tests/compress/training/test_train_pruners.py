"""Masks at every step of a training, which matrices a stage takes, and what may ask of it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from sparse_runtime.compress.activation_quant import StaticFakeQuant
from sparse_runtime.compress.masks import masks_of, original_weight
from sparse_runtime.compress.patterns import sparsity
from sparse_runtime.compress.training.models import continue_from, load_model, sentence_pooling
from sparse_runtime.compress.training.reading import load_recipe, parse
from sparse_runtime.compress.training.run import train
from sparse_runtime.compress.training.sections import Quantization
from sparse_runtime.compress.training.selection import fitting, quantized_linears
from sparse_runtime.compress.training.stage_run import StageRunner
from sparse_runtime.compress.training.trainer import CompressionTrainer, training_arguments
from sparse_runtime.compress.training.workspace import Workspace

STEPS = 12


def prepared(checkpoint, data, folder: Path, **stage):
    recipe = parse(
        {
            "name": "test",
            "stages": [
                {
                    "name": "prune",
                    "task": "classification",
                    "steps": STEPS,
                    "learning_rate": 1e-2,
                    **stage,
                }
            ],
        }
    )
    runner = StageRunner(checkpoint, recipe, data, 0, torch.device("cpu"), {})
    workspace = Workspace(folder / "out", {}, resume=False)
    return runner.prepare(recipe.stages[0], workspace)


def trained(training, pruner, folder: Path, watch):
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            watch(state.global_step - 1)

    arguments = training_arguments(training, folder, save_every=None, log_every=1)
    trainer = CompressionTrainer(training, pruner, arguments)
    trainer.add_callback(Watch())
    trainer.train()
    return trainer


@pytest.mark.parametrize("scope", ["uniform", "global"])
@pytest.mark.parametrize("regrow", [True, False])
@pytest.mark.parametrize("structure", ["unstructured@0.8", "2:4", "block:4x1@0.75"])
def test_masks_at_every_step(structure, regrow, scope, checkpoints, labelled, tmp_path) -> None:
    pruning = {
        "method": "magnitude",
        "structure": structure,
        "regrow": regrow,
        "scope": scope,
        "schedule": {"begin": 0.1, "end": 0.5, "stop": 0.8, "updates": 4},
    }
    training, pruner = prepared(checkpoints["bert"], labelled, tmp_path, pruning=pruning)
    steps = []

    def watch(step: int) -> None:
        steps.append({name: mask.clone() for name, mask in masks_of(training.model).items()})
        for name, linear in pruner.linears.items():
            # What is masked is not there, whatever the optimizer did to the weight beneath.
            assert not bool(linear.weight[~steps[-1][name]].any())

    trainer = trained(training, pruner, tmp_path / "t", watch)
    final = {"unstructured@0.8": 0.8, "2:4": 0.5, "block:4x1@0.75": 0.75}[structure]
    overall = [
        sum(int((~mask).sum()) for mask in step.values())
        / sum(mask.numel() for mask in step.values())
        for step in steps
    ]
    assert overall[0] == 0, "pruning begins at step 1"
    assert overall == sorted(overall) and overall[-1] == pytest.approx(final, abs=0.01)
    each = [sparsity(mask) for mask in steps[-1].values()]
    if scope == "uniform" or structure == "2:4":
        assert each == pytest.approx([final] * len(each), abs=0.01)
    for before, after in itertools.pairwise(steps):
        if not regrow:
            assert not any(bool((after[name] & ~before[name]).any()) for name in after)
    # Step 10 of 0 to 11 is the last at which masks move.
    assert all(torch.equal(steps[-1][name], steps[-2][name]) for name in steps[-1])
    if structure == "2:4":
        groups = next(iter(steps[-1].values())).view(-1, 4)
        assert bool((groups.sum(1) == 2).all())
    assert trainer.state.log_history[0].keys() >= {"loss", "loss_task", "sparsity"}


def test_a_lock_keeps_the_zeros_and_trains_the_rest(checkpoints, labelled, tmp_path) -> None:
    training, pruner = prepared(
        checkpoints["bert"],
        labelled,
        tmp_path,
        pruning={
            "method": "magnitude",
            "structure": "unstructured@0.6",
            "schedule": {"end": 0, "stop": 0},
        },
    )
    pruner.begin_step(0, STEPS)
    torch.manual_seed(0)
    from sparse_runtime.compress.writing import write_checkpoint

    sparse = write_checkpoint(
        training.model, None, tmp_path / "sparse", extra_files=checkpoints["bert"]
    )
    locked, lock = prepared(sparse, labelled, tmp_path / "second", pruning={"method": "lock"})
    zeros = {name: linear.weight == 0 for name, linear in lock.linears.items()}
    start = {name: linear.weight.detach().clone() for name, linear in lock.linears.items()}
    trained(locked, lock, tmp_path / "t", lambda step: None)
    for name, linear in lock.linears.items():
        assert torch.equal(linear.weight == 0, zeros[name])
        assert not torch.equal(linear.weight, start[name])
    assert lock.metrics()["sparsity"] == pytest.approx(0.6, abs=0.01)


def test_scores_are_learned_on_a_frozen_model(checkpoints, labelled, tmp_path) -> None:
    pruning = {"method": "movement", "structure": "unstructured@0.5", "schedule": {"begin": 0.2}}
    arguments = {"freeze": ["."], "pruning": pruning, "steps": 4}
    training, pruner = prepared(checkpoints["bert"], labelled, tmp_path, **arguments)
    before = {name: original_weight(one).detach().clone() for name, one in pruner.linears.items()}
    trained(training, pruner, tmp_path / "run", lambda _: None)
    for name, linear in pruner.linears.items():
        assert torch.equal(original_weight(linear), before[name])
        assert pruner.masks[name].scores.abs().max() > 0
        assert sparsity(linear.weight.detach()) == pytest.approx(0.5, abs=0.01)


def test_patterns_may_differ_by_component(checkpoints, labelled, tmp_path) -> None:
    per = {"ffn_in": "block:1x4@0.5", r"layer\.1\.attention": None}
    _, pruner = prepared(
        checkpoints["bert"],
        labelled,
        tmp_path,
        pruning={"method": "magnitude", "structure": "2:4", "per": per},
    )
    found = {name: str(pattern) for name, pattern in pruner.patterns.items()}
    assert len(found) == 12 - 4 and found.keys() == pruner.linears.keys()
    assert {text for name, text in found.items() if "intermediate" in name} == {"block:1x4@0.5"}
    assert not any("layer.1.attention" in name for name in found)


@pytest.mark.parametrize(
    ("pruning", "message"),
    [
        ({"method": "magnitude"}, "needs a structure"),
        ({"method": "lock", "structure": "2:4"}, "takes no structure"),
        ({"method": "magnitude", "structure": "2:4", "per": {"nothing": "2:4"}}, "fits none"),
        ({"method": "magnitude", "structure": "2:4", "include": "nothing"}, "no linear layer"),
        (
            {
                "method": "magnitude",
                "structure": "2:4",
                "scope": "global",
                "per": {"query": "1:4"},
            },
            "scope: global ranks all matrices for one pattern, got 1:4, 2:4; say uniform",
        ),
    ],
)
def test_pruning_that_fits_nothing(pruning, message, checkpoints, labelled, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        prepared(checkpoints["bert"], labelled, tmp_path, pruning=pruning)


def test_values_may_differ_by_component(checkpoints, labelled) -> None:
    model = load_model(checkpoints["bert"], "classification", labelled)
    groups = quantized_linears(model, Quantization(per={"query": "int4", "key": None}))
    counts = {spec.dtype: len(linears) for spec, linears in groups.items()}
    assert counts == {"int4": 2, "int8": 8}
    assert fitting("outputs", ["encoder.layer.0.output.dense"], ["ffn_out"])


def test_static_ranges_quantize_from_their_step_on_whatever_a_batch_is_cut_into(
    checkpoints, labelled, tmp_path
) -> None:
    # 90 rows in batches of 16 in parts of 4: the sixth step of an epoch has 3 parts and not 4.
    training, _ = prepared(
        checkpoints["bert"],
        labelled,
        tmp_path,
        steps=60,
        batch_size=16,
        accumulation=4,
        quantization={"activations": "static", "start": 0.5, "freeze": 0.5},
    )
    quantizers = [one for one in training.model.modules() if isinstance(one, StaticFakeQuant)]
    seen: dict[int, set[bool]] = {}

    def watch(step: int) -> None:
        seen[step] = {one.is_on for one in quantizers}

    trained(training, None, tmp_path / "trainer", watch)
    assert len(quantizers) == 12
    assert [step for step in seen if seen[step] != {step >= 30}] == []
    assert all(one.frozen for one in quantizers)


def test_the_teacher_is_asked_once_where_its_answers_alone_are_read(
    checkpoints, labelled, tmp_path
) -> None:
    train(checkpoints["bert"], "dense", labelled, tmp_path / "teacher", changes=("*.steps=1",))
    given = {"teacher": tmp_path / "teacher"}
    recipe = load_recipe("cap")  # its banks look inside the student, its soft labels at no states
    runner = StageRunner(checkpoints["bert"], recipe, labelled, 0, torch.device("cpu"), given)
    workspace = Workspace(tmp_path / "out", {}, resume=False)
    training, _ = runner.prepare(recipe.stages[-1], workspace)
    training.teacher.register_forward_hook(lambda *_: pytest.fail("the teacher is asked again"))
    batch = training.texts.batch([3, 40], 0)
    loss = training.loss(batch.inputs, batch.indices, batch.labels)
    assert torch.isfinite(loss) and {"logits", "contrastive"} <= training.last_parts.keys()


def test_gradients_of_single_rows_are_those_of_their_loss(checkpoints, labelled, tmp_path) -> None:
    training, _ = prepared(checkpoints["bert"], labelled, tmp_path, batch_size=8)
    state = torch.random.get_rng_state()
    training.model.train()
    weight = training.model.get_parameter("classifier.weight")
    seen = [weight.grad.clone() for _ in training.gradients(3, 1, seed=4)]
    assert len(seen) == 3 and not torch.equal(seen[0], seen[1])
    assert torch.equal(state, torch.random.get_rng_state())
    assert training.model.training and weight.grad is None
    again = [weight.grad.clone() for _ in training.gradients(3, 1, seed=4)]
    assert all(torch.equal(a, b) for a, b in zip(seen, again, strict=True))


def test_gradients_of_the_labels_alone(checkpoints, labelled, tmp_path) -> None:
    # A student that is its teacher: the stage's loss, their distance, has no gradient.
    train(checkpoints["bert"], "dense", labelled, tmp_path / "teacher", changes=("*.steps=1",))
    stages = [
        {"name": "teacher", "task": "classification", "steps": 1},
        {
            "name": "prune",
            "task": "classification",
            "start": "teacher",
            "teacher": "teacher",
            "steps": 4,
            "distillation": {"task": 0, "logits": 1},
        },
    ]
    recipe = parse({"name": "test", "stages": stages})
    given = {"teacher": tmp_path / "teacher"}
    runner = StageRunner(checkpoints["bert"], recipe, labelled, 0, torch.device("cpu"), given)
    workspace = Workspace(tmp_path / "out", {}, resume=False)
    training, _ = runner.prepare(recipe.stages[-1], workspace)
    weight = training.model.get_parameter("classifier.weight")
    of_stage = [weight.grad.norm() for _ in training.gradients(3, 8, seed=4)]
    of_labels = [weight.grad.norm() for _ in training.gradients(3, 8, seed=4, labels_alone=True)]
    assert max(of_stage) < 1e-6 and min(of_labels) > 1e-2


def test_gradients_of_a_pass_take_every_row_once(
    checkpoints, labelled, tmp_path, monkeypatch
) -> None:
    training, _ = prepared(checkpoints["bert"], labelled, tmp_path)
    taken, batch = [], training.texts.batch

    def seen(rows, **more):
        taken.append(list(rows))
        return batch(rows, **more)

    monkeypatch.setattr(training.texts, "batch", seen)
    # 90 rows in batches of 16: the sixth has 10, and the seventh begins a new pass.
    assert len(list(training.gradients(8, 16, seed=3))) == 8
    assert [len(rows) for rows in taken] == [16] * 5 + [10] + [16] * 2
    assert sorted(itertools.chain(*taken[:6])) == list(range(90))
    assert len({*taken[6], *taken[7]}) == 32 and taken[6] != taken[0]


def test_every_training_text_is_encoded_in_its_place(checkpoints, labelled, tmp_path) -> None:
    training, _ = prepared(checkpoints["bert"], labelled, tmp_path)
    vectors = training.encode(training.model, "mean")
    assert vectors.shape == (90, 32)
    one = training.texts.batch([41], 0)
    training.model.eval()
    hidden = training.model.bert(**one.inputs).last_hidden_state[0]
    length = training.texts.lengths[41]
    assert torch.allclose(vectors[41], hidden[:length].mean(0), atol=1e-5)


def test_a_head_is_new_and_an_encoder_never(checkpoints, labelled, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    model = load_model(checkpoints["bert"], "classification", labelled)
    assert model.new_parameters == ["classifier.bias", "classifier.weight"]
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(checkpoints["bert"], broken)
    tensors = load_file(broken / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks .*encoder.layer.1.output.dense.weight"):
        load_model(broken, "classification", labelled)


def test_a_stage_goes_on_from_one_of_another_task(checkpoints, labelled) -> None:
    earlier = load_model(checkpoints["bert"], "masked_lm", labelled)
    with torch.no_grad():
        original_weight(earlier.bert.encoder.layer[0].output.dense).fill_(0.5)
    model = load_model(checkpoints["bert"], "classification", labelled)
    pooler = model.bert.pooler.dense.weight.clone()
    continue_from(model, earlier)
    assert bool((model.bert.encoder.layer[0].output.dense.weight == 0.5).all())
    # A masked LM has no pooler: the checkpoint's own stays.
    assert torch.equal(model.bert.pooler.dense.weight, pooler)
    assert model.new_parameters == ["classifier.bias", "classifier.weight"]


def test_pooling_is_never_guessed(checkpoints, sentence_encoder) -> None:
    assert sentence_pooling(sentence_encoder, "auto") == "mean"
    assert sentence_pooling(checkpoints["bert"], "cls") == "cls"
    with pytest.raises(ValueError, match="say pooling"):
        sentence_pooling(checkpoints["bert"], "auto")
