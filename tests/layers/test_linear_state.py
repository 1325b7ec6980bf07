"""How a Linear travels: state dicts, copies, pickles, devices, types, processes."""

from __future__ import annotations

import copy
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, multiprocessing, nn

import sparse_runtime as sr
from sparse_runtime.layers.state import MAX_SPEC_BYTES
from sparse_runtime.testing import make_activations, make_packed

OUT, IN = 21, 43
STRUCTURES = {"dense": None, "unstructured": 0.8, "2:4": None, "block:4x1": 0.5}
VALUES = ("fp32", "bf16", "fp16", "int8", "int4")


def layer_of(
    structure: str = "dense", values: str = "int8", *, seed: int = 0, bias: bool = True
) -> sr.Linear:
    packed = make_packed((OUT, IN), structure, STRUCTURES[structure], values=values, seed=seed)
    return sr.Linear(packed, make_activations(1, OUT, seed=seed)[0] if bias else None)


def tensors_of(layer: sr.Linear) -> dict[str, Tensor]:
    return layer.packed.tensors()


def same(a: sr.Linear, b: sr.Linear) -> bool:
    """Whether two layers hold the same bytes and run them to the same result."""
    x = make_activations(5, IN, seed=9)
    mine, theirs = tensors_of(a), tensors_of(b)
    return (
        a.spec == b.spec
        and mine.keys() == theirs.keys()
        and all(torch.equal(mine[name], theirs[name]) for name in mine)
        and all(mine[name].dtype == theirs[name].dtype for name in mine)
        and torch.equal(a(x), b(x))
    )


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("values", VALUES)
def test_state_dict_round_trip(structure: str, values: str) -> None:
    # Another seed has other nonzeros, so unstructured and block tensors differ in length.
    source, target = layer_of(structure, values), layer_of(structure, values, seed=1)
    names = {"values", *tensors_of(source), "bias", "_extra_state"}
    assert set(source.state_dict()) == names
    assert not same(source, target)
    assert str(target.load_state_dict(source.state_dict())) == "<All keys matched successfully>"
    assert same(source, target)
    # Copied, not shared.
    assert target.values.data_ptr() != source.values.data_ptr()


def test_a_state_dict_of_another_structure_brings_its_spec() -> None:
    source, target = layer_of("2:4", "int8"), layer_of("unstructured", "bf16", seed=1)
    target.load_state_dict(source.state_dict())
    assert same(source, target)
    assert set(target.state_dict()) == set(source.state_dict())
    assert "bitmask" not in dict(target.named_buffers())


def test_the_spec_travels_as_json_bytes() -> None:
    layer = layer_of("2:4")
    state = layer.state_dict()["_extra_state"]
    assert state.dtype == torch.uint8
    assert json.loads(bytes(state.tolist())) == layer.spec.to_dict()


def test_safetensors_and_weights_only_loading_take_the_state_dict(tmp_path: Path) -> None:
    model = nn.Sequential(layer_of("2:4"), nn.ReLU())
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    torch.save(model.state_dict(), tmp_path / "model.pt")
    for state in (
        load_file(tmp_path / "model.safetensors"),
        torch.load(tmp_path / "model.pt", weights_only=True),
    ):
        target = nn.Sequential(layer_of("2:4", seed=1), nn.ReLU())
        target.load_state_dict(state)
        assert same(target[0], model[0])


