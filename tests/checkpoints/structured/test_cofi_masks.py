"""CoFi's training runs: whole weights and zs.pt, folded and cut as the authors' conversion does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_runtime.checkpoints import CheckpointError, open_checkpoint
from sparse_runtime.testing.exporters.cofi import export_cofi, export_cofi_run

LAYER = "bert.encoder.layer"


def pruned(masks: dict[str, Tensor]) -> dict[str, Tensor]:
    """Layer 0 loses heads and neurons, 1 its attention, 2 its feed-forward; 3 is whole."""
    masks["head_z"][0, [0, 2]] = 0
    masks["head_layer_z"][1] = 0
    masks["intermediate_z"][0, ::3] = 0
    masks["mlp_z"][2] = 0
    masks["hidden_z"][10:14] = 0
    return masks


def real(masks: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with numbers below 1 where they were 1."""
    generator = torch.Generator().manual_seed(2)
    return {
        name: z * (0.5 + torch.rand(z.shape, generator=generator) / 2) for name, z in masks.items()
    }


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "BertForQuestionAnswering"])
def test_runs_as_the_masked_network_and_as_the_published_form(
    name: str, whole: Any, network: Any, runs_as: Callable[..., Any], tmp_path: Path
) -> None:
    model = whole(name)
    masks = pruned(model.masks())
    export_cofi_run(tmp_path / "run", model.config, model.tensors, masks)
    plain = network(model).outputs()
    report = runs_as(tmp_path / "run", network(model, masks).outputs(), plain)
    assert "6 heads, 54 neurons, 4 hidden channels" in " ".join(report.steps)
    export_cofi(tmp_path / "cut", model.config, model.tensors, masks)
    mine, published = open_checkpoint(tmp_path / "run"), open_checkpoint(tmp_path / "cut")
    assert {*mine.tensors} == {*published.tensors}
    for tensor in mine.tensors:
        assert torch.equal(mine.tensors[tensor], published.tensors[tensor]), tensor
    assert (mine.absent, mine.head_size) == (published.absent, published.head_size)


@pytest.mark.parametrize(
    "left_out", [("hidden_z",), ("head_layer_z", "mlp_z"), ("intermediate_z", "mlp_z")]
)
def test_kinds_that_were_not_pruned_may_be_left_out(
    left_out: tuple[str, ...], whole: Any, network: Any, runs_as: Callable[..., Any], tmp_path: Path
) -> None:
    model = whole()
    masks = {n: z for n, z in pruned(model.masks()).items() if n not in left_out}
    export_cofi_run(tmp_path / "run", model.config, model.tensors, masks)
    runs_as(tmp_path / "run", network(model, masks).outputs(), network(model).outputs())


def test_real_masks_are_multiplied_in_to_the_last_bit(whole: Any, tmp_path: Path) -> None:
    model = whole()
    masks = real(pruned(model.masks()))
    export_cofi_run(tmp_path, model.config, model.tensors, masks)
    got, state = open_checkpoint(tmp_path).tensors, model.tensors
    hidden = masks["hidden_z"]
    kept = hidden.nonzero().flatten()
    head = masks["head_z"][0].repeat_interleave(12)
    rows = head.nonzero().flatten()
    neurons = masks["intermediate_z"][0]
    left = neurons.nonzero().flatten()
    all_heads, all_neurons = masks["head_layer_z"][0], masks["mlp_z"][0]
    part, out = f"{LAYER}.0.attention.self", f"{LAYER}.0.attention.output.dense"
    second = f"{LAYER}.0.output.dense"
    # The products in the order in which the authors' update_params makes them.
    expected = {
        f"{part}.query.weight": (state[f"{part}.query.weight"] * hidden)[rows][:, kept],
        f"{part}.query.bias": state[f"{part}.query.bias"][rows],
        f"{part}.value.weight": (state[f"{part}.value.weight"] * head[:, None] * hidden)[rows][
            :, kept
        ],
        f"{part}.value.bias": (state[f"{part}.value.bias"] * head)[rows],
        f"{out}.weight": (state[f"{out}.weight"] * all_heads * hidden[:, None])[kept][:, rows],
        f"{out}.bias": (state[f"{out}.bias"] * all_heads * hidden)[kept],
        f"{second}.weight": (state[f"{second}.weight"] * neurons * all_neurons * hidden[:, None])[
            kept
        ][:, left],
        # hidden_z does not reach it there.
        f"{second}.bias": (state[f"{second}.bias"] * all_neurons)[kept],
        f"{second[:-5]}LayerNorm.weight": state[f"{second[:-5]}LayerNorm.weight"][kept],
        "bert.pooler.dense.weight": (state["bert.pooler.dense.weight"] * hidden)[:, kept],
        "bert.pooler.dense.bias": state["bert.pooler.dense.bias"],
        "classifier.weight": state["classifier.weight"],
    }
    for table in ("word", "position", "token_type"):
        name = f"bert.embeddings.{table}_embeddings.weight"
        expected[name] = (state[name] * hidden)[:, kept]
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


