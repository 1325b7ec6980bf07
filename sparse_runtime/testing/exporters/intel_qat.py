"""A model as quantization-aware training of Intel's Model-Compression-Research leaves it.

Its ``state_dict()`` has the tensors of such a checkpoint, and its forward computes, with floats and
torch's own FakeQuantize, what the integers of such a checkpoint mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize, MinMaxObserver, MovingAverageMinMaxObserver
from torch.nn import functional as F

from ...spec import ActivationSpec
from .directory import write_directory

_MANTISSA_BITS = 16


def _activation_quantizer() -> FakeQuantize:
    return FakeQuantize(
        observer=MovingAverageMinMaxObserver,
        quant_min=0,
        quant_max=255,
        dtype=torch.quint8,
        qscheme=torch.per_tensor_affine,
    )


class QuantizedLinear(nn.Linear):
    """A linear layer with quantizers of its weight, its input and, if asked for, its output.

    Args:
        linear: whose weight and bias it takes over.
        requantize: whether the output is requantized.
    """

    _step: Tensor
    fake_quant_enabled: Tensor

    def __init__(self, linear: nn.Linear, requantize: bool) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.load_state_dict(linear.state_dict())
        self.weight_fake_quant = FakeQuantize(
            observer=MinMaxObserver,
            quant_min=-128,
            quant_max=127,
            dtype=torch.qint8,
            qscheme=torch.per_tensor_symmetric,
        )
        self.input_fake_quant = _activation_quantizer()
        self.output_fake_quant = _activation_quantizer()
        if not requantize:
            self.output_fake_quant.disable_fake_quant()
            self.output_fake_quant.disable_observer()
        for name, value in (("requantize", requantize), ("quant_enabled", True)):
            flag = torch.tensor([value], dtype=torch.uint8)
            self.output_fake_quant.register_buffer(name, flag)
        self.register_buffer("_step", torch.zeros(1))
        self.register_buffer("fake_quant_enabled", torch.ones(1, dtype=torch.uint8))

    def switch_off(self) -> None:
        """Disable every quantizer, as before the first step of the training."""
        for group in (self.weight_fake_quant, self.input_fake_quant, self.output_fake_quant):
            group.disable_fake_quant()
        self.fake_quant_enabled.zero_()
        self.output_fake_quant.get_buffer("quant_enabled").zero_()

    def forward(self, x: Tensor) -> Tensor:
        """The layer in floats: quantized and given back at once, the bias as 32-bit integers are.

        Args:
            x: float32 [..., in].
        """
        x, weight = self.input_fake_quant(x), self.weight_fake_quant(self.weight)
        bias: Tensor | None = self.bias
        if bias is not None and bool(self.fake_quant_enabled):
            scale = self.input_fake_quant.scale * self.weight_fake_quant.scale
            bias = torch.round(bias * (1 / scale)) * scale
        return self.output_fake_quant(F.linear(x, weight, bias))

    def deployed(self, x: Tensor) -> Tensor:
        """The layer in integers, outputs rescaled by a mantissa of 16 bits and a right shift.

        How the library simulates inference; only for layers that requantize.

        Args:
            x: float32 [..., in].
        """
        inputs, weight, outputs = (
            group.scale
            for group in (self.input_fake_quant, self.weight_fake_quant, self.output_fake_quant)
        )
        q = torch.round(x / inputs + self.input_fake_quant.zero_point).clamp(0, 255)
        w = torch.round(self.weight / weight).clamp(-128, 127)
        total = F.linear((q - self.input_fake_quant.zero_point).double(), w.double())
        total += torch.round(self.bias / (inputs * weight))
        factor = inputs * weight / outputs
        shift = torch.floor(_MANTISSA_BITS - 1 - torch.log2(factor))
        mantissa = torch.round(factor * 2**shift)
        y = torch.round(total * mantissa.double() / 2 ** shift.double())
        zero_point = self.output_fake_quant.zero_point
        return ((y + zero_point).clamp(0, 255) - zero_point).float() * outputs


def quantize(model: nn.Module, keeps_output: Callable[[str], bool]) -> list[str]:
    """Replace every linear layer of a model; calibrate it by running it, then freeze it.

    Args:
        model: changed in place.
        keeps_output: name of a layer -> whether its output stays as it is.

    Returns:
        The names of the layers.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name in names:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        model.set_submodule(name, QuantizedLinear(linear, not keeps_output(name)))
    return names


def export_intel_qat(
    directory: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    layers: Mapping[str, tuple[float, ActivationSpec, ActivationSpec | None]],
) -> None:
    """Write a trained model with the quantizers that the library would have left in it.

    Args:
        directory: to write.
        config: of the model.
        tensors: of the model; weights of ``layers`` in float32.
        layers: by name: the weight's scale, static uint8 quantizers of the input and of the output,
            None where it is not requantized.
    """
    written = dict(tensors)
    for module, (scale, inputs, outputs) in layers.items():
        groups: dict[str, Tensor] = {"_step": torch.ones(1), "fake_quant_enabled": _flag(True)}
        groups |= _group("weight_fake_quant", scale, 0, (-127.5, 127.5))
        groups |= _group("input_fake_quant", inputs.scale, inputs.zero_point, (0, 255))
        again = outputs or ActivationSpec("static", "uint8", 1.0)
        groups |= _group("output_fake_quant", again.scale, again.zero_point, (0, 255))
        requantize = _flag(outputs is not None)
        groups |= {
            "output_fake_quant.fake_quant_enabled": requantize,
            "output_fake_quant.requantize": requantize,
            "output_fake_quant.quant_enabled": _flag(True),
        }
        written |= {f"{module}.{name}": tensor for name, tensor in groups.items()}
    write_directory(directory, config, written)


def _group(
    name: str, scale: float, zero_point: int, limits: tuple[float, float]
) -> dict[str, Tensor]:
    """A FakeQuantize whose observer has seen exactly its range."""
    low, high = ((limit - zero_point) * scale for limit in limits)
    return {
        f"{name}.fake_quant_enabled": _flag(True),
        f"{name}.observer_enabled": _flag(False),
        f"{name}.scale": torch.tensor([scale]),
        f"{name}.zero_point": torch.tensor([zero_point], dtype=torch.int32),
        f"{name}.activation_post_process.min_val": torch.tensor(low),
        f"{name}.activation_post_process.max_val": torch.tensor(high),
    }


def _flag(value: bool) -> Tensor:
    return torch.tensor([value], dtype=torch.uint8)
