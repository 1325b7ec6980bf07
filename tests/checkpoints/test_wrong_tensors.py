"""Weights of another dtype or shape than their layout computes with are refused, not converted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_runtime.checkpoints import CheckpointError, open_checkpoint
from sparse_runtime.testing.exporters.cofi import export_cofi_run
from sparse_runtime.testing.exporters.movement import export_movement
from sparse_runtime.testing.exporters.structured_masks import export_mask_buffers, export_mask_files
from sparse_runtime.tools.convert import convert

Export = Callable[[Path, dict[str, Any], dict[str, Tensor]], None]

LAYER = "bert.encoder.layer.0"
WEIGHT = f"{LAYER}.intermediate.dense.weight"
HEADS, NEURONS = torch.ones(2, 4), torch.ones(2, 48)


def export_cofi_masks(directory: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    heads = torch.ones(2, 4)
    heads[0, 0] = 0
    neurons = torch.ones(2, 48)
    neurons[0, :20] = 0
    masks = {"head_z": heads, "intermediate_z": neurons, "mlp_z": torch.ones(2)}
    export_cofi_run(directory, config, tensors, masks)


EXPORTERS: dict[str, Export] = {
    "kwon": lambda d, c, t: export_mask_files(d, c, t, HEADS, NEURONS),
    "cap": lambda d, c, t: export_mask_buffers(d, c, t, HEADS, NEURONS),
    "cofi": export_cofi_masks,
    "l0": lambda d, c, t: export_movement(d, c, t, "l0"),
    "magnitude": lambda d, c, t: export_movement(d, c, t, "magnitude"),
}


def replaced(exporter: str, directory: Path, config: Any, tensors: Any, name: str, to: Any) -> None:
    """Write a checkpoint, and then another tensor in the place of one."""
    EXPORTERS[exporter](directory, config, tensors)
    path = directory / "pytorch_model.bin"
    written = torch.load(path)
    written[name] = to(written[name])
    torch.save(written, path)


def options(exporter: str) -> dict[str, Any] | None:
    return {"threshold": 0.25} if exporter == "magnitude" else None


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.int8, torch.uint8, torch.int64, torch.bool, torch.float64, torch.complex64),
        *(torch.float8_e4m3fn, torch.float8_e5m2),
    ],
)
@pytest.mark.parametrize("exporter", list(EXPORTERS))
def test_masks_are_not_folded_into_other_dtypes(
    exporter: str,
    dtype: torch.dtype,
    untied: dict[str, Tensor],
    model_config: dict[str, Any],
    tmp_path: Path,
) -> None:
    replaced(exporter, tmp_path, model_config, untied, WEIGHT, lambda t: (t * 127).to(dtype))
    said = rf"expected float32, bfloat16 or float16 tensors, got {WEIGHT} \({str(dtype)[6:]}\)"
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(tmp_path, finalise=options(exporter))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float64])
def test_masks_themselves_may_be_integers(
    dtype: torch.dtype, untied: dict[str, Tensor], model_config: dict[str, Any], tmp_path: Path
) -> None:
    heads = HEADS.clone()
    heads[0, 1] = 0
    export_mask_files(tmp_path, model_config, untied, heads.to(dtype), NEURONS.to(dtype))
    name = f"{LAYER}.attention.output.dense.weight"
    kept = heads[0].repeat_interleave(8).bool()
    assert torch.equal(open_checkpoint(tmp_path).tensors[name], torch.where(kept, untied[name], 0))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2])
def test_masks_and_scores_that_are_no_real_numbers_are_refused(
    dtype: torch.dtype, untied: dict[str, Tensor], model_config: dict[str, Any], tmp_path: Path
) -> None:
    said = rf"expected real numbers of 16 bits or more, got {str(dtype)[6:]}"
    export_mask_files(tmp_path, model_config, untied, HEADS.to(dtype), NEURONS)
    with pytest.raises(CheckpointError, match=rf"head_mask\.pt: {said}"):
        open_checkpoint(tmp_path).tensors[f"{LAYER}.attention.output.dense.weight"]
    scores = f"{LAYER}.intermediate.dense.mask_scores"
    replaced("l0", tmp_path / "l0", model_config, untied, scores, lambda t: t.to(dtype))
    with pytest.raises(CheckpointError, match=rf"{scores}: {said}"):
        open_checkpoint(tmp_path / "l0").tensors[WEIGHT]


VALUE = f"{LAYER}.attention.self.value"


@pytest.mark.parametrize(
    ("name", "to"),
    [
        (f"{VALUE}.bias", lambda t: t[:-1]),
        (f"{VALUE}.bias", lambda t: torch.cat([t, t])),
        (f"{VALUE}.bias", lambda t: t[None]),
        (f"{VALUE}.weight", lambda t: t[:-1]),
        (f"{VALUE}.weight", lambda t: t[0]),
        (f"{LAYER}.intermediate.dense.bias", lambda t: t[:-1]),
        (f"{LAYER}.intermediate.dense.bias", lambda t: torch.cat([t, t])),
        (f"{LAYER}.output.dense.weight", lambda t: t[0]),
    ],
)
@pytest.mark.parametrize("exporter", ["kwon", "cap", "cofi"])
def test_shapes_that_masks_do_not_fit_are_refused(
    exporter: str,
    name: str,
    to: Callable[[Tensor], Tensor],
    untied: dict[str, Tensor],
    model_config: dict[str, Any],
    tmp_path: Path,
) -> None:
    replaced(exporter, tmp_path, model_config, untied, name, to)
    # CoFi's whole weights have the sizes of config.json.
    whole = exporter == "cofi" and name.endswith(".weight")
    said = rf"{name}: expected" + ("|not as large as" if whole else "")
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (WEIGHT, ()),
        (WEIGHT, (0, 32)),
        (WEIGHT, (48, 0)),
        (f"{VALUE}.bias", ()),
        (f"{VALUE}.bias", (0,)),
        ("bert.embeddings.word_embeddings.weight", ()),
        ("bert.embeddings.LayerNorm.weight", (0,)),
        ("bert.pooler.dense.weight", ()),
    ],
)
def test_parameters_without_numbers_are_refused(
    name: str, shape: tuple[int, ...], untied: dict[str, Tensor], write: Callable[..., Path]
) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(write(untied | {name: torch.zeros(shape)}))
    assert f"{name}: expected a vector or a matrix with sizes from 1, got {list(shape)}" in str(
        caught.value
    )


def test_masked_parameters_without_numbers_are_refused(
    untied: dict[str, Tensor], write: Callable[..., Path]
) -> None:
    pair = {f"{WEIGHT}_{part}": torch.zeros(0, 32) for part in ("orig", "mask")}
    with pytest.raises(CheckpointError, match=rf"{WEIGHT}: .* sizes from 1, got \[0, 32\]"):
        open_checkpoint(write({n: t for n, t in untied.items() if n != WEIGHT} | pair))


@pytest.mark.parametrize("crop", ["auto", "none"])
@pytest.mark.parametrize("module", ["attention.self.value", "intermediate.dense", "output.dense"])
@pytest.mark.parametrize("to", [lambda t: t[:-1], lambda t: torch.cat([t, t]), lambda t: t[None]])
def test_biases_that_do_not_fit_their_weight_are_refused(
    to: Callable[[Tensor], Tensor],
    module: str,
    crop: str,
    untied: dict[str, Tensor],
    model_config: dict[str, Any],
    write: Callable[..., Path],
    tmp_path: Path,
) -> None:
    name = f"{LAYER}.{module}.bias"
    right, wrong = untied[name], to(untied[name])
    directory = write(untied | {name: wrong}, config=model_config)
    with pytest.raises(CheckpointError) as caught:
        convert(directory, tmp_path / "packed", crop=crop, progress=False)
    assert f"{name}: expected {len(right)} values" in str(caught.value)
    assert f"got shape {list(wrong.shape)}" in str(caught.value)


@pytest.mark.parametrize("model_type", ["bert", "distilbert"])
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"architectures": 5}, "architectures: expected a list of class names, got 5"),
        ({"architectures": [["A"]]}, "architectures: expected a list of class names"),
        ({"model_type": []}, r"model_type: expected a name, got \[\]"),
        ({"pruned_heads": 5}, "pruned_heads: expected lists of heads by layer, got 5"),
    ],
)
def test_a_config_of_other_kinds_is_refused(
    fields: dict[str, Any],
    said: str,
    model_type: str,
    untied: dict[str, Tensor],
    model_config: dict[str, Any],
    write: Callable[..., Path],
) -> None:
    config = model_config | {"model_type": model_type} | fields
    with pytest.raises(CheckpointError, match=rf"config\.json: {said}"):
        open_checkpoint(write(untied, config=config))


@pytest.mark.parametrize("model_type", ["bert", "electra"])
def test_more_heads_than_features_are_refused(
    model_type: str,
    untied: dict[str, Tensor],
    model_config: dict[str, Any],
    write: Callable[..., Path],
) -> None:
    fields = {"num_attention_heads": 10**30, "pruned_heads": {"0": [1]}, "model_type": model_type}
    with pytest.raises(CheckpointError, match="num_attention_heads: expected at most hidden_size"):
        open_checkpoint(write(untied, config=model_config | fields))
    flat = {f"{VALUE}.weight": untied[f"{VALUE}.weight"][0]}
    config = model_config | {"pruned_heads": {"0": [1]}, "model_type": model_type}
    with pytest.raises(CheckpointError, match=rf"{VALUE}\.weight: expected a matrix, got \[32\]"):
        open_checkpoint(write(untied | flat, config=config))
