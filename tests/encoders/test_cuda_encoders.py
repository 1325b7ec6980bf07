"""The CUDA backend runs every encoder as the reference does: here in Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import triton

from sparse_runtime import SparseModel
from sparse_runtime.encoders.settings import DTYPES
from sparse_runtime.ops import CpuBackend, get_backend
from sparse_runtime.ops.cuda import linear as cuda_linear
from sparse_runtime.ops.cuda.backend import CudaBackend
from sparse_runtime.ops.cuda.choosing import ANY_TOKENS, Choice, Estimate, Regime
from sparse_runtime.ops.cuda.families import FAMILIES as CUDA_FAMILIES
from sparse_runtime.ops.cuda.runner import Runner
from sparse_runtime.spec import ActivationSpec, QuantizedAttention
from sparse_runtime.testing import assert_close_to_oracle

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Rows between a batch's tokens and its bucket hold anything, and are computed with.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered")
FAMILIES = ("bert", "roberta", "camembert", "distilbert", "electra", "mpnet")

STEP = 2e-2
"""Of the largest output, with quantized rows: floats that differ in their last bit may round to the
other neighbour, one step in 255, and what reads them passes that on."""

REPEATED = 1e-5
"""The same of sequences where no value rounded otherwise: float32 alone."""


def pair(packed: Any, **options: Any) -> tuple[SparseModel, SparseModel]:
    """The reference, and the CUDA backend."""
    ours, theirs = (
        SparseModel.from_packed(packed, backend=name, device=DEVICE, **options)
        for name in ("cuda", "reference")
    )
    assert isinstance(ours._backend, CudaBackend)
    return ours, theirs


def exactly(packed: Any) -> SparseModel:
    """The reference in float64, a type that is for tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DTYPES, "float64", torch.float64)
        options = {"backend": "reference", "device": DEVICE, "dtype": torch.float64}
        return SparseModel.from_packed(packed, **options)


def runner_of(model: SparseModel) -> Runner:
    """What ran the model's passes so far: one plan, whatever the batches."""
    (runner,) = model._backend._runners.values()
    return runner


def close(got: Tensor, expected: Tensor) -> None:
    """Outputs [sequences, ...] of quantized rows.

    GPUs approximate exponentials and divisions, and a float off by its last bits crosses the edge
    of a step about once in 1e5. A sequence of these small models has some 1e3 quantized values, and
    its tokens attend to each other, to no other sequence's: at least half of the sequences must not
    have any. A kernel that is wrong, be it by a scale off by 1/64 or by a step of inputs left out,
    is wrong in all of them.
    """
    assert got.shape == expected.shape and got.dtype == expected.dtype
    error = (got.double() - expected.double()).abs() / expected.double().abs().max()
    assert error.max() < STEP
    assert (error.flatten(1).amax(1) < REPEATED).float().mean() >= 0.5


def quantize_inputs(packed: Any, activations: ActivationSpec | None) -> None:
    """Give every layer of int8 weights these inputs, whatever is best for them."""
    for name, linear in packed.linears.items():
        spec = replace(linear.packed.spec, activations=activations)
        packed.linears[name] = replace(linear, packed=replace(linear.packed, spec=spec))


@pytest.mark.parametrize(
    ("family", "values"),
    [*((family, "fp32") for family in FAMILIES), ("bert", "int8"), ("mpnet", "int8")],
)
def test_families(
    family: str, values: str, make_reference: Any, make_packed: Any, make_batch: Any
) -> None:
    packed = make_packed(make_reference(family, "Model"), values=values)
    ours, reference = pair(packed)
    pad = 1 if family in ("roberta", "mpnet") else 3 if family == "camembert" else 0
    batch = make_batch(pad, types=3 if family == "bert" else 1)
    got, expected = ours(**batch), reference(**batch)
    exact = exactly(packed)(**batch) if values == "fp32" else None
    for name in ("last_hidden_state", "pooler_output"):
        if expected.get(name) is None:
            continue
        if exact is None:
            close(got[name], expected[name])
        else:
            assert_close_to_oracle(got[name], exact[name], expected[name], name=name)


