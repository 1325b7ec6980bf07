"""Intel's quantization-aware training: its integers come back exactly, and damage is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.ao.quantization import disable_observer
from transformers import BertForSequenceClassification

from sparse_runtime.checkpoints import CheckpointError, open_checkpoint
from sparse_runtime.encoders import SparseModel
from sparse_runtime.ops import LinearWeight, get_backend
from sparse_runtime.store import load
from sparse_runtime.testing.exporters import intel_qat
from sparse_runtime.tools.convert import convert

LAYER = "bert.encoder.layer.0.attention.self.query"  # requantizes its output
PLAIN = "bert.encoder.layer.0.output.dense"  # does not


@pytest.fixture(scope="module")
@torch.no_grad()
def trained(
    plain: BertForSequenceClassification, texts: Callable[[int], tuple[Tensor, Tensor]]
) -> BertForSequenceClassification:
    model = copy.deepcopy(plain)
    # The outputs that Prune Once For All leaves as they are.
    intel_qat.quantize(model, lambda n: n.endswith(("output.dense", "value", "classifier")))
    for seed in range(3):
        model(*texts(seed))
    return model.apply(disable_observer)


@pytest.fixture(scope="module")
def state(trained: BertForSequenceClassification) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trained.state_dict().items()}


@pytest.fixture
def packed(state: dict[str, Tensor], write_qat: Callable[..., Path], tmp_path: Path) -> Path:
    convert(write_qat(state), tmp_path / "packed", progress=False)
    return tmp_path / "packed"


def quantized_layers(
    model: BertForSequenceClassification,
) -> dict[str, intel_qat.QuantizedLinear]:
    found = model.named_modules()
    return {name: m for name, m in found if isinstance(m, intel_qat.QuantizedLinear)}


def test_integers_scales_and_biases_are_those_of_the_training(
    trained: BertForSequenceClassification, state: dict[str, Tensor], write_qat: Callable[..., Path]
) -> None:
    checkpoint = open_checkpoint(write_qat(state))
    layers = quantized_layers(trained)
    assert set(checkpoint.linears) == set(layers)
    assert len(layers) == 14  # pooler and classifier too
    for name, layer in layers.items():
        found, values = checkpoint.linears[name], checkpoint.linears[name].load()
        assert values.weight.dtype == torch.int8
        assert torch.equal(values.weight * values.scales, layer.weight_fake_quant(layer.weight))
        assert found.activations is not None
        assert (found.activations.dtype, found.activations.scale, found.activations.zero_point) == (
            "uint8",
            layer.input_fake_quant.scale.item(),
            layer.input_fake_quant.zero_point.item(),
        )
        assert (found.outputs is not None) == bool(layer.output_fake_quant.requantize)
        if found.outputs is not None:
            assert found.outputs.scale == layer.output_fake_quant.scale.item()
        # At x = 0 the layer is its bias.
        layer = copy.deepcopy(layer)
        layer.output_fake_quant.disable_fake_quant()
        bias = checkpoint.tensors[f"{name}.bias"]
        assert torch.equal(bias, layer(torch.zeros(1, layer.in_features))[0])
        assert not torch.equal(bias, layer.bias)
    assert "in 14 linear layers" in checkpoint.steps[0]
    assert checkpoint.steps[2].startswith("outputs requantized to uint8 in 7 linear layers; in 7,")


@torch.no_grad()
def test_a_layer_computes_what_the_fake_quantized_one_does(
    trained: BertForSequenceClassification, packed: Path
) -> None:
    backend, model = get_backend("reference", "cpu", torch.float32), load(packed)
    flipped = total = 0
    for name, layer in quantized_layers(trained).items():
        linear = model.linears[name]
        prepared = backend.prepare_linear([LinearWeight(name, linear.packed, linear.bias)])
        x = torch.randn(256, layer.in_features, generator=torch.Generator().manual_seed(1))
        error = (prepared(x) - layer(x)).abs()
        if linear.packed.spec.outputs is None:
            # One float32 sum of up to 48 products on the other side, and none here.
            assert error.max() <= 1e-5
            continue
        levels = error / linear.packed.spec.outputs.scale
        assert levels.max() < 1.01
        flipped, total = flipped + int((levels > 0.5).sum()), total + levels.numel()
    assert flipped <= 1e-3 * total


@torch.no_grad()
def test_the_library_s_shifts_differ_by_a_level_now_and_then(
    trained: BertForSequenceClassification,
) -> None:
    """What docs/checkpoints.md says of its 16-bit mantissa, whose error is below 2**-15."""
    flipped = total = 0
    for layer in quantized_layers(trained).values():
        if not bool(layer.output_fake_quant.requantize):
            continue
        x = torch.randn(1024, layer.in_features, generator=torch.Generator().manual_seed(2))
        levels = (layer.deployed(x) - layer(x)).abs() / layer.output_fake_quant.scale
        assert levels.max() < 1.01
        flipped, total = flipped + int((levels > 0.5).sum()), total + levels.numel()
    assert 0 < flipped <= 255 * 2**-15 * total


@pytest.mark.usefixtures("float_attention")
# The kernels' GELU, exponential and sums differ from torch's in the last digits, so a quantizer
# behind them meets more ties.
@pytest.mark.parametrize(
    ("backend", "texts_equal", "share"), [("reference", 24, 0.05), ("auto", 12, 0.15)]
)
@torch.no_grad()
def test_the_model_computes_what_the_fake_quantized_one_does(
    backend: str,
    texts_equal: int,
    share: float,
    plain: BertForSequenceClassification,
    trained: BertForSequenceClassification,
    packed: Path,
    texts: Callable[[int], tuple[Tensor, Tensor]],
) -> None:
    model, exact = SparseModel.from_pretrained(packed, backend=backend), 0
    for seed in range(7, 11):
        ids, mask = texts(seed)
        keep = mask.unsqueeze(2)
        expected = trained.bert(ids, mask).last_hidden_state * keep
        effect = (plain.bert(ids, mask).last_hidden_state * keep - expected).abs()
        states = model(ids, mask, output_hidden_states=True).hidden_states
        errors = (states[-1] - expected).abs()
        # A few roundings of float32 numbers of size 1, in a text where no quantizer differs.
        exact += int((errors.amax((1, 2)) <= 2e-6).sum())
        # A value next to a tie that a quantizer puts on its other side moves what depends on it.
        assert errors.mean() <= share * effect.mean()
        assert (model(ids, mask).logits - trained(ids, mask).logits).abs().max() < 0.01
    assert exact >= texts_equal  # of 32 texts


def test_layers_that_are_switched_off_stay_floats(
    trained: BertForSequenceClassification, write_qat: Callable[..., Path], tmp_path: Path
) -> None:
    model = copy.deepcopy(trained)
    quantized_layers(model)[LAYER].switch_off()
    checkpoint = open_checkpoint(write_qat(model.state_dict()))
    assert LAYER not in checkpoint.linears
    assert len(checkpoint.linears) == 13
    assert torch.equal(checkpoint.tensors[f"{LAYER}.weight"], model.get_submodule(LAYER).weight)
    assert torch.equal(checkpoint.tensors[f"{LAYER}.bias"], model.get_submodule(LAYER).bias)
    assert f"fake_quant_enabled is 0: {LAYER} stay floats" in checkpoint.steps[-1]
    convert(checkpoint.directory, tmp_path / "packed", progress=False)
    assert load(tmp_path / "packed").linears[LAYER].packed.spec.values.dtype == "fp32"


def test_weights_are_read_when_they_are_asked_for(
    state: dict[str, Tensor], write_qat: Callable[..., Path]
) -> None:
    broken = state | {f"{LAYER}.weight": torch.full((32, 32), torch.nan)}
    linear = open_checkpoint(write_qat(broken)).linears[LAYER]
    with pytest.raises(CheckpointError, match=rf"{LAYER}\.weight: expected finite"):
        linear.load()


@pytest.mark.parametrize(
    "part",
    [
        "weight",
        "fake_quant_enabled",
        "weight_fake_quant.scale",
        "input_fake_quant.zero_point",
        "input_fake_quant.activation_post_process.min_val",
        "output_fake_quant.fake_quant_enabled",
        "output_fake_quant.requantize",
        "output_fake_quant.quant_enabled",
    ],
)
def test_a_missing_tensor_is_refused(
    part: str, state: dict[str, Tensor], write_qat: Callable[..., Path]
) -> None:
    rest = {name: t for name, t in state.items() if name != f"{LAYER}.{part}"}
    with pytest.raises(CheckpointError, match=rf"{LAYER}\.{part} is missing"):
        open_checkpoint(write_qat(rest))


def test_layers_without_their_step_are_refused(
    state: dict[str, Tensor], write_qat: Callable[..., Path]
) -> None:
    rest = {name: t for name, t in state.items() if not name.endswith("._step")}
    with pytest.raises(CheckpointError, match="'_step' in each quantized layer"):
        open_checkpoint(write_qat(rest))
    rest = {name: t for name, t in state.items() if name != f"{LAYER}._step"}
    with pytest.raises(CheckpointError, match=rf"{LAYER}\._step is missing"):
        open_checkpoint(write_qat(rest))


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("weight_fake_quant.scale", torch.zeros(1), "finite number above 0, got 0"),
        ("input_fake_quant.scale", torch.tensor([torch.inf]), "finite number above 0, got inf"),
        ("weight_fake_quant.scale", torch.ones(32), "one number for the whole tensor"),
        ("weight_fake_quant.zero_point", torch.tensor([3]), "expected 0, for weights"),
        ("input_fake_quant.zero_point", torch.tensor([-1]), r"outside \[0, 255\]"),
        ("output_fake_quant.zero_point", torch.tensor([256]), "an integer from -128 to 255"),
        ("input_fake_quant.zero_point", torch.tensor([0.5]), "an integer from -128 to 255"),
        ("input_fake_quant.zero_point", torch.tensor([torch.nan]), "an integer from -128 to 255"),
        ("input_fake_quant.extra", torch.ones(1), "got extra besides"),
        ("fake_quant_enabled", torch.tensor([2]), "expected 0 or 1, got 2"),
        # Switches that the library sets together.
        ("fake_quant_enabled", torch.tensor([0]), "says otherwise"),
        ("weight_fake_quant.fake_quant_enabled", torch.tensor([0]), "weight_fake_quant is missing"),
        ("input_fake_quant.fake_quant_enabled", torch.tensor([0]), "input_fake_quant is missing"),
        ("output_fake_quant.fake_quant_enabled", torch.tensor([0]), "output_fake_quant is missing"),
        ("output_fake_quant.requantize", torch.tensor([0]), "requantize 0"),
        ("output_fake_quant.quant_enabled", torch.tensor([0]), "quant_enabled is missing"),
        ("weight", torch.ones(32, 32, dtype=torch.float16), "expected float32"),
        ("weight", torch.ones(32, 4, 3), "expected a matrix"),
        ("bias", torch.ones(32, dtype=torch.bfloat16), "expected float32"),
    ],
)
def test_what_contradicts_itself_is_refused(
    part: str, value: Tensor, said: str, state: dict[str, Tensor], write_qat: Callable[..., Path]
) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        open_checkpoint(write_qat(state | {f"{LAYER}.{part}": value}))
    assert LAYER in str(caught.value)


def test_a_quantizer_that_was_never_calibrated_is_refused(
    plain: BertForSequenceClassification, write_qat: Callable[..., Path]
) -> None:
    model = copy.deepcopy(plain)
    intel_qat.quantize(model, lambda _: False)
    with pytest.raises(CheckpointError, match="before quantization-aware training had begun"):
        open_checkpoint(write_qat(model.state_dict()))


def test_integers_are_not_quantized_once_more(
    state: dict[str, Tensor], write_qat: Callable[..., Path], tmp_path: Path
) -> None:
    source = write_qat(state)
    with pytest.raises(CheckpointError, match="integers already"):
        convert(source, tmp_path / "packed", values="int4", progress=False)
    assert PLAIN in open_checkpoint(source).linears


def test_masks_cannot_be_folded_into_integers(
    state: dict[str, Tensor], write_qat: Callable[..., Path]
) -> None:
    masks = {"head_mask": torch.ones(2, 4), "intermediate_mask": torch.ones(2, 48)}
    with pytest.raises(CheckpointError, match=r"got integers .* before quantization"):
        open_checkpoint(write_qat(state | masks))


def test_integers_are_not_masked_by_scores(
    state: dict[str, Tensor], write_qat: Callable[..., Path]
) -> None:
    scores = {f"{LAYER}.mask_scores": torch.ones(32, 32)}
    with pytest.raises(CheckpointError, match=r"masks floats, .* integers .*QAT.*") as caught:
        options = {"pruning_method": "topK", "threshold": 0.5}
        open_checkpoint(write_qat(state | scores), finalise=options)
    assert "before quantization" in str(caught.value)
