"""The CUDA backend on a GPU: graphs, streams, threads, captures, devices.

That its outputs are right is also tested without a GPU (tests/encoders/test_cuda_encoders.py).
Run by benchmarks/gpu_check.sh.
"""

from __future__ import annotations

import re
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_runtime import SparseModel
from sparse_runtime.formats import compress
from sparse_runtime.kernels.attention import varlen
from sparse_runtime.ops.cuda.attention_choice import ATTENTION_VARIABLE
from sparse_runtime.ops.cuda.graphs import GRAPHS_VARIABLE, token_bucket, token_buckets
from sparse_runtime.spec import ActivationSpec
from sparse_runtime.store import PackedLinear, PackedModel

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
    reason="no CUDA device of capability 8.0 or later",
)

SIZES = {
    "vocab_size": 211,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "max_position_embeddings": 300,
}


@pytest.fixture(autouse=True)
def failed_captures_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*without CUDA graphs")
        yield


def make_packed(values: str = "int8", structure: str = "dense", **sizes: int) -> PackedModel:
    """A random BERT; all linear layers of its stack packed."""
    import transformers

    config = transformers.BertConfig(**{**SIZES, **sizes})
    torch.manual_seed(0)
    state = transformers.BertModel(config).eval().state_dict()
    for tensor in state.values():
        if (
            tensor.ndim == 1
        ):  # untouched norms and biases are ones and zeros: nobody would miss them
            tensor.add_(torch.randn_like(tensor) * 0.1)
    tensors: dict[str, Tensor] = {}
    linears: dict[str, PackedLinear] = {}
    for name, tensor in state.items():
        if re.match(r"encoder\..*\.weight", name) and tensor.ndim == 2:
            packed, _ = compress(tensor, structure=structure, values=values, prune=None)
            module = name.removesuffix(".weight")
            linears[module] = PackedLinear(packed, state[f"{module}.bias"])
        elif not re.match(r"encoder\.(?!.*LayerNorm).*\.bias", name):
            tensors[name] = tensor
    data = {**config.to_dict(), "architectures": ["BertModel"]}
    return PackedModel(data, linears, tensors)


def load(packed: PackedModel, dtype: torch.dtype = torch.bfloat16, **options: Any) -> SparseModel:
    options = {"device": "cuda", "backend": "cuda", **options}
    return SparseModel.from_packed(packed, dtype=dtype, **options)


def batch_of(*lengths: int, device: str = "cuda") -> dict[str, Tensor]:
    columns = max(lengths)
    generator = torch.Generator().manual_seed(sum(lengths))
    ids = torch.randint(4, 211, (len(lengths), columns), generator=generator)
    mask = (torch.arange(columns) < torch.tensor(lengths).unsqueeze(1)).long()
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def run(model: SparseModel, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).last_hidden_state


def runner_of(model: SparseModel) -> Any:
    (runner,) = model._backend._runners.values()
    return runner


def error_of(got: Tensor, expected: Tensor) -> float:
    """Relative, of all outputs."""
    return float((got.double() - expected.double()).norm() / expected.double().norm())


FLOATS = 2e-6
"""A dozen times what float32 makes of these models against float64. Weights of one layer that are
rounded to tf32 make 6e-6."""

STEPS = 2e-3
"""Three times what rows make that are quantized from floats of bf16's precision: as many values as
possible round to their other neighbour. Biases left out make 1e-2."""


BATCHES = [
    (1,),  # one token: the least bucket, blocks that do nothing
    (16,),  # a whole bucket
    (128,),
    (100, 3, 27),
    (300, 299, 1, 40),  # more than one key tile, more than one query block
    (5,) * 64,  # many short sequences
]


