"""Few tokens: a head's projection and attention as one task, against whole layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

_C = pytest.importorskip("sparse_runtime._C")

ISAS = [row["name"] for row in _C.isas() if row["available"]]
POOL = _C.WorkspacePool()


def layer(w: Tensor, layout: str, scheme: tuple) -> object:
    """Integers with a scale of 1e-3, or as floats where the layout holds such."""
    n, k = w.shape
    if layout.endswith(("16", "32")):
        floats = w.float() / 500
        packed = _C.float_panels_pack(floats.data_ptr(), n, k, layout)
        return _C.PanelLinear("layer", [(2**40, packed)], 0)
    integers, scale = w.to(torch.int8), torch.full((n,), 1e-3)
    packed = _C.int8_panels_pack(integers.data_ptr(), n, k, layout)
    return _C.PanelLinear("layer", [(2**40, packed)], scale.data_ptr(), 0, *scheme)


def attended(
    x: Tensor,
    lengths: list[int],
    isa: str,
    parts: list,
    heads: int,
    bias: Tensor | None,
    *,
    threads: int = 4,
    far_cores: bool,
    hold: bool,
) -> tuple[Tensor, list[str]]:
    """QKV, attention and a linear layer, and the labels of the stages."""
    qkv, out = parts
    positions = [0 if bias is None else 2] * len(lengths)
    run = _C.Forward(lengths, positions, threads, isa, POOL, far_cores)
    entered = run.from_rows(x.data_ptr(), x.stride(0), x.shape[1], None)
    value = run.linear(entered, qkv, "none", None, None)
    held = value if hold else None  # somebody may ask for it: it must be there as a whole
    at, span = (0, 0) if bias is None else (bias.data_ptr(), bias.shape[1])
    context = run.attention(value, heads, 0.1, at, span)
    del entered, value
    y = run.linear(context, out, "none", None, None)
    rows = torch.empty(len(x), y.features)
    run.to_rows(y, rows.data_ptr(), y.features)
    labels = [label for label, _ in run.run(profile=True)]
    del held
    return rows, labels


DYNAMIC, STATIC = ("asymmetric",), ("static", 0.03, 128)

CASES = [
    # layout, heads, features of a head, inputs, scheme, bias by position
    (
        "band4_gathered",
        4,
        32,
        128,
        DYNAMIC,
        True,
    ),  # one block of rows a head, two quantized at once
    ("band4_grouped", 4, 96, 384, STATIC, False),  # one and a half; no range is asked for
    ("dense", 4, 32, 200, DYNAMIC, False),  # heads were cropped: fewer features than inputs
    ("band1_grouped", 8, 64, 512, DYNAMIC, True),  # one group of rows a head, two heads a thread
    ("band1_gathered", 4, 128, 512, DYNAMIC, False),  # two groups of rows a head
    ("sparse32", 4, 64, 256, DYNAMIC, True),  # attention in floats
    ("dense32", 4, 64, 256, DYNAMIC, False),
    ("dense16", 4, 32, 128, DYNAMIC, True),  # results that become pairs
]
RUNS = [
    (isa, *case)
    for isa in ISAS
    for case in CASES
    if (_C.float_panels_runs if case[0].endswith(("16", "32")) else _C.int8_panels_runs)(
        case[0], isa
    )
]
HALVED = ("band4_gathered", "band4_grouped", "band1_grouped")


@pytest.mark.parametrize(("isa", "layout", "heads", "size", "inputs", "scheme", "biased"), RUNS)
@pytest.mark.parametrize(
    "lengths",
    [
        [128],  # two panels, or four with 32 slots in use
        [100, 284],  # six panels
        [420],  # seven
        [3, 60, 1],  # one panel, three sequences
    ],
)
@pytest.mark.parametrize(("threads", "far_cores"), [(4, False), (4, True), (1, True)])
def test_heads_by_themselves_are_the_whole_layer_s(
    isa: str,
    layout: str,
    heads: int,
    size: int,
    inputs: int,
    scheme: tuple,
    biased: bool,
    lengths: list[int],
    threads: int,
    far_cores: bool,
) -> None:
    torch.manual_seed(size)
    features, span = heads * size, max(lengths) + 2
    x = torch.randn(sum(lengths), inputs)
    bias = torch.randn(heads, span, span) if biased else None
    parts = [
        layer(torch.randint(-127, 128, (n, k)) * (torch.rand(n, k) < 0.3), layout, scheme)
        for n, k in ((3 * features, inputs), (inputs, features))
    ]
    cores = {"threads": threads, "far_cores": far_cores}
    mine, labels = attended(x, lengths, isa, parts, heads, bias, **cores, hold=False)
    whole, apart = attended(x, lengths, isa, parts, heads, bias, **cores, hold=True)
    assert torch.isfinite(mine).all()
    assert torch.equal(mine, whole)
    assert "attention" in apart
    # Seven panels are too many for it; AMX attention is left as it was measured.
    by_heads = isa != "amx" and sum(lengths) < 400
    assert ("attention" not in labels) == by_heads
    # Half full panels have one thread each, which ends them as a whole; as one thread does always.
    half = far_cores and lengths == [128] and layout in HALVED and isa != "amx"
    if threads > 1:
        assert ("from rows (ending)" in labels) == half


def test_heads_that_do_not_share_out_go_the_long_way() -> None:
    """Five heads among four threads; heads of 48 features, which are no whole blocks of rows."""
    for heads, size in ((5, 32), (4, 48)):
        w = torch.randint(-127, 128, (3 * heads * size, 64))
        out = torch.randint(-127, 128, (8, heads * size))
        parts = [layer(part, "band4_grouped", DYNAMIC) for part in (w, out)]
        x = torch.randn(100, 64)
        labels = attended(x, [100], "auto", parts, heads, None, far_cores=False, hold=False)[1]
        assert "attention" in labels
