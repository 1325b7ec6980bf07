"""The model as an object: loading, saving, moving, copying, explaining, and what it refuses."""

from __future__ import annotations

import copy
import json
import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from sparse_runtime import SparseModel
from sparse_runtime.encoders import hub
from sparse_runtime.ops.calibration import FEW, MANY, Cost
from sparse_runtime.store import FormatError

IDS = torch.arange(4, 10).view(2, 3)


@pytest.fixture
def packed(make_reference: Any, make_packed: Any) -> Any:
    return make_packed(make_reference("bert", "ForMaskedLM"), "unstructured", sparsity=0.5)


@pytest.fixture
def model(packed: Any) -> SparseModel:
    return SparseModel.from_packed(packed)


def test_save_and_load(model: SparseModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "a")
    loaded = SparseModel.from_pretrained(tmp_path / "a")
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert loaded.task == "masked_lm" and loaded.config.model_type == "bert"
    loaded.save_pretrained(str(tmp_path / "b"))
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with pytest.raises((FileExistsError, ValueError), match="overwrite"):
        loaded.save_pretrained(tmp_path / "b")
    loaded.save_pretrained(tmp_path / "b", overwrite=True)


def test_an_unpacked_checkpoint_is_sent_to_convert(minilm: Path) -> None:
    with pytest.raises(ValueError, match=r"unpacked checkpoint; pack it first with .*convert"):
        SparseModel.from_pretrained(minilm)


def test_a_path_that_is_no_directory(tmp_path: Path) -> None:
    for wrong in (tmp_path / "none", str(tmp_path / "none"), "./none", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="or a hub id such as 'owner/name'"):
            SparseModel.from_pretrained(wrong)
    with pytest.raises(FormatError):
        SparseModel.from_pretrained(tmp_path)  # a directory of nothing


def test_hub_id(model: SparseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model.save_pretrained(tmp_path / "snapshot")
    asked = []

    def file(repo: str, name: str, **options: Any) -> str:
        asked.append((repo, name, options["revision"], options["local_files_only"]))
        return str(tmp_path / "snapshot" / name)

    def snapshot(repo: str, **options: Any) -> str:
        asked.append((repo, "*", options["revision"], options["local_files_only"]))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", file)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    loaded = SparseModel.from_pretrained("owner/name", revision="v2", local_files_only=True)
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert asked == [
        ("owner/name", "config.json", "v2", True),
        ("owner/name", "*", "v2", True),
    ]


def test_an_unpacked_repository_is_refused_before_its_weights_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda *_, **__: str(tmp_path / "config.json")
    )
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("fetched")
    )
    with pytest.raises(ValueError, match="owner/name: this is an unpacked checkpoint"):
        SparseModel.from_pretrained("owner/name")


def test_no_network(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="owner/name: no directory of that name, nor"):
        hub.resolve(
            "owner/name", revision=None, token=None, cache_dir=tmp_path, local_files_only=True
        )


def test_moving_makes_the_model_anew(packed: Any) -> None:
    model = SparseModel.from_packed(packed)
    exact = model(IDS).logits
    assert model.to(torch.bfloat16) is model
    assert model.dtype == torch.bfloat16
    assert torch.equal(
        model(IDS).logits, SparseModel.from_packed(packed, dtype="bfloat16")(IDS).logits
    )
    model.float().to("cpu")  # nothing was lost on the way
    assert torch.equal(model(IDS).logits, exact)
    with pytest.raises(ValueError, match="float64"):
        model.double()
    parent = torch.nn.Sequential(model)
    parent.half()
    assert model.dtype == torch.float16


def test_copies(model: SparseModel) -> None:
    expected = model(IDS).logits
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(IDS).logits, expected)
        assert (other.dtype, other.device) == (model.dtype, model.device)


def test_inference_only(model: SparseModel) -> None:
    assert not model.training and not model.eval().training
    with pytest.warns(UserWarning, match="SparseModel stays in evaluation"):
        assert not model.train().training
    # a frozen part of a module that is trained
    parent = torch.nn.Sequential(torch.nn.Dropout(), model, torch.nn.Dropout())
    with pytest.warns(UserWarning, match="SparseModel stays in evaluation"):
        parent.train()
    assert [part.training for part in parent] == [True, False, True]
    assert not list(model.parameters())
    with torch.enable_grad():
        assert not model(IDS).logits.requires_grad
    # ordinary tensors: a classifier may be trained on them
    weight = torch.ones(61, requires_grad=True)
    (model(IDS).logits * weight).sum().backward()
    assert weight.grad is not None