@pytest.mark.parametrize("values", ["fp32", "int8"])
@pytest.mark.parametrize("structure", ["dense", "block:64x64", "unstructured", "2:4"])
def test_every_bucket_is_close_to_the_reference(structure: str, values: str) -> None:
    packed = make_packed(values, structure)
    ours = load(packed, torch.float32)
    reference = load(packed, torch.float32, backend="reference")
    for lengths in BATCHES:
        batch = batch_of(*lengths)
        expected = run(reference, batch)
        for _ in range(3):  # launched, captured, replayed
            got = run(ours, batch)
            assert error_of(got, expected) < (FLOATS if values == "fp32" else STEPS)
            if len(lengths) == 64:
                # Most sequences have no value that rounds to its other neighbour (one float32 in
                # 1e5 does), and nothing else may differ: scales off by 1/64 would make 6e-4.
                errors = torch.tensor(list(map(error_of, got, expected)))
                assert errors.median() < FLOATS


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_no_further_off_than_the_reference(dtype: torch.dtype) -> None:
    packed = make_packed("fp32")
    batch = batch_of(100, 3, 27)
    exact = run(load(packed, torch.float32, backend="reference"), batch).double()
    ours, theirs = (run(load(packed, dtype, backend=b), batch) for b in ("cuda", "reference"))
    assert (ours.double() - exact).norm() < 2 * (theirs.double() - exact).norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("values", ["fp32", "int8"])
def test_pytorchs_attention_in_graphs(
    values: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Launched, captured, and replayed for other lengths of the same bucket, with rows behind the
    last sequence: no further off than ours."""
    if reason := varlen.unavailable(torch.device("cuda"), dtype, 32):
        pytest.skip(reason)
    packed = make_packed(values)
    exact = load(packed, torch.float32, backend="reference")
    triton = load(packed, dtype)
    monkeypatch.setenv(ATTENTION_VARIABLE, "varlen")
    theirs = load(packed, dtype)
    assert "-> torch.nn.attention.varlen over sequences" in theirs.explain()
    for lengths in ((100, 3, 27), (100, 3, 27), (90, 40, 1), (70, 2, 50, 9), (300, 299, 1, 40)):
        batch = batch_of(*lengths)
        expected = run(exact, batch)
        bound = 2 * error_of(run(triton, batch), expected) + STEPS
        for _ in range(3):
            assert error_of(run(theirs, batch), expected) < bound
    # 129 to 144 tokens of three or four sequences, none longer than 128, share one.
    assert len(runner_of(theirs).graphs) == 2
    monkeypatch.setenv(GRAPHS_VARIABLE, "0")
    without = load(packed, dtype)
    for lengths in ((100, 3, 27), (90, 40, 1)):
        batch = batch_of(*lengths)
        assert torch.equal(run(without, batch), run(theirs, batch))


@pytest.mark.parametrize("values", ["fp32", "int8"])
def test_graphs_change_no_bit(values: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = make_packed(values)
    with_graphs = load(packed)
    monkeypatch.setenv(GRAPHS_VARIABLE, "0")
    without = load(packed)
    assert "CUDA graphs: none" in without.explain()
    run(without, batch_of(3))  # reads the variable
    monkeypatch.delenv(GRAPHS_VARIABLE)
    for lengths in BATCHES * 2:
        batch = batch_of(*lengths)
        expected = run(without, batch)
        for _ in range(3):
            assert torch.equal(run(with_graphs, batch), expected)
    assert runner_of(without).graphs is None
    assert len(runner_of(with_graphs).graphs) >= 5


def test_a_graph_serves_other_batches_of_its_bucket() -> None:
    model = load(make_packed())
    first, second = batch_of(60, 50), batch_of(48, 57)
    assert token_bucket(110) == token_bucket(105)
    alone = run(load(make_packed()), second)
    for _ in range(2):
        run(model, first)
    captured = len(runner_of(model).graphs)
    assert torch.equal(run(model, second), alone)
    assert len(runner_of(model).graphs) == captured


def test_the_least_recently_used_graphs_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GRAPHS_VARIABLE, "2")
    model = load(make_packed())
    expected = {length: run(model, batch_of(length)) for length in (16, 32, 48, 64)}
    for _ in range(3):
        for length, rows in expected.items():
            assert torch.equal(run(model, batch_of(length)), rows)
            assert len(runner_of(model).graphs) <= 2


def test_memory_does_not_grow_with_what_has_run() -> None:
    model = load(make_packed())
    for lengths in BATCHES:
        for _ in range(2):
            run(model, batch_of(*lengths))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for lengths in BATCHES * 3:
        run(model, batch_of(*lengths))
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before


def test_warm_up_leaves_nothing_to_compile_or_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(make_packed())
    model.warm_up([(2, 64), (1, 20)])
    graphs = runner_of(model).graphs
    captured = len(graphs)
    assert captured == 2

    def fail(*arguments: object) -> None:
        raise AssertionError("captured again")

    monkeypatch.setattr(graphs, "_capture", fail)
    for shape in ((2, 64), (1, 20)):
        model(torch.full(shape, 5, device="cuda"))


def test_streams_wait_for_each_other() -> None:
    """The model's memory is one: passes on two streams must not overlap on the device."""
    model = load(make_packed())
    batches = [batch_of(100, 3, 27), batch_of(90, 20, 11)]
    expected = [run(model, batch) for batch in batches]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in batches]
    for _ in range(20):
        results = []
        for stream, batch in zip(streams, batches, strict=True):
            with torch.cuda.stream(stream):
                torch.cuda._sleep(100_000)  # cycles, so that the other stream would come first
                results.append(run(model, batch))
        torch.cuda.synchronize()
        for got, rows in zip(results, expected, strict=True):
            assert torch.equal(got, rows)