Damage = Callable[[dict[str, Any]], object]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "missing tensor": (lambda s: s.pop("positions"), r"Missing key\(s\).*positions"),
    "missing bias": (lambda s: s.pop("bias"), r"Missing key\(s\).*bias"),
    "missing spec": (lambda s: s.pop("_extra_state"), r"Missing key\(s\).*_extra_state"),
    "unexpected tensor": (lambda s: s.update(zeros=torch.ones(1)), r"Unexpected key\(s\).*zeros"),
    "dtype": (
        lambda s: s.update(values=s["values"].int()),
        r"values: expected torch.int8 \[21, 22\], got torch.int32",
    ),
    "size": (lambda s: s.update(values=s["values"][:, 1:]), r"got torch.int8 \[21, 21\]"),
    "scale": (lambda s: s.update(scales=-s["scales"]), "scales: expected finite numbers above 0"),
    "positions": (lambda s: s["positions"].fill_(0), "positions: expected ascending positions"),
    "bias shape": (lambda s: s.update(bias=torch.ones(3)), r"bias: expected floats \[21\]"),
    "bias NaN": (lambda s: s["bias"].fill_(torch.nan), "bias: expected finite numbers"),
    "spec type": (lambda s: s.update(_extra_state={"shape": [21, 43]}), "_extra_state: expected"),
    "spec text": (
        lambda s: s.update(_extra_state=torch.tensor([123, 7], dtype=torch.uint8)),
        "_extra_state: not JSON",
    ),
    "spec size": (
        lambda s: s.update(_extra_state=torch.zeros(MAX_SPEC_BYTES + 1, dtype=torch.uint8)),
        "_extra_state: 4097 bytes, expected at most 4096",
    ),
    "list": (lambda s: s.update(values=[1, 2]), "values: expected a tensor .* got list"),
    "meta": (lambda s: s.update(scales=s["scales"].to("meta")), "scales: .* on the meta device"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_dict_is_refused_and_changes_nothing(damage: str) -> None:
    source, target = layer_of("2:4"), layer_of("2:4", seed=1)
    before = copy.deepcopy(target)
    state = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    change, message = DAMAGES[damage]
    change(state)
    with pytest.raises(RuntimeError, match=f"(?s){message}"):
        target.load_state_dict(state)
    # Here the weight is whole; load_state_dict loads it and then raises, as for any module.
    whole = ("unexpected tensor", "missing spec", "missing bias")
    assert same(before, target) == (damage not in whole)


def test_another_shape_is_refused_by_its_numbers() -> None:
    source = nn.Sequential(sr.Linear(make_packed((OUT, IN + 1), values="int8")))
    target = nn.Sequential(sr.Linear(make_packed((OUT, IN), values="int8")))
    message = r"0: weight: expected shape \[21, 43\] \(out_features, in_features\), got \[21, 44\]"
    with pytest.raises(RuntimeError, match=message):
        target.load_state_dict(source.state_dict())


def test_loading_without_strict_takes_what_is_whole() -> None:
    source, target = layer_of("2:4"), layer_of("2:4", seed=1)
    before = copy.deepcopy(target)
    partial = {"values": source.values, "bias": source.bias}
    result = target.load_state_dict(partial, strict=False)
    assert set(result.missing_keys) == {"positions", "scales", "_extra_state"}
    assert same(before, target)
    whole = {name: t for name, t in source.state_dict().items() if name != "_extra_state"}
    result = target.load_state_dict(whole | {"more": torch.ones(1)}, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == (["_extra_state"], ["more"])
    assert same(source, target)


@pytest.mark.parametrize("assign", [True, False])
def test_without_strict_a_missing_bias_is_the_layers_own(assign: bool) -> None:
    source, target = layer_of("2:4", bias=False), layer_of("unstructured", seed=1)
    expected = sr.Linear(source.packed, target.bias)
    result = target.load_state_dict(source.state_dict(), strict=False, assign=assign)
    assert (result.missing_keys, result.unexpected_keys) == (["bias"], [])
    assert same(target, expected)
    empty = layer_of("2:4").to("meta")
    empty.load_state_dict(source.state_dict(), strict=False, assign=True)
    assert empty.values.is_meta  # it has no bias to keep


def test_a_dense_state_dict_says_what_is_missing() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)Missing key.*values.*Unexpected key.*weight"):
        layer_of("2:4").load_state_dict(nn.Linear(IN, OUT).state_dict())


def test_load_state_dict_pre_hooks_run() -> None:
    source, target = layer_of("2:4"), layer_of("2:4", seed=1)

    def rename(module: nn.Module, state: dict[str, Any], *_: object) -> None:
        for key in [key for key in state if key.startswith("old_")]:
            state[key.removeprefix("old_")] = state.pop(key)

    target.register_load_state_dict_pre_hook(rename)
    target.load_state_dict({f"old_{name}": t for name, t in source.state_dict().items()})
    assert same(source, target)


def through_pickle(layer: sr.Linear) -> sr.Linear:
    return pickle.loads(pickle.dumps(layer))


def through_torch_save(layer: sr.Linear) -> sr.Linear:
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("way", [copy.deepcopy, through_pickle, through_torch_save])
def test_copies_are_whole_and_their_own(way: Callable[[sr.Linear], sr.Linear], values: str) -> None:
    layer = layer_of("unstructured", values)
    other = way(layer)
    assert same(layer, other)
    assert other.explain() == layer.explain()
    assert not other.training
    expected = copy.deepcopy(other)
    layer.load_state_dict(layer_of("unstructured", values, seed=1).state_dict())
    assert same(other, expected)


def test_a_pickle_holds_the_packed_tensors_alone() -> None:
    # Dense int8 has a prepared layout of its own size; twice that would not pass.
    layer = sr.Linear(make_packed((256, 512), values="int8"))
    assert len(pickle.dumps(layer)) < 1.2 * layer.packed.size().total


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_packed_tensors_never_change_type(values: str, dtype: torch.dtype) -> None:
    layer = layer_of("2:4", values)
    before = {name: (t.dtype, t.clone()) for name, t in tensors_of(layer).items()}
    exact = layer.packed.dequantize(torch.float64)
    assert layer.to(dtype) is layer
    for name, tensor in tensors_of(layer).items():
        assert tensor.dtype == before[name][0]
        assert torch.equal(tensor, before[name][1])
    # Bias and the view follow, as nn.Linear's would.
    assert layer.bias is not None
    assert layer.bias.dtype == layer.weight.dtype == dtype
    assert torch.allclose(layer.weight.double(), exact, rtol=torch.finfo(dtype).eps)
    assert layer(make_activations(3, IN, dtype=dtype)).dtype == dtype
    fresh = sr.Linear(layer.packed, layer.bias, dtype=dtype)
    x = make_activations(3, IN, dtype=dtype)
    assert torch.equal(layer(x), fresh(x))
    assert layer.float()(x.float()).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn])