def write_masks(directory: Path, masks: Any) -> Path:
    torch.save(masks, directory / "zs.pt")
    return directory


@pytest.fixture
def run(whole: Any, tmp_path: Path) -> Path:
    model = whole()
    export_cofi_run(tmp_path / "run", model.config, model.tensors, pruned(model.masks()))
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        ({}, "expected CoFi's masks head_z, .*, got none"),
        ({"head_z": torch.ones(4, 4), "extra_z": torch.ones(4)}, "CoFi's masks .* got extra_z"),
        ({"head_z": torch.ones(4, 12)}, r"head_z: expected \[4, 4\].* got \[4, 12\]"),
        ({"intermediate_z": torch.ones(4, 1, 1, 48)}, r"intermediate_z: .* got \[4, 1, 1, 48\]"),
        ({"hidden_z": torch.ones(47)}, r"hidden_z: expected \[48\].* got \[47\]"),
        ({"hidden_z": torch.zeros(48)}, "hidden_z: expected a channel that is left"),
        ({"head_z": torch.full((4, 4), torch.nan)}, "head_z: expected finite numbers, got nan"),
        ({"head_z": torch.ones(4, 4) * 1j}, "head_z: expected real numbers .* got complex64"),
        ({"head_z": torch.full((4, 4), -1.0)}, "head_z: expected numbers from 0 to 1"),
        ({"head_layer_z": torch.ones(4)}, "expected head_z beside head_layer_z"),
        ({"mlp_z": torch.ones(4)}, "expected intermediate_z beside mlp_z"),
        ({"head_z": [1.0]}, "expected plain tensors by name, got other things under head_z"),
        (None, "l0_module.pt, a pickled module, which is never loaded"),
    ],
)
def test_masks_of_another_kind_or_model_are_refused(masks: Any, said: str, run: Path) -> None:
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(write_masks(run, masks))


def test_masks_that_only_the_pickled_module_has_are_refused(run: Path) -> None:
    (run / "zs.pt").unlink()
    with pytest.raises(CheckpointError, match=r"masks lie in l0_module.pt.*torch.save to zs.pt"):
        open_checkpoint(run)
    # A fine-tuned model has none, and says so.
    torch.save(None, run / "l0_module.pt")
    assert open_checkpoint(run).absent == ()


class Payload:
    """Unpickling it by the ordinary rules makes a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_masks_run_nothing(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"zs\.pt: .* without running code"):
        open_checkpoint(write_masks(run, {"head_z": Payload(tmp_path / "victim")}))
    torch.save(Payload(tmp_path / "victim"), run / "l0_module.pt")
    (run / "zs.pt").unlink()
    with pytest.raises(CheckpointError, match="never loaded"):
        open_checkpoint(run)
    assert not (tmp_path / "victim").exists()


def test_weights_that_are_cut_take_no_masks(whole: Any, tmp_path: Path) -> None:
    model = whole()
    masks = pruned(model.masks())
    export_cofi(tmp_path, model.config, model.tensors, masks)
    with pytest.raises(CheckpointError, match=r"not as large as config.json says; remove zs.pt"):
        open_checkpoint(write_masks(tmp_path, masks))
    # What fine-tuning leaves beside a cut model.
    torch.save(None, tmp_path / "l0_module.pt")
    assert len(open_checkpoint(write_masks(tmp_path, None)).absent) == 2


@pytest.mark.parametrize("name", ["BertForTokenClassification", "BertForMaskedLM"])
def test_heads_that_the_conversion_does_not_know_are_refused(
    name: str, whole: Any, tmp_path: Path
) -> None:
    model = whole(name)
    masks = pruned(model.masks())
    export_cofi_run(tmp_path / "a", model.config, model.tensors, masks)
    with pytest.raises(CheckpointError, match=r"hidden channels, .* does not say what becomes of"):
        open_checkpoint(tmp_path / "a")
    # Without hidden channels it does not matter.
    masks = {key: z for key, z in masks.items() if key != "hidden_z"}
    export_cofi_run(tmp_path / "b", model.config, model.tensors, masks)
    assert len(open_checkpoint(tmp_path / "b").absent) == 2