def test_threads_may_share_a_model() -> None:
    model = load(make_packed())
    lengths = [(100, 3, 27), (128,), (5,) * 20, (17, 60)]
    expected = [run(model, batch_of(*each)) for each in lengths]
    torch.cuda.synchronize()
    wrong: list[object] = []

    def work(number: int) -> None:
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                for i in range(30):  # captures happen in the middle of others' passes
                    which = (number + i) % len(lengths)
                    got = run(model, batch_of(*lengths[which]))
                    torch.cuda.current_stream().synchronize()
                    if not torch.equal(got, expected[which]):
                        wrong.append((number, i))
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_caller_may_capture_a_batch_without_padding() -> None:
    model = load(make_packed())
    ids = torch.randint(4, 211, (4, 32), device="cuda")
    expected = model(ids)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        captured = model(ids)
    # The model goes on with memory of its own, which the caller's graph does not share.
    run(model, batch_of(100, 3, 27))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured.last_hidden_state, expected.last_hidden_state)
    assert torch.equal(captured.pooler_output, expected.pooler_output)
    other = torch.randint(4, 211, (4, 32), device="cuda")
    rows = model(other).last_hidden_state
    ids.copy_(other)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured.last_hidden_state, rows)


def test_what_a_capture_cannot_hold_is_said() -> None:
    model = load(make_packed())
    batch = batch_of(9, 4)
    with (
        pytest.raises(RuntimeError, match="run the same batch once before"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        model(batch["input_ids"])
    run(model, batch)
    with (
        pytest.raises(RuntimeError, match="attention_mask: cannot be read while"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        run(model, batch)
    torch.cuda.synchronize()
    run(model, batch)  # the model is as it was


def test_moving_a_model() -> None:
    packed = make_packed()
    model = load(packed, torch.float32, device="cpu", backend="auto")
    cpu = run(model, batch_of(40, 7, device="cpu"))
    model.to("cuda")
    assert model.device == torch.device("cuda", torch.cuda.current_device())
    moved = run(model, batch_of(40, 7))
    assert error_of(moved.cpu(), cpu) < STEPS
    assert model.to("cuda") is model and len(model._backend._runners) == 1  # not made anew
    run(model, batch_of(40, 7))
    model.to("cpu")
    assert torch.equal(run(model, batch_of(40, 7, device="cpu")), cpu)


def test_inputs_on_the_cpu_give_the_same() -> None:
    model = load(make_packed())
    on_gpu = model(**batch_of(40, 7, 1))
    on_cpu = model(**batch_of(40, 7, 1, device="cpu"))
    assert on_cpu.last_hidden_state.is_cuda
    assert torch.equal(on_cpu.last_hidden_state, on_gpu.last_hidden_state)
    assert torch.equal(on_cpu.pooler_output, on_gpu.pooler_output)


def test_inputs_on_the_gpu_take_one_synchronization() -> None:
    model = load(make_packed())
    batch = batch_of(40, 7, 1)
    for _ in range(3):
        run(model, batch)
    torch.cuda.synchronize()
    with torch.profiler.profile() as profile:
        run(model, batch)
        torch.cuda.synchronize()
    copies = [e for e in profile.events() if "Memcpy DtoH" in e.name]
    assert len(copies) == 1


@pytest.mark.alone
def test_a_host_that_only_launches_does_not_wait_for_the_device() -> None:
    """Inputs on the CPU: nothing has to come back."""
    model = load(make_packed())
    batch = batch_of(40, 7, 1, device="cpu")
    for _ in range(3):
        run(model, batch)
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # about a second
    start = time.perf_counter()
    run(model, batch)
    assert time.perf_counter() - start < 0.5
    torch.cuda.synchronize()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    model = load(make_packed(), torch.float32)
    batch = batch_of(40, 7)
    expected = run(model, batch)
    with torch.autocast("cuda", dtype):
        for _ in range(3):
            assert torch.equal(run(model, batch), expected)


def test_inference_mode_may_come_and_go() -> None:
    model = load(make_packed())
    batch = batch_of(40, 7)
    with torch.inference_mode():
        expected = run(model, batch).clone()
    for _ in range(3):
        assert torch.equal(run(model, batch), expected)
    with torch.inference_mode():
        assert torch.equal(run(model, batch), expected)


def test_long_streams_run_in_chunks() -> None:
    packed = make_packed()
    model = load(packed)
    batch = batch_of(*[300] * 20)  # 6,000 tokens
    whole = run(model, batch)
    exact = run(load(packed, torch.float32, backend="reference"), batch)
    assert runner_of(model).memory.ids.shape[1] == 4096
    alone = [run(model, batch_of_row(batch, row)) for row in range(20)]
    for row, got in enumerate(alone):
        # Other tiles, and so other roundings to bf16: either is as far off, and they no farther
        # apart than both together.
        assert error_of(whole[row], got[0]) < 3 * error_of(got[0], exact[row])


def batch_of_row(batch: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    return {name: tensor[row : row + 1] for name, tensor in batch.items()}


@pytest.mark.parametrize(
    "activations",
    [
        ActivationSpec("dynamic", "uint8"),
        ActivationSpec("dynamic", "int8"),
        ActivationSpec("dynamic", "int8", narrow_range=False),
        ActivationSpec("static", "uint8", 0.03, 120),
    ],
)
def test_seven_launches_a_layer(activations: ActivationSpec) -> None:
    packed = make_packed()
    for name, linear in packed.linears.items():
        spec = replace(linear.packed.spec, activations=activations)
        packed.linears[name] = replace(linear, packed=replace(linear.packed, spec=spec))
    model = load(packed)
    run(model, batch_of(40, 7))
    plan = runner_of(model).plan
    counts = {plan.launches(rows) for rows in token_buckets(512)}
    assert counts == {1 + 7 * SIZES["num_hidden_layers"]}


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.device_count() < 2, reason="needs two GPUs"
)
def test_another_gpu_than_the_current_one() -> None:
    packed = make_packed()
    first, second = load(packed, device="cuda:0"), load(packed, device="cuda:1")
    for _ in range(3):
        one = run(first, batch_of(40, 7, device="cuda:0"))
        other = run(second, batch_of(40, 7, device="cuda:1"))
        assert other.device == torch.device("cuda:1")
        assert torch.equal(one.cpu(), other.cpu())
    assert torch.equal(run(second, batch_of(40, 7, device="cuda:0")).cpu(), one.cpu())
