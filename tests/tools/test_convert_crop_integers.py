"""convert(crop="auto") of layers that the source states in integers: not one bit changes.

These models have erf-GELU or ReLU. With tanh-GELU and SiLU PyTorch's last bit depends on an
element's place in its row, so the reference may differ in it where a layer became narrower.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from sparse_runtime import SparseModel, store
from sparse_runtime.compress import encoder_linears
from sparse_runtime.compress.statement import LinearQuantization
from sparse_runtime.compress.writing import write_checkpoint
from sparse_runtime.formats import project
from sparse_runtime.formats.quantize import cast_values
from sparse_runtime.spec import ActivationSpec, QuantizedAttention, Structure, ValueSpec
from sparse_runtime.testing.exporters.compressed_tensors import DYNAMIC, STATIC, export_integers
from sparse_runtime.tools.convert import convert

DYNAMIC_UINT8 = ActivationSpec("dynamic", "uint8")
STATIC_UINT8 = ActivationSpec("static", "uint8", 0.05, 117)
OUTPUTS = ActivationSpec("static", "uint8", 0.05, 40)  # from -2 to 10.75
HEAD, NEURONS = 16, 48
ATTENTION, FFN = "encoder.layer.0.attention.", "encoder.layer.0."

Edit = Callable[[dict[str, Tensor]], None]


def rows_of_heads(*heads: int) -> Tensor:
    return torch.arange(4 * HEAD).view(4, HEAD)[list(heads)].flatten()


def silence(state: dict[str, Tensor], heads: Tensor, neurons: Any) -> None:
    """What these heads and neurons of the first layer give is 0."""
    for module, at in ((f"{ATTENTION}self.value", heads), (f"{FFN}intermediate.dense", neurons)):
        state[f"{module}.weight"][at] = 0
        state[f"{module}.bias"][at] = 0


def leave_unread(state: dict[str, Tensor], heads: Tensor, neurons: Any) -> None:
    """Nobody reads these heads and neurons of the first layer."""
    state[f"{ATTENTION}output.dense.weight"][:, heads] = 0
    state[f"{FFN}output.dense.weight"][:, neurons] = 0


def silent(heads: tuple[int, ...], neurons: Any) -> Edit:
    def edit(state: dict[str, Tensor]) -> None:
        silence(state, rows_of_heads(*heads), neurons)
        leave_unread(state, rows_of_heads(*heads), neurons)

    return edit


def build(edit: Edit, **config: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = BertModel(BertConfig(**sizes, intermediate_size=NEURONS, **config)).eval()
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            if tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor) * (0.3 if name.endswith("bias") else 0.1))
        edit(state)
    return model


def state_integers(
    model: nn.Module,
    directory: Path,
    values: ValueSpec,
    activations: ActivationSpec | None,
    outputs: ActivationSpec | None = None,
    only: str | None = None,
) -> Path:
    """Write the model with its layers, or some of them, rounded to integers times scales."""
    said = {}
    for name, linear in encoder_linears(model, include=only).items():
        with torch.no_grad():
            stored, scales = cast_values(linear.weight, values)
            assert scales is not None
            linear.weight.copy_(stored * values.spread(scales, *linear.weight.shape))
        said[name] = LinearQuantization(values, scales, activations, outputs)
    return write_checkpoint(model, None, directory, quantization=said)


def outputs_of(directory: Path, backend: str = "reference") -> list[Tensor]:
    model = SparseModel.from_pretrained(directory, device="cpu", backend=backend)
    ids = torch.randint(4, 64, (3, 30), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 11:], mask[2, 1:] = 0, 0
    full = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return [full, model(input_ids=ids[:1, :7]).last_hidden_state]


def converted(source: Path, tmp_path: Path, **arguments: Any) -> tuple[tuple[int, ...], int]:
    """Heads and neurons that left the first layer; "cropped" and "whole" lie in tmp_path."""
    convert(source, tmp_path / "whole", crop="none", **arguments)
    report = convert(source, tmp_path / "cropped", **arguments)
    if not report.cropped:
        return (), 0
    (layer,) = report.cropped
    linears = store.load(tmp_path / "cropped").linears
    shapes = {name: linear.packed.spec.shape for name, linear in linears.items()}
    inner, heads = NEURONS - layer.neurons, HEAD * (4 - len(layer.heads))
    assert shapes[f"{FFN}intermediate.dense"] == (inner, 64)
    assert shapes[f"{FFN}output.dense"] == (64, inner)
    assert {shapes[f"{ATTENTION}self.{n}"] for n in ("query", "key", "value")} == {(heads, 64)}
    assert shapes[f"{ATTENTION}output.dense"] == (64, heads)
    return layer.heads, layer.neurons


def no_bit_differs(tmp_path: Path) -> bool:
    return all(
        torch.equal(a, b)
        for backend in ("reference", "auto")
        for a, b in zip(
            outputs_of(tmp_path / "whole", backend),
            outputs_of(tmp_path / "cropped", backend),
            strict=True,
        )
    )


@pytest.mark.parametrize(
    ("values", "scales", "heads", "neurons"),
    [
        ("int8", "row", (1, 3), 35),
        ("int4", "row", (1, 3), 35),
        ("int8", "tensor", (1, 3), 35),
        ("int8", "chunk:16", (1, 3), 16),  # rows 16 to 31; a head is one chunk
        ("int8", "chunk:20", (), 20),  # rows 20 to 39 of three chunks, the last one shorter
        ("int8", "group:8", (1, 3), 32),  # columns 8 to 39; a head is two groups
        ("int8", "group:12", (3,), 24),  # columns 12 to 35; heads 0 to 2 end where a group does
    ],
)
def test_whatever_shares_a_scale(
    values: str, scales: str, heads: tuple[int, ...], neurons: int, tmp_path: Path
) -> None:
    model = build(silent((1, 3), slice(5, 40)))
    spec = ValueSpec.parse(values, scales)
    source = state_integers(model, tmp_path / "source", spec, DYNAMIC_UINT8)
    assert converted(source, tmp_path) == (heads, neurons)
    assert no_bit_differs(tmp_path)


@pytest.mark.parametrize(
    ("activations", "outputs"),
    [
        (DYNAMIC_UINT8, None),
        (ActivationSpec("dynamic", "int8"), None),
        (ActivationSpec("dynamic", "int8", narrow_range=False), None),
        (STATIC_UINT8, None),
        (STATIC_UINT8, OUTPUTS),
    ],
)
def test_heads_and_neurons_of_which_one_side_is_zero(
    activations: ActivationSpec, outputs: ActivationSpec | None, tmp_path: Path
) -> None:
    # The scale of a token counts numbers that nobody reads; one that is fixed does not.
    cases = {"zero": (silence, True), "unread": (leave_unread, activations.scheme == "static")}
    for name, (edit, goes) in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        model = build(partial(edit, heads=rows_of_heads(2), neurons=slice(0, 20)))
        source = state_integers(model, folder / "source", ValueSpec("int8"), activations, outputs)
        assert converted(source, folder) == (((2,), 20) if goes else ((), 0))
        assert no_bit_differs(folder)


def test_unread_neurons_that_are_not_zero_stay_beside_those_that_are(tmp_path: Path) -> None:
    def edit(state: dict[str, Tensor]) -> None:
        silent((0,), slice(30, 48))(state)
        leave_unread(state, rows_of_heads(1), slice(0, 40))
        # Large, so that leaving them out would show in every token's scale.
        state[f"{FFN}intermediate.dense.bias"][:30] = 9.0

    source = state_integers(build(edit), tmp_path / "source", ValueSpec("int8"), DYNAMIC_UINT8)
    assert converted(source, tmp_path) == ((0,), 18)
    assert no_bit_differs(tmp_path)


@pytest.mark.parametrize(
    ("activation", "bias", "outputs", "neurons"),
    [
        ("relu", -1.0, None, 12),
        ("relu", -1.0, OUTPUTS, 12),
        ("gelu", -20.0, None, 12),  # 0 in float64
        ("gelu", -20.0, OUTPUTS, 0),  # the quantizer makes -2 of it
        ("gelu", 0.02, OUTPUTS, 12),  # the quantizer makes 0 of it
        ("gelu", 0.02, None, 0),
    ],
)
def test_neurons_that_only_have_a_bias(
    activation: str, bias: float, outputs: Any, neurons: int, tmp_path: Path
) -> None:
    def edit(state: dict[str, Tensor]) -> None:
        state[f"{FFN}intermediate.dense.weight"][:12] = 0
        state[f"{FFN}intermediate.dense.bias"][:12] = bias

    model = build(edit, hidden_act=activation)
    source = state_integers(model, tmp_path / "source", ValueSpec("int8"), STATIC_UINT8, outputs)
    assert converted(source, tmp_path) == ((), neurons)
    assert no_bit_differs(tmp_path)


@pytest.mark.parametrize("group_size", [0, 16])
@pytest.mark.parametrize("inputs", [DYNAMIC, STATIC], ids=["dynamic", "static"])
def test_zero_points_of_weights(inputs: dict[str, Any], group_size: int, tmp_path: Path) -> None:
    """compressed-tensors: a weight is 0 where its integer is the zero point."""
    model = build(lambda state: silence(state, rows_of_heads(1), slice(0, 16)))
    tensors, section = export_integers(
        dict(model.state_dict()), symmetric=False, inputs=inputs, group_size=group_size
    )
    for module, rows in (
        (f"{ATTENTION}self.value", rows_of_heads(1)),
        (f"{FFN}intermediate.dense", torch.arange(16)),
    ):
        tensors[f"{module}.weight"][rows] = -7
        tensors[f"{module}.weight_zero_point"][rows] = -7
        tensors[f"{module}.weight_scale"][rows] = 0.5
    out = f"{FFN}output.dense"  # neurons 16 to 31 are not read, which is one group
    zero_points = tensors[f"{out}.weight_zero_point"]
    tensors[f"{out}.weight"][:, 16:32] = zero_points[:, 1 if group_size else 0, None]
    # Stored zeros, which are no zeros: nothing may go for them.
    tensors[f"{FFN}intermediate.dense.weight"][32:] = 0
    tensors[f"{ATTENTION}output.dense.weight"][:, rows_of_heads(3)] = 0
    section["ignore"] = ["pooler.dense"]
    source = tmp_path / "source"
    source.mkdir()
    save_file({n: t.contiguous() for n, t in tensors.items()}, source / "model.safetensors")
    config = json.loads(model.config.to_json_string())
    (source / "config.json").write_text(
        json.dumps(config | {"quantization_config": section, "architectures": ["BertModel"]})
    )
    assert converted(source, tmp_path) == ((1,), 16 if inputs["dynamic"] else 32)
    assert no_bit_differs(tmp_path)


def test_quantizers_within_attention_leave_zeros_zero(tmp_path: Path) -> None:
    model = build(lambda state: silence(state, rows_of_heads(0, 2), slice(0, 3)))
    source = state_integers(model, tmp_path / "source", ValueSpec("int8"), STATIC_UINT8, OUTPUTS)
    assert converted(source, tmp_path) == ((0, 2), 3)
    attention = QuantizedAttention(
        query=OUTPUTS,
        key=STATIC_UINT8,
        scores=ActivationSpec("static", "uint8", 0.1, 99),
        probabilities=ActivationSpec("static", "uint8", 1 / 255, 0),
        value=STATIC_UINT8,
        context=OUTPUTS,
    )
    for name in ("whole", "cropped"):
        packed = store.load(tmp_path / name)
        store.save(
            replace(packed, attention={"encoder.layer.0": attention}),
            tmp_path / name,
            overwrite=True,
        )
    assert no_bit_differs(tmp_path)


@pytest.mark.parametrize("only", [None, "intermediate|output.dense"])
def test_integers_beside_floats(only: str | None, tmp_path: Path) -> None:
    """Without quantized inputs sums of floats change their order, as with float weights."""
    model = build(silent((1,), slice(4, 10)))
    activations = None if only is None else DYNAMIC_UINT8
    source = state_integers(model, tmp_path / "source", ValueSpec("int8"), activations, only=only)
    assert converted(source, tmp_path) == ((1,), 6)
    pairs = zip(outputs_of(tmp_path / "whole"), outputs_of(tmp_path / "cropped"), strict=True)
    assert all((a - b).abs().max() < 1e-5 for a, b in pairs)


def test_patterns_of_integers_stay_whole(tmp_path: Path) -> None:
    def edit(state: dict[str, Tensor]) -> None:
        weight = state[f"{FFN}output.dense.weight"]
        weight.copy_(project(weight, Structure.parse("2:4")))
        silent((), [0, 1, 2, *range(8, 24)])(state)

    source = state_integers(build(edit), tmp_path / "source", ValueSpec("int8"), DYNAMIC_UINT8)
    assert converted(source, tmp_path) == ((), 16)
    linears = store.load(tmp_path / "cropped").linears
    assert str(linears[f"{FFN}output.dense"].packed.spec.structure) == "2:4"
    assert no_bit_differs(tmp_path)


def test_constants_are_not_folded_through_quantizers(tmp_path: Path) -> None:
    model = build(silent((1,), slice(0, 9)))
    source = state_integers(model, tmp_path / "source", ValueSpec("int8"), DYNAMIC_UINT8)
    with pytest.raises(ValueError, match="crop 'fold': the source states integers; leave crop out"):
        convert(source, tmp_path / "out", crop="fold")
    assert not (tmp_path / "out").exists()