STRUCTURES = {"dense": None, "unstructured": 0.5, "2:4": None, "block:4x4": 0.5}
SCHEMES: dict[str, ActivationSpec | None] = {
    "weights only": None,
    "asymmetric": ActivationSpec("dynamic", "uint8"),
    "symmetric": ActivationSpec("dynamic", "int8"),
    "full_range": ActivationSpec("dynamic", "int8", narrow_range=False),
    "static": ActivationSpec("static", "uint8", 0.03, 120),
    "static, symmetric": ActivationSpec("static", "int8", 0.03),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_structures_and_schemes(
    structure: str,
    scheme: str,
    make_reference: Any,
    make_packed: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each scheme's seven launches a layer, counted where Triton starts a kernel."""
    theirs = make_reference("bert", "Model", num_hidden_layers=1)
    packed = make_packed(theirs, structure, "int8", sparsity=STRUCTURES[structure])
    quantize_inputs(packed, SCHEMES[scheme])
    ours, reference = pair(packed)
    ids = torch.arange(4, 12, device=DEVICE).view(4, 2)
    got, expected = ours(ids).last_hidden_state, reference(ids).last_hidden_state
    if SCHEMES[scheme] is None:
        assert_close_to_oracle(got, exactly(packed)(ids).last_hidden_state, expected)
    else:
        close(got, expected)
    assert runner_of(ours).plan.launches(16) == 1 + 7
    assert "launches of a pass: 8" in ours.explain()
    launched = count_launches(monkeypatch)
    assert torch.equal(ours(ids).last_hidden_state, got)
    assert launched[:2] == ["scan_kernel", "unpad_kernel"]  # the inputs
    assert len(launched) <= 2 + 1 + 7


@pytest.mark.parametrize("scheme", ["asymmetric", "static"])
def test_products_of_a_library_are_launches_beside_their_epilogues(
    scheme: str, make_reference: Any, make_packed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cublas = next(family for family in CUDA_FAMILIES if family.name == "cublas")
    estimate = Estimate(cublas, None, 1.0)
    choice = Choice(ANY_TOKENS, estimate, Regime(1, 64, {"cublas": estimate}, None))
    monkeypatch.setattr(cuda_linear, "choices_for", lambda layers, device: (choice,))
    theirs = make_reference("bert", "Model", num_hidden_layers=1)
    packed = make_packed(theirs, values="int8")
    quantize_inputs(packed, SCHEMES[scheme])
    ours, reference = pair(packed)
    ids = torch.arange(4, 24, device=DEVICE).view(10, 2)  # cuBLASLt takes integers from 17 rows on
    close(ours(ids).last_hidden_state, reference(ids).last_hidden_state)
    launched, multiply = count_launches(monkeypatch), torch._int_mm

    def counted(*given: Any, **options: Any) -> Any:
        launched.append("product")
        return multiply(*given, **options)

    monkeypatch.setattr(torch, "_int_mm", counted)
    ours(ids)
    assert launched.count("product") == launched.count("epilogue_rows_kernel") == 4
    assert len(launched) == 2 + runner_of(ours).plan.launches(32) == 2 + 1 + 11


def count_launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every kernel that Triton starts from here on, by name."""
    launched: list[str] = []
    if DEVICE == "cpu":
        from triton.runtime import interpreter

        owner, method = interpreter.GridExecutor, "__call__"
    else:
        owner, method = triton.runtime.JITFunction, "run"
    start = getattr(owner, method)

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        launched.append(self.fn.__name__)
        return start(self, *arguments, **options)

    monkeypatch.setattr(owner, method, counted)
    return launched


# Kept heads and feed-forward sizes: odd ones, absent halves, an empty layer.
@pytest.mark.parametrize(
    ("family", "values", "no_norm"),
    [
        ("bert", "fp32", False),
        ("bert", "int8", True),
        ("distilbert", "fp32", True),
        ("distilbert", "int8", False),
    ],
)
def test_ragged_layers(family: str, values: str, no_norm: bool, make_ragged: Any) -> None:
    key = "activation" if family == "distilbert" else "hidden_act"
    ragged = make_ragged(family, **({key: "relu"} if no_norm else {}))
    if no_norm:
        ragged.config["layer_norm_type"] = "no_norm"
    packed = ragged.packed(values=values)
    ours, reference = pair(packed)
    ids = torch.arange(4, 24, device=DEVICE).view(4, 5)
    got, expected = ours(ids).last_hidden_state, reference(ids).last_hidden_state
    if values == "fp32":
        assert_close_to_oracle(got, exactly(packed)(ids).last_hidden_state, expected)
    else:
        close(got, expected)


def test_hidden_sizes_off_any_vector(make_ragged: Any) -> None:
    """41 features: rows have a stride; heads of 12."""
    ours, reference = pair(make_ragged("bert", hidden=48, kept_hidden=41).packed(values="int8"))
    ids = torch.arange(4, 12, device=DEVICE).view(4, 2)
    close(ours(ids).last_hidden_state, reference(ids).last_hidden_state)


@pytest.fixture
def bert(make_reference: Any, make_packed: Any) -> Any:
    """One layer: the interpreter is slow."""
    return make_packed(make_reference("bert", "Model", num_hidden_layers=1), values="int8")


@pytest.fixture
def two_layers(make_reference: Any, make_packed: Any) -> Any:
    return make_packed(make_reference("bert", "Model"), values="int8")


def test_hidden_states_of_every_layer(two_layers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, reference = pair(two_layers)
    ids = torch.arange(4, 12, device=DEVICE).view(4, 2)
    launched = count_launches(monkeypatch)
    got = ours(ids, output_hidden_states=True)
    assert len(launched) == 2 + 1 + 2 * (7 + 1)  # a state that was asked for is quantized anew
    expected = reference(ids, output_hidden_states=True)
    assert len(got.hidden_states) == 3
    for ours_state, theirs_state in zip(got.hidden_states, expected.hidden_states, strict=True):
        close(ours_state, theirs_state)
    # The same bytes whether a pass stops at each layer or not.
    assert torch.equal(got.last_hidden_state, ours(ids).last_hidden_state)


def test_masks_with_holes_and_rows_without_tokens(bert: Any) -> None:
    ours, reference = pair(bert)
    ids = torch.arange(4, 40, device=DEVICE).view(4, 9)
    mask = torch.ones_like(ids)
    mask[0, 3:5] = mask[1, :4] = mask[2] = mask[3, 1:] = 0  # a hole, the left, all, one is left
    got, expected = (m(ids, mask).last_hidden_state for m in (ours, reference))
    close(got, expected.masked_fill((mask == 0).unsqueeze(-1), 0))
    assert not got[mask == 0].any()


def test_other_batches_run_the_same_plan(bert: Any) -> None:
    """More than a bucket, one token, a whole bucket; nothing of a batch reaches the next."""
    ours, reference = pair(bert)
    first = None
    for batch, columns in ((4, 5), (1, 1), (4, 4), (4, 5)):
        ids = torch.arange(batch * columns, device=DEVICE).view(batch, columns) + 4
        got = ours(ids).last_hidden_state
        close(got, reference(ids).last_hidden_state)
        first = got if first is None else first
    assert torch.equal(got, first)
    assert len(ours._backend._runners) == 1


def test_an_empty_batch(bert: Any) -> None:
    ours, _ = pair(bert)
    ids = torch.zeros(0, 5, dtype=torch.int64, device=DEVICE)
    assert ours(ids).last_hidden_state.shape == (0, 5, 32)
    mask = torch.zeros(2, 5, dtype=torch.int64, device=DEVICE)
    assert not ours(torch.zeros_like(mask), mask).last_hidden_state.any()


def test_batches_are_split_into_chunks(bert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 16: two sequences, one that is longer than a chunk, one."""
    monkeypatch.setattr("sparse_runtime.ops.cuda.backend.CHUNK", 16)
    ours, _ = pair(bert)
    ids = torch.arange(80, device=DEVICE).view(4, 20) % 57 + 4
    mask = torch.ones_like(ids)
    mask[0, 8:] = mask[1, 8:] = mask[3, 5:] = 0
    got = ours(ids, mask).last_hidden_state
    memory = runner_of(ours).memory
    assert memory is not None and memory.ids.shape == (
        3,
        16,
    )  # the longer one has memory of its own
    for row in (1, 2):
        alone = ours(ids[row : row + 1, : int(mask[row].sum())]).last_hidden_state
        assert torch.equal(got[row, : alone.shape[1]], alone[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(dtype: torch.dtype, bert: Any) -> None:
    """Against float32: no further off than the reference in the same type, times two."""
    ours, reference = pair(bert, dtype=dtype)
    whole = SparseModel.from_packed(bert, backend="reference", device=DEVICE)
    ids = torch.arange(4, 16, device=DEVICE).view(2, 6)
    exact = whole(ids).last_hidden_state
    got, theirs = (m(ids).last_hidden_state for m in (ours, reference))
    assert got.dtype == dtype
    assert (got.float() - exact).norm() < 2 * (theirs.float() - exact).norm()


def test_quantized_attention_runs_on_the_reference_and_explain_says_so(two_layers: Any) -> None:
    spec = ActivationSpec("static", "uint8", 0.05, 128)
    plain = pair(two_layers)[0].explain()
    assert "attention: 4 heads of 8 (2 layers)\n  -> Triton kernel over sequences" in plain
    two_layers.attention["encoder.layer.0"] = QuantizedAttention(query=spec, key=spec)
    ours, reference = pair(two_layers)
    ids = torch.arange(4, 12, device=DEVICE).view(4, 2)
    close(ours(ids).last_hidden_state, reference(ids).last_hidden_state)
    text = ours.explain()
    assert text.startswith("backend cuda on ")
    assert "  -> plain PyTorch, sequence by sequence" in text and "products are quantized" in text
    assert "  -> Triton kernel over sequences" in text  # the other layer's
    assert "attention:" not in reference.explain()


def test_positions_beyond_the_bias_that_was_planned(make_reference: Any, make_packed: Any) -> None:
    """Padding on the left moves tokens beyond the positions that the model has."""
    packed = make_packed(make_reference("mpnet", "Model", max_position_embeddings=14))
    ours, reference = pair(packed)
    exact = exactly(packed)
    short = torch.arange(4, 12, device=DEVICE).unsqueeze(0)
    wide = torch.ones(1, 20, dtype=torch.int64, device=DEVICE)
    wide[:, 12:] = short
    mask = (wide != 1).long()
    for ids, kept in ((short, torch.ones_like(short)), (wide, mask), (short, None)):
        models = (ours, exact, reference)
        got, oracle, baseline = (m(ids, kept).last_hidden_state for m in models)
        if kept is not None:  # the reference computes with padding, whose outputs nobody reads
            oracle, baseline = (y * kept.unsqueeze(-1) for y in (oracle, baseline))
        assert_close_to_oracle(got, oracle, baseline)
    assert runner_of(ours).plan.span == 12


def test_warm_up_runs_each_shape_twice(bert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = pair(bert)
    seen: list[int] = []
    monkeypatch.setattr(Runner, "run", lambda self, batch, ids: seen.append(len(batch.index)))
    monkeypatch.setattr(ours._head, "output", lambda *args, **options: {})
    ours.warm_up([(1, 5), (2, 3)])
    assert seen == [5, 5, 6, 6]
    for shapes in ([(1,)], [(0, 5)], [(1, 2.0)], (1, 5), 5, None):
        with pytest.raises(ValueError, match=r"shapes: expected \[\(batch, sequence\), ...\]"):
            ours.warm_up(shapes)  # type: ignore[arg-type]


def test_autocast_and_inference_mode_change_nothing(bert: Any) -> None:
    ours, _ = pair(bert)
    ids = torch.arange(4, 16, device=DEVICE).view(2, 6)
    with torch.inference_mode():  # what is kept must not be bound to this mode
        first = ours(ids).last_hidden_state.clone()
    assert torch.equal(ours(ids).last_hidden_state, first)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert torch.equal(ours(ids).last_hidden_state, first)


def test_devices_that_cannot_run_it_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparse_runtime.ops.cuda.backend.interpreting", lambda: False)
    with pytest.raises(RuntimeError, match="backend 'cuda' runs on cuda, got device cpu"):
        get_backend("cuda", "cpu", torch.float32)
    monkeypatch.setattr(
        "sparse_runtime.ops.cuda.backend.unavailable", lambda: "triton is not installed"
    )
    with pytest.raises(RuntimeError, match="cannot run on cuda:0: triton is not installed"):
        get_backend("cuda", "cuda:0", torch.float32)
    assert isinstance(get_backend("auto", "cpu", torch.float32), CpuBackend)


def test_encode_pools_by_a_kernel(
    make_dense: Any, make_pipeline: Any, tiny: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pipeline(tiny, tmp_path, poolings=("mean", "max"))
    packed = make_dense(tmp_path).packed
    ours, reference = pair(packed)
    texts = ["the cat", "sparse weights on the mat", "a"]
    launched = count_launches(monkeypatch)
    got = torch.from_numpy(ours.encode(texts))
    assert launched.count("pool_kernel") == 2
    oracle, baseline = (torch.from_numpy(m.encode(texts)) for m in (exactly(packed), reference))
    assert_close_to_oracle(got, oracle, baseline)
