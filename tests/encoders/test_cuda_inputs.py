"""Inputs that kernels read: the same tokens, and the same refusals, as in plain PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from sparse_runtime.encoders.inputs import (
    first_tokens,
    read_inputs,
    starts_with_first_tokens,
)
from sparse_runtime.encoders.settings import read_settings
from sparse_runtime.ops import Backend, get_backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IDS = torch.arange(4, 10).view(2, 3)


@pytest.fixture(scope="module")
def backends() -> dict[str, Any]:
    return {name: get_backend(name, DEVICE, torch.float32) for name in ("cuda", "reference")}


@pytest.fixture
def settings(make_reference: Any) -> Any:
    def read(family: str) -> Any:
        model = make_reference(family, "Model", num_hidden_layers=1)
        config = {**model.config.to_dict(), "architectures": model.config.architectures}
        return read_settings(config)

    return read


def masks() -> dict[str, Tensor | None]:
    holes = torch.ones(4, 7)
    holes[0, 2:4] = holes[1, :3] = holes[2] = holes[3, 1:] = 0
    return {
        "none": None,
        "ones": torch.ones(4, 7, dtype=torch.int64),
        "right": (torch.arange(7) < torch.tensor([7, 1, 3, 5]).unsqueeze(1)).int(),
        "left": (torch.arange(7) >= torch.tensor([0, 6, 3, 5]).unsqueeze(1)).bool(),
        "holes": holes,  # of floats
        "zeros": torch.zeros(4, 7, dtype=torch.int64),
    }


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("mask", masks())
def test_kernels_read_the_same_tokens(
    mask: str, family: str, settings: Any, backends: dict[str, Any]
) -> None:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 61, (4, 7), generator=generator).to(DEVICE)
    kept = masks()[mask]
    inputs = {"attention_mask": None if kept is None else kept.to(DEVICE)}
    if family == "bert":
        inputs["token_type_ids"] = torch.randint(0, 2, (4, 7), generator=generator).to(DEVICE)
        inputs["position_ids"] = torch.arange(7, 14, device=DEVICE).unsqueeze(0)
    read = settings(family)
    (got, got_ids), (batch, expected_ids) = (
        read_inputs(read, backends[name], ids, **inputs) for name in ("cuda", "reference")
    )
    assert got.lengths == batch.lengths
    assert (got.batch_size, got.seq_len) == (batch.batch_size, batch.seq_len) == (4, 7)
    assert torch.equal(got.index, batch.index)
    assert torch.equal(got.row_positions, batch.row_positions)
    for one, other in zip(got_ids, expected_ids, strict=True):
        assert torch.equal(one, other) and one.dtype == torch.int64
    # What heads ask, which neither the host nor the device computes anew.
    assert got.leads is starts_with_first_tokens(batch)
    assert torch.equal(first_tokens(got), first_tokens(batch))
    tokens = torch.randn(len(got.index), 5, device=DEVICE)
    restored, expected = (
        backends[name].restore_padding(tokens, of)
        for name, of in (("cuda", got), ("reference", batch))
    )
    assert torch.equal(restored, expected) and restored.shape == (4, 7, 5)


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ({"input_ids": [[4, 5]]}, TypeError, "input_ids: expected an int64 or int32 tensor"),
        ({"input_ids": IDS.float()}, TypeError, "got torch.float32"),
        ({"input_ids": IDS[0]}, ValueError, r"expected \[batch, sequence\], got shape \[3\]"),
        ({"input_ids": IDS + 52}, ValueError, "input_ids: 61 is out of range, the vocabulary has"),
        ({"input_ids": IDS - 5}, ValueError, "input_ids: -1 is out of range"),
        ({"attention_mask": IDS[:, :2] * 0}, ValueError, r"attention_mask: expected shape \[2, 3"),
        ({"attention_mask": IDS}, ValueError, "1 for real tokens and 0 for padding"),
        ({"attention_mask": IDS * torch.nan}, ValueError, "1 for real tokens and 0 for padding"),
        ({"attention_mask": [[1]]}, TypeError, "attention_mask: expected a tensor, got list"),
        ({"token_type_ids": IDS}, ValueError, "token_type_ids: 9 is out of range.*3 rows"),
        ({"token_type_ids": IDS[:1]}, ValueError, r"token_type_ids: expected shape \[2, 3\]"),
        ({"position_ids": IDS[0]}, ValueError, r"position_ids: expected shape \[2, 3\]"),
        ({"position_ids": IDS + 80}, ValueError, "position_ids: 89 is out of range"),
        ({"position_ids": IDS.float()}, TypeError, "position_ids: expected an int64"),
        ({"input_ids": torch.full((1, 81), 5)}, ValueError, "up to 80 tokens run, truncate"),
    ],
)
def test_both_refuse_alike(
    inputs: dict[str, Any], error: type, message: str, settings: Any, backends: dict[str, Any]
) -> None:
    given = {"input_ids": IDS, **inputs}
    given = {k: v.to(DEVICE) if isinstance(v, Tensor) else v for k, v in given.items()}
    texts = []
    for backend in backends.values():
        with pytest.raises(error, match=message) as caught:
            read_inputs(settings("bert"), backend, **given)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]


def test_masked_numbers_are_not_checked(settings: Any, backends: dict[str, Any]) -> None:
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]], device=DEVICE)
    ids = IDS.clone().to(DEVICE)
    ids[0, 2] = 10**6
    batch, (words, *_) = read_inputs(settings("bert"), backends["cuda"], ids, mask)
    assert batch.lengths == [2, 3] and words.tolist() == [4, 5, 7, 8, 9]


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
def test_empty_batches(shape: tuple[int, int], settings: Any, backends: dict[str, Any]) -> None:
    ids = torch.zeros(shape, dtype=torch.int64, device=DEVICE)
    batch, columns = read_inputs(settings("bert"), backends["cuda"], ids)
    assert batch.lengths == [0] * shape[0] and [len(column) for column in columns] == [0, 0, 0]
    assert starts_with_first_tokens(batch) is (shape[0] == 0)
    assert len(first_tokens(batch)) == shape[0]


def test_a_family_without_token_types_ignores_them(settings: Any, backends: dict[str, Any]) -> None:
    for backend in backends.values():
        batch, columns = read_inputs(
            settings("distilbert"), backend, IDS.to(DEVICE), token_type_ids="anything"
        )
        assert len(columns) == 2 and batch.lengths == [3, 3]


def test_parts_of_a_batch_do_not_keep_what_belongs_to_the_whole(
    settings: Any, backends: dict[str, Any]
) -> None:
    batch, _ = read_inputs(settings("bert"), backends["cuda"], IDS.to(DEVICE))
    assert batch.starts is not None and batch.starts.tolist() == [0, 3, 6] and batch.leads
    for part, _ in batch.split(3):
        assert part.starts is None and part.leads is None


def test_inputs_on_the_cpu_are_read_there_and_moved(settings: Any) -> None:
    """The meta device stands for a GPU: shapes, and what the host knows."""
    backend = Backend(torch.device("meta"), torch.float32, "reference")
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    batch, columns = read_inputs(settings("bert"), backend, IDS, mask)
    moved = (*columns, batch.index, batch.row_positions, batch.starts)
    assert all(tensor is not None and tensor.is_meta for tensor in moved)
    assert [len(column) for column in columns] == [5, 5, 5]
    assert batch.lengths == [2, 3] and batch.leads and len(first_tokens(batch)) == 2
    with pytest.raises(ValueError, match="input_ids: 61 is out of range"):
        read_inputs(settings("bert"), backend, IDS + 52, mask)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs two kinds of devices")
def test_inputs_of_two_devices_meet_on_the_models(settings: Any, backends: dict[str, Any]) -> None:
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    batch, _ = read_inputs(settings("bert"), backends["cuda"], IDS.cuda(), mask)
    assert batch.index.is_cuda and batch.lengths == [2, 3]
