"""PyTorch's variable-length attention in the CUDA backend: when it runs, and what it is given.

It runs on GPUs alone (tests/gpu/test_cuda_encoder.py): here the reference stands for it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from sparse_runtime import SparseModel
from sparse_runtime.kernels.attention import varlen
from sparse_runtime.kernels.attention.reference import attention as reference
from sparse_runtime.ops import TokenBatch, get_backend
from sparse_runtime.ops.cuda.attention_choice import ATTENTION_VARIABLE, wanted_attention
from sparse_runtime.ops.cuda.graphs import sequence_bucket, span_bucket
from sparse_runtime.ops.cuda.runner import Runner
from sparse_runtime.ops.cuda.schedules import Schedules
from sparse_runtime.ops.cuda.values import Attend, AttendVarlen

# Rows between a batch's tokens and its bucket hold anything, and are computed with.
pytestmark = [
    pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="PyTorch's own runs here: tests/gpu"),
]
CPU = torch.device("cpu")


class Theirs:
    """In the place of PyTorch's function; notes what it is called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[int], int]] = []

    def plain(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        starts: Tensor,
        key_starts: Tensor,
        longest: int,
        longest_key: int,
        *,
        scale: float,
    ) -> Tensor:
        assert starts.dtype == torch.int32 and key_starts is starts and longest_key == longest
        lengths = starts.diff().tolist()
        assert starts[0] == 0 and starts[-1] <= len(q) and max(lengths) <= longest
        self.calls.append((lengths, longest))
        stream = torch.cat([side[: int(starts[-1])].flatten(1) for side in (q, k, v)], 1)
        y = torch.full_like(q, torch.nan)  # rows of no sequence hold anything
        y[: len(stream)] = reference(stream, lengths, q.shape[1], scale).view(-1, *q.shape[1:])
        return y

    def into(self, out: Tensor, *sides: Any, **options: Any) -> None:
        out.copy_(self.plain(*sides, **options))


@pytest.fixture(params=[True, False], ids=["in place", "copied"])
def theirs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Theirs:
    """Stands for PyTorch's function, as if the CPU could run it, and is asked for."""
    fake = Theirs()
    functions = fake.plain, fake.into if request.param else None
    monkeypatch.setattr(varlen, "_functions", lambda: functions)
    monkeypatch.setattr(varlen, "unavailable", lambda *given: "adds no bias" if given[3] else None)
    monkeypatch.setenv(ATTENTION_VARIABLE, "varlen")
    return fake


def pair(packed: Any) -> tuple[SparseModel, SparseModel]:
    """The CUDA backend in Triton's interpreter, and the reference."""
    ours, plain = (
        SparseModel.from_packed(packed, backend=name, device=CPU) for name in ("cuda", "reference")
    )
    return ours, plain


def runner_of(model: SparseModel) -> Runner:
    (runner,) = model._backend._runners.values()
    return runner


@pytest.mark.parametrize("values", ["fp32", "int8"])
def test_it_serves_where_it_is_asked_for(
    values: str, theirs: Theirs, make_reference: Any, make_packed: Any
) -> None:
    ours, plain = pair(make_packed(make_reference("bert", "Model"), values=values))
    ids = torch.arange(4, 24).view(4, 5)
    mask = torch.ones_like(ids)
    mask[1, 2:] = mask[2] = mask[3, 4:] = 0
    got, expected = (model(ids, mask).last_hidden_state for model in (ours, plain))
    kept = mask.bool()
    if values == "fp32":
        torch.testing.assert_close(got[kept], expected[kept])
    else:  # a value may round to its other neighbour, one step in 255
        error = (got - expected)[kept].abs() / expected.abs().max()
        assert error.max() < 2e-2 and error.median() < 1e-5
    # Three sequences with tokens, and one without that fills up their bucket; twice, two layers.
    assert theirs.calls == 2 * [([5, 2, 4, 0], 64)]
    plan = runner_of(ours).plan
    kinds = {type(node) for node in plan.nodes}
    assert AttendVarlen in kinds and Attend not in kinds and not plan.heads
    quantized, attention = (1 if values == "int8" else 0), varlen.launches()
    assert plan.launches(11) == 1 + 2 * (6 + attention + quantized)
    text = ours.explain()
    assert "-> torch.nn.attention.varlen over sequences without padding" in text
    assert f"{ATTENTION_VARIABLE}=varlen" in text