def test_autocast_has_no_effect(model: SparseModel) -> None:
    expected = model(IDS).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = model(IDS).logits
    assert torch.equal(got, expected)


def test_calls_overlap(model: SparseModel) -> None:
    inputs = [
        torch.randint(4, 61, (2, n), generator=torch.Generator().manual_seed(n))
        for n in range(1, 25)
    ]
    expected = [model(ids).logits for ids in inputs]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda ids: model(ids).logits, inputs * 3))
    for mine, other in zip(got, expected * 3, strict=True):
        assert torch.equal(mine, other)


def test_explain_has_a_block_for_each_kind_of_layer(
    packed: Any, make_reference: Any, make_packed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Costs of no machine in particular, for which every layer runs dense, and so small that layers
    # with other zeros, but as many, state the same figures.
    costs = {
        layout: {FEW: Cost(price, 0.0), MANY: Cost(price, 0.0)}
        for layout, price in (("dense32", 1e-12), ("sparse32", 1e-10))
    }
    monkeypatch.setattr("sparse_runtime.ops.layouts.machine_costs", lambda: costs)
    # the second layer keeps fewer values, so that its notes state other figures
    sparser = make_packed(make_reference("bert", "ForMaskedLM"), "unstructured", sparsity=0.9)
    name = "bert.encoder.layer.1.output.dense"
    packed.linears[name] = sparser.linears[name]
    text = SparseModel.from_packed(packed).explain()
    assert text.startswith("backend cpu on cpu, activations float32\n")
    headings = [line for line in text.splitlines()[1:] if not line.startswith(" ")]
    assert [line.split(":")[0] for line in headings] == [
        " + ".join(f"bert.encoder.layer.*.attention.self.{n}" for n in ("query", "key", "value")),
        "bert.encoder.layer.*.attention.output.dense",
        "bert.encoder.layer.*.intermediate.dense",
        "bert.encoder.layer.*.output.dense",
    ]
    assert all(line.endswith(" (2 layers)") for line in headings[:3])
    assert headings[3].endswith(" (2 layers; figures of the first)")
    assert "reference: cpu.panels comes first" in text
    asked = SparseModel.from_packed(packed, backend="reference").explain()
    assert "cpu.float: backend 'reference' was requested" in asked


def test_explain_measures_the_first_layer_of_each_kind(
    packed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[tuple[int, int]] = []

    def seconds(weight: Any, layout: str, regime: str) -> float:
        timed.append((weight.n, weight.k))
        return 12.3e-6

    model = SparseModel.from_packed(packed)
    plain = model.explain()
    with monkeypatch.context() as patch:
        patch.setattr("sparse_runtime.ops.cpu_panels.panel_seconds", seconds)
        assert model.explain() == plain and not timed
        text = model.explain(measure=True)
    # Four kinds in two layers each; hidden 32, a feed-forward layer of 48.
    assert set(timed) == {(96, 32), (32, 32), (48, 32), (32, 48)}
    assert text.count(" (2 layers; figures of the first)") == 4
    assert text.count("measured 12 us") == len(timed) == plain.count("predicted ")
    # And for real.
    times = re.findall(r"measured ([\d.]+) us", model.explain(measure=True))
    assert len(times) == len(timed) and all(0 < float(time) < 1e5 for time in times)


def test_explain_measures_nothing_of_the_reference(packed: Any) -> None:
    model = SparseModel.from_packed(packed, backend="reference")
    assert model.explain(measure=True) == model.explain()
    assert "figures of the first" not in model.explain(measure=True)


def test_unknown_backend_and_dtype(packed: Any) -> None:
    with pytest.raises(ValueError, match="backend 'fast'"):
        SparseModel.from_packed(packed, backend="fast")
    with pytest.raises(ValueError, match="dtype 'int8'"):
        SparseModel.from_packed(packed, dtype="int8")


def test_only_a_packed_model_is_taken() -> None:
    for make in (SparseModel, SparseModel.from_packed):
        with pytest.raises(TypeError, match=r"packed: expected a PackedModel, .* use .*from_p"):
            make("packed")  # type: ignore[operator]
    with pytest.raises(TypeError, match="path_or_id: expected a path, got NoneType"):
        SparseModel.from_pretrained(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="path_or_id: expected a path, got an empty string"):
        SparseModel.from_pretrained("")


def test_devices_that_cannot_run(packed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    for device, message in (
        ("toaster", r"device \(--device\) 'toaster': expected one of torch"),
        ("cuda:1", r"device \(--device\) 'cuda:1': torch sees 0 CUDA devices"),
        ("meta", "device meta: expected one that holds data"),
    ):
        with pytest.raises(ValueError, match=message):
            SparseModel.from_packed(packed, device=device)
    model = SparseModel.from_packed(packed)
    expected = model(IDS).logits
    with pytest.raises(ValueError, match="device meta"):
        model.to("meta")
    assert model.device.type == "cpu"
    assert torch.equal(model(IDS).logits, expected)


def test_what_forward_cannot_give(model: SparseModel) -> None:
    assert torch.equal(model(IDS, output_attentions=False).logits, model(IDS).logits)
    with pytest.raises(ValueError, match="attention weights are not kept"):
        model(IDS, output_attentions=True)
    with pytest.raises(RuntimeError, match=r"torch\.jit\.trace would record"):
        torch.jit.trace(lambda ids: model(ids).logits, IDS)


def test_repr_says_what_it_is(model: SparseModel) -> None:
    assert repr(model) == (
        "SparseModel(bert, task=masked_lm, layers=2, hidden=32, device=cpu, dtype=torch.float32, "
        "backend=cpu)"
    )


def test_importing_the_model_leaves_transformers_alone() -> None:
    code = (
        "import sys, sparse_runtime as sr; sr.SparseModel; assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def on_both_backends(make_reference: Any, make_packed: Any) -> tuple[SparseModel, SparseModel]:
    packed = make_packed(make_reference("bert", "Model"), "dense", "fp32")
    return tuple(SparseModel.from_packed(packed, backend=name) for name in ("auto", "reference"))


def test_rows_without_tokens_among_long_ones(
    on_both_backends: tuple[SparseModel, SparseModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of few tokens: masked rows before, between and behind sequences that fill one each."""
    monkeypatch.setattr("sparse_runtime.ops.cpu_backend.part_tokens", lambda *_: 4)
    ours, reference = on_both_backends
    ids = torch.randint(4, 20, (6, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0], [1], [0], [1], [1], [0]]).expand(6, 5).contiguous()
    for _ in range(2):  # recorded, then run again
        found = ours(ids, mask).last_hidden_state
        torch.testing.assert_close(
            found, reference(ids, mask).last_hidden_state, rtol=1e-4, atol=1e-4
        )
        assert not found[[0, 2, 5]].any()


def test_parts_are_as_long_as_the_threads_of_the_pass_call_for(
    on_both_backends: tuple[SparseModel, SparseModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def part_tokens(layers: Any, threads: int) -> int:
        assert [len(linears) for linears in layers] == [4, 4]
        asked.append(threads)
        return 64

    monkeypatch.setattr("sparse_runtime.ops.cpu_backend.part_tokens", part_tokens)
    ours, _ = on_both_backends
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            ours(torch.tensor([[4, 5, 6]]))
    finally:
        torch.set_num_threads(threads)
    assert asked == [1, 2]  # the answer for 1 is known by then


def test_a_recorded_pass_takes_other_batches(
    on_both_backends: tuple[SparseModel, SparseModel],
) -> None:
    """Shapes, masks and numbers of threads other than those of the pass that was recorded."""
    ours, reference = on_both_backends
    generator = torch.Generator().manual_seed(0)
    threads = torch.get_num_threads()
    try:
        for shape, count in (((2, 9), 1), ((1, 1), 2), ((7, 12), 3), ((2, 9), 1)):
            torch.set_num_threads(count)
            ids = torch.randint(4, 20, shape, generator=generator)
            mask = (torch.rand(shape, generator=generator) < 0.7).long()
            mask[:, 0] = 1
            torch.testing.assert_close(
                ours(ids, mask).last_hidden_state,
                reference(ids, mask).last_hidden_state,
                rtol=1e-4,
                atol=1e-4,
            )
    finally:
        torch.set_num_threads(threads)
