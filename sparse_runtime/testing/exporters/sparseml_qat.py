"""A BERT as quantization-aware training of SparseML leaves it, for tests of what opens it.

Its ``state_dict()`` has the tensors of such a checkpoint, made by torch's own QuantWrapper,
QuantStub and FakeQuantize, and its forward is the fake-quantized one of the training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.nn.qat import Linear
from torch.ao.quantization import (
    FakeQuantize,
    MovingAverageMinMaxObserver,
    QConfig,
    QuantStub,
    QuantWrapper,
)
from torch.nn import functional as F

_RANGES = {torch.quint8: (0, 255), torch.qint8: (-128, 127)}


def quantizer(dtype: torch.dtype, *, symmetric: bool) -> FakeQuantize:
    """A FakeQuantize of 8 bits with one scale for the tensor."""
    low, high = _RANGES[dtype]
    return FakeQuantize(
        observer=MovingAverageMinMaxObserver,
        quant_min=low,
        quant_max=high,
        dtype=dtype,
        qscheme=torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine,
    )


def _attach(module: nn.Module, fake_quant: FakeQuantize) -> None:
    """Quantize what a module returns, as torch's prepare does."""
    module.add_module("activation_post_process", fake_quant)
    module.register_forward_hook(lambda _module, _inputs, output: fake_quant(output))


def _stub(dtype: torch.dtype, *, symmetric: bool = False) -> QuantStub:
    stub = QuantStub()
    _attach(stub, quantizer(dtype, symmetric=symmetric))
    return stub


class Embedding(nn.Embedding):
    """A table that is quantized before it is looked up in."""

    def __init__(self, table: nn.Embedding, dtype: torch.dtype, outputs: bool) -> None:
        super().__init__(table.num_embeddings, table.embedding_dim, table.padding_idx)
        self.load_state_dict(table.state_dict())
        self.weight_fake_quant = quantizer(dtype, symmetric=False)
        if outputs:
            _attach(self, quantizer(dtype, symmetric=False))

    def forward(self, input: Tensor) -> Tensor:
        """Rows of the quantized table, float32 [..., features], for integers [...]."""
        return F.embedding(input, self.weight_fake_quant(self.weight), self.padding_idx)


class Product(nn.Module):
    """``torch.matmul`` with quantized operands, the right one symmetric, and a quantized result."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        stubs = [_stub(dtype), _stub(dtype, symmetric=True)]
        self.input_quant_stubs = nn.ModuleList(stubs)
        self.output_quant_stubs = nn.ModuleList([_stub(dtype)])

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """float32 [..., m, k] times [..., k, n]."""
        left, right = self.input_quant_stubs[0](left), self.input_quant_stubs[1](right)
        output: Tensor = self.output_quant_stubs[0](torch.matmul(left, right))
        return output


class SelfAttention(nn.Module):
    """The self-attention of BERT with quantized products.

    Args:
        attention: transformers' BertSelfAttention, whose layers it takes over.
        heads: how many it has.
        dtype: of the quantizers.
    """

    def __init__(self, attention: nn.Module, heads: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads = heads
        parts = (attention.get_submodule(name) for name in ("query", "key", "value"))
        self.query, self.key, self.value = parts
        self.attention_scores_matmul = Product(dtype)
        self.context_layer_matmul = Product(dtype)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, None]:
        """float32 [batch, tokens, features]; the mask is what is added to the scores."""
        query, key, value = (
            layer(hidden_states).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = self.attention_scores_matmul(query, key.transpose(2, 3)) / query.shape[-1] ** 0.5
        if attention_mask is not None:
            scores = scores + attention_mask
        context = self.context_layer_matmul(scores.softmax(-1), value)
        return context.transpose(1, 2).flatten(2), None


def quantize(
    model: nn.Module,
    heads: int,
    *,
    dtype: torch.dtype = torch.quint8,
    outputs: Sequence[str] = (),
    embedding_outputs: bool = False,
) -> list[str]:
    """Replace linear layers, tables and attention; calibrate by running the model, then freeze it.

    Args:
        model: a BERT of transformers with eager attention, changed in place.
        heads: of its attention.
        dtype: of all but the weights of linear layers: torch.quint8, or torch.qint8 as in later
            releases.
        outputs: last parts of the names of the linear layers whose output is quantized.
        embedding_outputs: whether the rows that are looked up are quantized once more.

    Returns:
        The names of the linear layers.
    """
    weights = QConfig(
        activation=nn.Identity,
        weight=FakeQuantize.with_args(
            observer=MovingAverageMinMaxObserver,
            quant_min=-128,
            quant_max=127,
            dtype=torch.qint8,
            qscheme=torch.per_tensor_symmetric,
        ),
    )
    names = []
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            linear = Linear(module.in_features, module.out_features, qconfig=weights)
            linear.load_state_dict(module.state_dict(), strict=False)
            if name.endswith(tuple(outputs)) and outputs:
                _attach(linear, quantizer(dtype, symmetric=False))
            wrapped = QuantWrapper(linear)
            wrapped.quant = _stub(dtype)
            model.set_submodule(name, wrapped)
            names.append(name)
        elif isinstance(module, nn.Embedding):
            model.set_submodule(name, Embedding(module, dtype, embedding_outputs))
    for name, module in list(model.named_modules()):
        if name.endswith("attention.self"):
            model.set_submodule(name, SelfAttention(module, heads, dtype))
    return names