def test_a_bias_keeps_ours(theirs: Theirs, make_reference: Any, make_packed: Any) -> None:
    ours, _ = pair(make_packed(make_reference("mpnet", "Model", num_hidden_layers=1)))
    ours(torch.arange(4, 8).view(1, 4))
    assert not theirs.calls and runner_of(ours).plan.heads
    assert "-> Triton kernel over sequences without padding; torch.nn" in ours.explain()
    assert "varlen: adds no bias" in ours.explain()


def test_ours_is_the_default_and_says_why(
    theirs: Theirs, monkeypatch: pytest.MonkeyPatch, make_reference: Any, make_packed: Any
) -> None:
    monkeypatch.delenv(ATTENTION_VARIABLE)
    ours, _ = pair(make_packed(make_reference("bert", "Model", num_hidden_layers=1)))
    ours(torch.arange(4, 8).view(1, 4))
    assert not theirs.calls and runner_of(ours).plan.heads
    assert f"varlen: only where {ATTENTION_VARIABLE}=varlen" in ours.explain()


def test_batches_of_one_bucket_make_the_same_launches(
    theirs: Theirs, make_reference: Any, make_packed: Any
) -> None:
    """What a graph holds: numbers that the host gave, and addresses whose contents change."""
    ours, plain = pair(make_packed(make_reference("bert", "Model", num_hidden_layers=1)))
    backend = ours._backend
    shapes, addresses = set(), set()
    for lengths in ([4, 3, 5], [6, 1, 0, 2, 2], [2, 2, 2, 5]):
        ids = torch.arange(4, 4 + 6 * len(lengths)).view(len(lengths), 6)
        mask = (torch.arange(6) < torch.tensor(lengths).unsqueeze(1)).long()
        got, expected = (model(ids, mask).last_hidden_state for model in (ours, plain))
        torch.testing.assert_close(got[mask.bool()], expected[mask.bool()])
        (runner,) = backend._runners.values()
        batch = TokenBatch(lengths, torch.zeros(sum(lengths)), torch.zeros(sum(lengths)), 1, 6)
        frame = runner._frame(runner.memory, batch, (torch.zeros(sum(lengths)).long(),) * 3, 16)
        shapes.add(frame.shape)
        addresses.add(frame.bounds.starts.data_ptr())
        assert frame.bounds.starts[-1] == sum(lengths)
    assert shapes == {((64, 5),)} and len(addresses) == 1


def test_bounds_fill_up_their_bucket() -> None:
    schedules = Schedules(CPU)
    starts, longest = schedules.bounds([3, 0, 70, 1])
    assert starts.tolist() == [0, 3, 73, 74, 74] and longest == 128
    assert schedules.bounds([3, 0, 70, 1]).starts is starts
    assert schedules.get([3, 0, 70, 1], 16) is not starts
    assert schedules.bounds([5]).starts.tolist() == [0, 5] and schedules.bounds([5]).longest == 64
    assert [sequence_bucket(n) for n in (1, 2, 3, 4, 5)] == [1, 2, 4, 4, 8]
    assert [span_bucket(n) for n in (1, 64, 65, 512, 513)] == [64, 64, 128, 512, 1024]


def test_the_environment_names_one_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, expected in (("", "triton"), ("triton", "triton"), ("varlen", "varlen")):
        monkeypatch.setenv(ATTENTION_VARIABLE, text)
        assert wanted_attention() == expected
    monkeypatch.setenv(ATTENTION_VARIABLE, "flash")
    with pytest.raises(ValueError, match="'flash': expected 'triton' or 'varlen'"):
        get_backend("cuda", "cpu", torch.float32)


def test_another_implementation_than_pytorchs_is_not_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(varlen, "_functions", lambda: (print, None))
    cuda, activated = torch.device("cuda", 0), "torch.nn.attention.current_flash_attention_impl"
    for name, refused in ((None, False), ("FA2", False), ("FA3", True)):
        monkeypatch.setattr(activated, lambda name=name: name, raising=False)
        reason = varlen.unavailable(cuda, torch.bfloat16, 64)
        assert (reason is not None) == refused and (not refused or "FA3 has been" in str(reason))
