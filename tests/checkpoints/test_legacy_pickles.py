"""Pickles of older torch and of training scripts: what opens, and that nothing in them runs."""

from __future__ import annotations

import io
import os
import pickle
import sys
import tarfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertForMaskedLM

from sparse_runtime.checkpoints import CheckpointError, open_checkpoint

WEIGHT = "encoder.layer.0.dense.weight"
FORMS = pytest.mark.parametrize("zipped", [True, False])


def save(directory: Path, data: Any, *, zipped: bool) -> None:
    torch.save(data, directory / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)


@FORMS
def test_an_ordered_state_dict_with_module_versions_opens(
    zipped: bool, bert: BertForMaskedLM, write: Callable[..., Path]
) -> None:
    state = bert.state_dict()
    assert isinstance(state, OrderedDict)
    assert state._metadata  # what torch pickles beside the entries
    directory = write({}, "torch")
    save(directory, state, zipped=zipped)
    checkpoint = open_checkpoint(directory)
    assert {*checkpoint.tensors, *checkpoint.aliases} == set(state)
    assert all(torch.equal(checkpoint.tensors[name], state[name]) for name in checkpoint.tensors)


@FORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_parameters_open_as_tensors(
    zipped: bool, dtype: torch.dtype, write: Callable[..., Path]
) -> None:
    # _rebuild_parameter, of which the inner pickle is _rebuild_tensor_v2.
    weight = torch.nn.Parameter(torch.arange(6.0).view(2, 3).to(dtype))
    directory = write({}, "torch")
    save(directory, {WEIGHT: weight}, zipped=zipped)
    opened = open_checkpoint(directory).tensors[WEIGHT]
    assert type(opened) is Tensor
    assert torch.equal(opened, weight.detach())


@FORMS
def test_views_of_one_storage_open_as_they_were(zipped: bool, write: Callable[..., Path]) -> None:
    storage = torch.arange(12.0)
    views = {WEIGHT: storage[:6].view(2, 3), "encoder.layer.0.dense.bias": storage[8:10]}
    directory = write({}, "torch")
    save(directory, views, zipped=zipped)
    checkpoint = open_checkpoint(directory)
    assert all(torch.equal(checkpoint.tensors[name], tensor) for name, tensor in views.items())


@FORMS
@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_a_training_checkpoint_around_the_tensors_is_refused(
    key: str, zipped: bool, write: Callable[..., Path]
) -> None:
    directory = write({}, "torch")
    save(directory, {key: {WEIGHT: torch.ones(2, 2)}, "epoch": 3}, zipped=zipped)
    with pytest.raises(CheckpointError, match=rf"epoch, {key}; save the model's state_dict\(\)"):
        open_checkpoint(directory)


class Payload:
    """Unpickling it by the ordinary rules makes a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


class InAttributes:
    """Pickles as a parameter whose extra state is the payload."""

    def __init__(self, payload: Payload) -> None:
        self.payload = payload

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild = torch._utils._rebuild_parameter_with_state
        return (rebuild, (torch.ones(2, 2), True, OrderedDict(), {"x": self.payload}))


class InHooks:
    """Pickles as a parameter whose backward hooks hold the payload."""

    def __init__(self, payload: Payload) -> None:
        self.payload = payload

    def __reduce__(self) -> tuple[Any, ...]:
        hooks = OrderedDict(hook=self.payload)
        return (torch._utils._rebuild_parameter, (torch.ones(2, 2), True, hooks))


def in_metadata(payload: Payload) -> OrderedDict[str, Tensor]:
    state = OrderedDict({WEIGHT: torch.ones(2, 2)})
    state._metadata = {"": payload}  # type: ignore[attr-defined]
    return state


PLACES: dict[str, Callable[[Payload], Any]] = {
    "as the file": lambda payload: payload,
    "as a value": lambda payload: {WEIGHT: torch.ones(2, 2), "x": payload},
    "as a key": lambda payload: {WEIGHT: torch.ones(2, 2), (payload,): torch.ones(1)},
    "in the module versions": in_metadata,
    "in a parameter's hooks": lambda payload: {WEIGHT: InHooks(payload)},
    "in a parameter's attributes": lambda payload: {WEIGHT: InAttributes(payload)},
    "in a training checkpoint": lambda payload: {"state_dict": {WEIGHT: payload}},
}


@FORMS
@pytest.mark.parametrize("place", list(PLACES))
def test_a_payload_runs_nowhere(
    place: str, zipped: bool, write: Callable[..., Path], tmp_path: Path
) -> None:
    directory, victim = write({}, "torch"), tmp_path / "victim"
    save(directory, PLACES[place](Payload(victim)), zipped=zipped)
    with pytest.raises(CheckpointError, match="without running code"):
        open_checkpoint(directory)
    assert not victim.exists()
    # The payload is real: ordinary unpickling does run it.
    try:
        torch.load(directory / "pytorch_model.bin", weights_only=False)
    finally:
        assert victim.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_bare_pickle_of_any_protocol_runs_nothing(
    protocol: int, write: Callable[..., Path], tmp_path: Path
) -> None:
    directory, victim = write({}, "torch"), tmp_path / "victim"
    data = pickle.dumps(Payload(victim), protocol)
    (directory / "pytorch_model.bin").write_bytes(data)
    with pytest.raises(CheckpointError, match="without running code"):
        open_checkpoint(directory)
    assert not victim.exists()


def test_the_tar_form_before_torch_0_2_runs_nothing(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    directory, victim = write({}, "torch"), tmp_path / "victim"
    payload = pickle.dumps(Payload(victim), 2)
    with tarfile.open(directory / "pytorch_model.bin", "w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            member.size = len(payload)
            archive.addfile(member, io.BytesIO(payload))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        open_checkpoint(directory)
    assert not victim.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_the_header_of_the_old_form_runs_nothing(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    # Magic number, protocol and system information are pickles of their own before the data.
    directory, victim = write({}, "torch"), tmp_path / "victim"
    magic, protocol = 0x1950A86A20F9469CFC6C, 1001
    system = {"protocol_version": protocol, "little_endian": sys.byteorder == "little"}
    header = [magic, protocol, system]
    for place in range(len(header)):
        parts = [*header[:place], Payload(victim), *header[place + 1 :], {WEIGHT: 1}, []]
        data = b"".join(pickle.dumps(part, 2) for part in parts)
        (directory / "pytorch_model.bin").write_bytes(data)
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
            open_checkpoint(directory)
        assert not victim.exists(), place


@FORMS
def test_tensors_read_negated_or_conjugated_keep_their_signs(
    zipped: bool, write: Callable[..., Path]
) -> None:
    # The imaginary part of a conjugate is a view with the negative bit.
    weight = torch.complex(torch.zeros(2, 3), torch.arange(6.0).view(2, 3)).conj().imag
    assert weight.is_neg()
    directory = write({}, "torch")
    save(directory, {WEIGHT: weight, "other": torch._neg_view(weight)}, zipped=zipped)
    checkpoint = open_checkpoint(directory)
    assert not checkpoint.aliases
    opened = checkpoint.tensors[WEIGHT]
    assert not opened.is_neg()
    assert opened.flatten().tolist() == [0, -1, -2, -3, -4, -5]
    assert opened.contiguous().numpy().tolist() == opened.tolist()
    assert torch.equal(checkpoint.tensors["other"], -opened)
