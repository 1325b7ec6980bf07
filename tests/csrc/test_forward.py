"""Recorded passes: every operation around the products, on every instruction set."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_runtime import _C
from sparse_runtime.kernels.linear import reference

ISAS = [row["name"] for row in _C.isas() if row["available"]]
POOL = _C.WorkspacePool()
ANY = 2**40


def forward(
    lengths: list[int], isa: str, threads: int = 2, *, far_cores: bool = False
) -> _C.Forward:
    return _C.Forward(lengths, [], threads, isa, POOL, far_cores)


def enter(run: _C.Forward, x: Tensor, norm: object = None) -> _C.PanelValue:
    return run.from_rows(x.data_ptr(), x.stride(0), x.shape[1], norm)  # type: ignore[arg-type]


def leave(run: _C.Forward, value: _C.PanelValue, tokens: int) -> Tensor:
    y = torch.full((tokens, value.features), 1e9)
    run.to_rows(value, y.data_ptr(), y.stride(0))
    run.run()
    return y


def norm_of(features: int, eps: float | None = 1e-12) -> tuple[Tensor, Tensor, object]:
    weight, bias = torch.randn(features), torch.randn(features)
    return weight, bias, _C.PanelNorm(weight.data_ptr(), bias.data_ptr(), features, eps)


def int8_layer(
    w: Tensor, scale: Tensor, bias: Tensor | None, layout: str, scheme: str, *static: float
) -> object:
    packed = _C.int8_panels_pack(w.data_ptr(), *w.shape, layout)
    at = 0 if bias is None else bias.data_ptr()
    return _C.PanelLinear("layer", [(ANY, packed)], scale.data_ptr(), at, scheme, *static)


def float_layer(w: Tensor, layout: str = "dense32") -> object:
    packed = _C.float_panels_pack(w.data_ptr(), *w.shape, layout)
    return _C.PanelLinear("layer", [(ANY, packed)], 0)


# One slot; one under and over a vector; a whole panel; three panels, the last with one vector.
TOKENS = [1, 15, 17, 64, 130]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("features", [1, 2, 15, 17, 64, 312])  # around the blocks of 16
def test_rows_come_back_as_they_went_in(isa: str, tokens: int, features: int) -> None:
    wide = torch.randn(tokens, features + 3)
    x = wide[:, :features]  # rows that are not contiguous
    run = forward([tokens], isa)
    assert torch.equal(leave(run, enter(run, x), tokens), x)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 4])  # whole panels a task, and parts of their rows
@pytest.mark.parametrize(("tokens", "features"), [(1, 1), (17, 65), (70, 312), (130, 768)])
def test_norm(isa: str, threads: int, tokens: int, features: int) -> None:
    x = 3 * torch.randn(tokens, features) + 20  # a mean far from zero
    x[0] = 7.0  # no variance at all
    weight, bias, norm = norm_of(features, 1e-5)
    run = forward([tokens], isa, threads)
    y = leave(run, enter(run, x, norm), tokens)
    exact = F.layer_norm(x.double(), (features,), weight.double(), bias.double(), 1e-5)
    float32 = F.layer_norm(x, (features,), weight, bias, 1e-5)
    bound = 4 * (float32 - exact).abs().max() + 2e-6 * exact.abs().max()
    assert float((y - exact).abs().max()) <= float(bound)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 4])  # 4 threads: few panels are ended in parts
@pytest.mark.parametrize("tokens", [1, 17, 130, 800])
def test_norm_without_statistics(isa: str, threads: int, tokens: int) -> None:
    """Behind rows, and behind a linear layer whose result two others read quantized."""
    torch.manual_seed(4)
    x = torch.randn(tokens, 200)
    weight, bias, norm = norm_of(200, None)
    run = forward([tokens], isa, threads)
    y = leave(run, enter(run, x, norm), tokens)
    exact = x.double() * weight + bias
    assert float((y - exact).abs().max()) <= 1e-6 * float(exact.abs().max())

    w = torch.eye(200)
    run = forward([tokens], isa, threads)
    value = run.linear(enter(run, x), float_layer(w), "relu", enter(run, x), norm)
    quantized = int8_layer(w.to(torch.int8), torch.ones(200), None, "dense", "asymmetric")
    y = leave(run, run.linear(value, quantized, "none", None, None), tokens)
    exact = (x.relu() + x).double() * weight + bias
    step = (exact.amax(1).clamp_min(0) - exact.amin(1).clamp_max(0)) / 255
    assert bool(((y - exact).abs() <= 0.501 * step.unsqueeze(1) + 1e-5).all())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric", "symmetric_full"])
def test_a_token_that_is_not_finite_stays_alone(isa: str, scheme: str) -> None:
    x = torch.randn(40, 96)
    norm = norm_of(96)[2]
    w = torch.randint(-127, 128, (64, 96), dtype=torch.int8)
    layer = int8_layer(w, torch.ones(64), None, "dense", scheme)

    def result(x: Tensor) -> Tensor:
        run = forward([40], isa)
        return leave(run, run.linear(enter(run, x, norm), layer, "gelu", None, None), 40)

    clean = result(x)
    x[7, 3], x[21, 90] = float("nan"), float("inf")
    y = result(x)
    assert bool(y[[7, 21]].isnan().all())
    others = [i for i in range(40) if i not in (7, 21)]
    assert torch.equal(y[others], clean[others])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", ["none", "relu", "gelu", "gelu_new", "silu", "tanh"])
def test_activations(isa: str, activation: str) -> None:
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e4, -90.0, -0.0, 90.0, 1e4])])
    x = x.unsqueeze(1).contiguous()
    run = forward([len(x)], isa)
    one = float_layer(torch.ones(1, 1))
    y = leave(run, run.linear(enter(run, x), one, activation, None, None), len(x))
    function = reference.ACTIVATIONS.get(activation, lambda v: v)
    error = (y - function(x.double())).abs()
    # Sixteenth powers of the fit multiply its rounding errors: docs/kernels/token_ops.md.
    assert bool((error <= 6e-7 * x.abs().clamp_min(0.5)).all()), float(error.max())


SCHEMES = [("asymmetric",), ("symmetric",), ("symmetric_full",), ("static", 0.037, 131)]


def quantized(x: Tensor, scheme: tuple) -> tuple[Tensor, Tensor, Tensor]:
    """(integers, scale a token, zero point a token) by the reference."""
    if scheme[0] == "asymmetric":
        q, scale, zero = reference.quantize_rows_asymmetric(x)
        return q.long(), scale, zero.long()
    if scheme[0] == "symmetric":
        q, scale = reference.quantize_rows(x)
        return q.long(), scale, torch.zeros(len(x), dtype=torch.long)
    if scheme[0] == "symmetric_full":
        q, scale = reference.quantize_rows_full_range(x)
        return q.long(), scale, torch.zeros(len(x), dtype=torch.long)
    q = ((x / scheme[1]).round().clamp(-scheme[2], 255 - scheme[2]) + scheme[2]).long()
    return q, torch.full((len(x),), scheme[1]), torch.full((len(x),), scheme[2])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("layout", ["dense", "band4_gathered"])  # grouped and plain bytes
@pytest.mark.parametrize("threads", [1, 4])
def test_quantized_products_are_the_reference_s(
    isa: str, scheme: tuple, layout: str, threads: int
) -> None:
    """Weights of the identity show every quantized byte: 130 inputs, padded to 192."""
    torch.manual_seed(3)
    tokens, features = 75, 130
    x = torch.randn(tokens, features) * torch.logspace(-43, 30, tokens).unsqueeze(1)
    if scheme[0] == "static":
        x = torch.randn(tokens, features) * 4
    x[0], x[1], x[2], x[3, 5] = 0.0, 2.5, -1.5, -0.0  # all zero, positive, negative; a signed zero
    x[4] = torch.arange(features) / 16 - 3  # ties in rounding
    w = torch.eye(features, dtype=torch.int8)
    layer = int8_layer(w, torch.ones(features), None, layout, *scheme)
    run = forward([tokens], isa, threads)
    y = leave(run, run.linear(enter(run, x), layer, "none", None, None), tokens)
    q, scale, zero = quantized(x, scheme)
    expected = (q - zero.unsqueeze(1)).float() * scale.unsqueeze(1)
    torch.testing.assert_close(y, expected, rtol=0, atol=0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("outputs", "inputs", "tokens"), [(96, 64, 20), (70, 200, 130), (1, 1, 1)])
def test_sums_beyond_float_integers_are_exact(
    isa: str, outputs: int, inputs: int, tokens: int
) -> None:
    """Large weights make sums that float32 cannot hold before the zero point is taken away."""
    x = torch.rand(tokens, inputs) + 1  # all near 255 of 255
    w = torch.full((outputs, inputs), 127, dtype=torch.int8)
    # Powers of two: whether the scale and the bias are applied in one rounding does not show.
    scale = 2.0 ** torch.randint(-3, 4, (outputs,))
    layer = int8_layer(w, scale, None, "dense", "asymmetric")
    run = forward([tokens], isa)
    value = enter(run, x)
    y = leave(run, run.linear(value, layer, "relu", None, None), tokens)
    q, x_scale, zero = quantized(x, ("asymmetric",))
    sums = (q - zero.unsqueeze(1)) @ w.long().T
    expected = (sums.float() * x_scale.unsqueeze(1) * scale).relu()
    torch.testing.assert_close(y, expected, rtol=0, atol=0)


@pytest.mark.parametrize("isa", ISAS)
def test_several_readers_of_one_value_each_get_their_form(isa: str) -> None:
    x = torch.randn(33, 64)
    weight, bias, norm = norm_of(64)
    w = torch.randint(-127, 128, (64, 64), dtype=torch.int8)
    scale = torch.full((64,), 0.01)
    run = forward([33], isa)
    value = enter(run, x, norm)
    layers = [
        int8_layer(w, scale, None, name, "asymmetric") for name in ("dense", "band1_gathered")
    ]
    grouped = run.linear(value, layers[0], "none", value, None)
    plain = run.linear(value, layers[1], "none", value, None)
    halves = run.linear(value, float_layer(torch.eye(64), "dense16"), "none", None, None)
    a, b = leave(run, grouped, 33), leave(run, plain, 33)  # two runs: the value is kept for both
    assert torch.equal(a, b)
    normed = F.layer_norm(x, (64,), weight, bias, 1e-12)
    torch.testing.assert_close(leave(run, halves, 33), normed, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 4])  # whole panels a task, and parts of their rows
@pytest.mark.parametrize("with_norm", [False, True])
def test_static_readers_beside_one_that_looks_at_the_range(
    isa: str, threads: int, with_norm: bool
) -> None:
    x = torch.randn(33, 192)
    norm = norm_of(192)[2] if with_norm else None
    w = torch.randint(-127, 128, (64, 192), dtype=torch.int8)
    scale = torch.full((64,), 0.01)
    layers = [
        int8_layer(w, scale, None, layout, *scheme)
        for layout in ("dense", "band1_gathered")
        for scheme in SCHEMES
    ]

    def results(chosen: list) -> list[Tensor]:
        run = forward([33], isa, threads)
        value = enter(run, x, norm)
        ys = [run.linear(value, layer, "none", None, None) for layer in chosen]
        return [leave(run, y, 33) for y in ys]

    together = results(layers)
    for layer, y in zip(layers, together, strict=True):
        assert torch.equal(results([layer])[0], y)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 3])
def test_embedding_adds_rows_of_every_table(isa: str, threads: int) -> None:
    tables = [torch.randn(30, 70), torch.randn(5, 70)]
    ids = [torch.randint(0, 30, (75,)), torch.randint(0, 5, (75,))]
    run = forward([75], isa, threads)
    value = run.embed(
        [t.data_ptr() for t in tables], [30, 5], [i.data_ptr() for i in ids], 70, None
    )
    assert torch.equal(leave(run, value, 75), tables[0][ids[0]] + tables[1][ids[1]])
    ids[1][74] = 5
    with pytest.raises(IndexError, match=r"ids of table 1: expected 0\.\.4, got 5"):
        forward([75], isa).embed(
            [t.data_ptr() for t in tables], [30, 5], [i.data_ptr() for i in ids], 70, None
        )


def layer_outputs(
    x: Tensor, lengths: list[int], isa: str, threads: int, parts: list, *, far_cores: bool = False
) -> Tensor:
    qkv, out, norm = parts
    run = forward(lengths, isa, threads, far_cores=far_cores)
    value = enter(run, x)
    context = run.attention(run.linear(value, qkv, "none", None, None), 4, 0.3)
    return leave(run, run.linear(context, out, "gelu", value, norm), len(x))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("isa", ["generic", "auto"])
def test_ragged_streams_are_their_sequences(seed: int, isa: str) -> None:
    """Random lengths with single tokens and 512s, up to 4,096 tokens, against each one alone."""
    random = torch.Generator().manual_seed(seed)
    most = 4096 if isa == "auto" else 300
    lengths = [1, min(512, most // 2)]
    while sum(lengths) < most - 64:
        lengths.append(int(torch.randint(1, 65, (1,), generator=random)))
    order = torch.randperm(len(lengths), generator=random).tolist()
    lengths = [lengths[i] for i in order]
    w = [
        torch.randint(-127, 128, s, dtype=torch.int8, generator=random)
        for s in ((96, 32), (32, 32))
    ]
    scales = [torch.full((n,), 1e-3) for n in (96, 32)]
    parts = [
        int8_layer(w[0], scales[0], None, "band4_grouped", "asymmetric"),
        int8_layer(w[1], scales[1], None, "band1_gathered", "asymmetric"),
        norm_of(32)[2],
    ]
    x = torch.randn(sum(lengths), 32, generator=random)
    together = layer_outputs(x, lengths, isa, 3, parts)
    for mine, own in zip(together.split(lengths), x.split(lengths), strict=True):
        alone = layer_outputs(own.contiguous(), [len(own)], isa, 1, parts)
        # Sums over keys begin at another step of 32, so BF16 attention rounds in another order.
        torch.testing.assert_close(mine, alone, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("lengths", [[128], [3, 60, 36, 1], [129]])
def test_few_tokens_are_a_panel_a_thread_where_cores_are_far(isa: str, lengths: list[int]) -> None:
    """Panels of 32 slots; the same, with sequences that begin and end within; too many for it."""
    torch.manual_seed(len(lengths))
    w = [torch.randint(-127, 128, s, dtype=torch.int8) for s in ((192, 64), (64, 64))]
    scales = [torch.full((n,), 1e-3) for n in (192, 64)]
    parts = [
        int8_layer(w[0], scales[0], None, "band4_gathered", "asymmetric"),
        int8_layer(w[1], scales[1], None, "band4_grouped", "asymmetric"),
        norm_of(64)[2],
    ]
    x = torch.randn(sum(lengths), 64)
    one = layer_outputs(x, lengths, isa, 1, parts)
    mine = layer_outputs(x, lengths, isa, 4, parts, far_cores=True)
    torch.testing.assert_close(mine, one, rtol=1e-4, atol=1e-4)


def test_passes_at_the_same_time_do_not_disturb_each_other() -> None:
    """Sizes of one vector to many panels, on four threads each, from eight Python threads."""
    torch.manual_seed(1)
    w = [torch.randint(-127, 128, s, dtype=torch.int8) for s in ((192, 64), (64, 64))]
    scales = [torch.full((n,), 1e-3) for n in (192, 64)]
    norm = norm_of(64)
    parts = [
        int8_layer(w[0], scales[0], None, "band1_grouped", "asymmetric"),
        int8_layer(w[1], scales[1], None, "band4_gathered", "symmetric"),
        norm[2],
    ]
    cases = [[n % 7 + 1] * (n % 5 + 1) + [3 * n + 1] for n in range(24)]
    inputs = [torch.randn(sum(lengths), 64) for lengths in cases]
    alone = [
        layer_outputs(x, lengths, "auto", 1, parts)
        for x, lengths in zip(inputs, cases, strict=True)
    ]
    with ThreadPoolExecutor(8) as threads:
        for _ in range(3):
            together = threads.map(
                lambda pair: layer_outputs(pair[0], pair[1], "auto", 4, parts),
                zip(inputs, cases, strict=True),
            )
            for mine, other in zip(together, alone, strict=True):
                torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_memory_is_kept_and_not_grown() -> None:
    pool = _C.WorkspacePool()
    weight = float_layer(torch.randn(64, 64))

    def once(tokens: int) -> None:
        x = torch.randn(tokens, 64)
        run = _C.Forward([tokens], [], 2, "auto", pool)
        value = run.from_rows(x.data_ptr(), 64, 64, None)
        for _ in range(6):
            value = run.linear(value, weight, "relu", None, None)
        leave(run, value, tokens)

    once(512)
    held = pool.bytes
    assert 0 < held < 6 * 512 * 64 * 4  # values that nobody reads any more give their memory back
    for tokens in (512, 64, 200, 512):
        once(tokens)
    assert pool.bytes <= 2 * held


def test_every_stage_is_timed() -> None:
    x = torch.randn(20, 64)
    run = forward([20], "auto")
    y = torch.empty(20, 64)
    run.to_rows(run.linear(enter(run, x), float_layer(torch.eye(64)), "none", None, None),
                y.data_ptr(), 64)  # fmt: skip
    times = run.run(profile=True)
    assert [label.split(" (")[0] for label, _ in times] == ["from rows", "layer", "to rows"]
    assert all(seconds > 0 for _, seconds in times)


def test_bad_arguments_are_named() -> None:
    x = torch.randn(4, 8)
    run, other = forward([4], "auto"), forward([4], "auto")
    value = enter(run, x)
    layer = float_layer(torch.ones(6, 8))
    with pytest.raises(ValueError, match="lengths: expected at least one sequence"):
        forward([], "auto")
    with pytest.raises(ValueError, match="x: expected a value of this forward pass; got another"):
        other.linear(value, layer, "none", None, None)
    with pytest.raises(ValueError, match="residual: expected 6 features; got 8"):
        run.linear(value, layer, "none", value, None)
    with pytest.raises(ValueError, match="activation: expected one of none, relu, gelu"):
        run.linear(value, layer, "swish", None, None)
    with pytest.raises(ValueError, match="norm: expected 6 features; got 8"):
        run.linear(value, layer, "none", None, norm_of(8)[2])
    with pytest.raises(ValueError, match="qkv: expected three times heads"):
        run.attention(value, 2, 1.0)
    with pytest.raises(ValueError, match="stride: expected at least the row length 8; got 4"):
        run.from_rows(x.data_ptr(), 4, 8, None)


def test_a_set_without_the_layout_s_kernel_is_refused() -> None:
    """Tiles run on AMX alone; a model that was packed there may be asked to run on another set."""
    w = torch.randint(-127, 128, (64, 96), dtype=torch.int8)
    layer = int8_layer(w, torch.ones(64), None, "tiles", "asymmetric")
    run = forward([3], "generic", 1)
    with pytest.raises(ValueError, match=r"layer: expected an instruction set that runs its"):
        leave(run, run.linear(enter(run, torch.randn(3, 96)), layer, "none", None, None), 3)