@pytest.mark.filterwarnings("ignore:Complex modules")
def test_types_that_no_input_has_are_refused(dtype: torch.dtype) -> None:
    layer = layer_of()
    with pytest.raises(TypeError, match=rf"linear: expected one of torch\.float32, .* got {dtype}"):
        layer.to(dtype)
    assert layer.bias is not None and layer.bias.dtype == layer.weight.dtype == torch.float32
    assert same(layer, layer_of())


@pytest.mark.parametrize("method", ["half", "bfloat16", "double", "float"])
def test_type_methods_work_through_a_parent(method: str) -> None:
    model = nn.Sequential(layer_of("2:4"), nn.LayerNorm(OUT))
    getattr(model, method)()
    x = make_activations(3, IN, dtype=model[1].weight.dtype)
    assert model(x).dtype == model[1].weight.dtype
    assert model[0].scales.dtype == torch.float32


def test_the_meta_device_and_back() -> None:
    source = layer_of("unstructured")
    empty = copy.deepcopy(layer_of("unstructured", seed=1)).to("meta")
    assert all(t.is_meta for t in tensors_of(empty).values())
    with pytest.raises(RuntimeError, match="expected input on meta"):
        empty(torch.ones(2, IN))
    with pytest.raises(RuntimeError, match="not prepared on meta"):
        empty(torch.ones(2, IN, device="meta"))
    with pytest.raises(RuntimeError, match="on the meta device; pass assign=True"):
        empty.load_state_dict(source.state_dict())
    state = source.state_dict()
    empty.load_state_dict(state, assign=True)
    assert same(source, empty)
    assert empty.values.data_ptr() == state["values"].data_ptr()
    # The other way of torch: memory first, then copies.
    empty = layer_of("unstructured", seed=1).to("meta").to_empty(device="cpu")
    with pytest.raises(RuntimeError, match="not prepared on cpu"):
        empty(torch.ones(2, IN))
    empty.load_state_dict(source.state_dict())
    assert same(source, empty)


def test_moving_where_the_backend_does_not_run_leaves_nothing_stale(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packed = make_packed((OUT, IN), values="int8")
    layer = sr.Linear(packed, backend="cpu")

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("backend 'cpu' cannot run this layer")

    monkeypatch.setattr("sparse_runtime.layers.module.choose", refuse)
    with pytest.raises(RuntimeError, match="cannot run this layer"):
        layer.double()
    with pytest.raises(RuntimeError, match="not prepared on cpu"):
        layer(torch.ones(2, IN))
    monkeypatch.undo()
    layer.float()
    assert torch.equal(layer(torch.ones(2, IN)), sr.Linear(packed)(torch.ones(2, IN)))


def test_share_memory_shares_without_a_rebuild() -> None:
    layer = layer_of("2:4")
    prepared = layer.prepared
    layer.share_memory()
    assert layer.prepared is prepared
    assert all(t.is_shared() for t in tensors_of(layer).values())
    assert all(t.is_shared() for t in prepared.buffers())


def answer(layer: sr.Linear, x: Tensor, queue: Any) -> None:
    queue.put(layer(x).tolist())


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_another_process_runs_the_layer(start_method: str) -> None:
    # Enough work that this process has used its threads before it forks.
    layer, x = sr.Linear(make_packed((256, 512), values="int8")), make_activations(256, 512)
    expected = layer(x)
    context = multiprocessing.get_context(start_method)
    queue = context.Queue()
    process = context.Process(target=answer, args=(layer, x, queue))
    process.start()
    try:
        result = torch.tensor(queue.get(timeout=60))
    finally:
        process.kill()
        process.join()
    assert torch.equal(result, expected)


def test_layers_made_in_inference_mode_load_and_copy() -> None:
    with torch.inference_mode():
        layer = layer_of("2:4")
    source = layer_of("2:4", seed=1)
    layer.load_state_dict(source.state_dict())
    assert same(layer, source)
    assert same(copy.deepcopy(layer), source)
