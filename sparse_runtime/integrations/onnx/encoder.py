"""An encoder written as a graph, layer by layer, as sparse_runtime.encoders runs it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ...encoders.architecture import HIDDEN_ACT
from ...encoders.families import MASKED, QUESTION, SEQUENCE
from ...encoders.relative import attention_bias
from ...encoders.settings import BASE, Settings
from ...encoders.weights import LinearNames, Weights
from ...spec import ActivationSpec
from ...store import PackedModel
from .activations import activation
from .builder import Builder
from .linear import Form, write_linear

# What transformers adds to the scores of padding.
_MASKED = float(torch.finfo(torch.float32).min)


class EncoderGraph:
    """Writes one packed model into a graph.

    Args:
        packed: the model.
        settings: what its config.json says.
        weights: its tensors, in float32 on the CPU.
        form: how dynamic activations are written.
    """

    def __init__(
        self, packed: PackedModel, settings: Settings, weights: Weights, form: Form
    ) -> None:
        self._packed = packed
        self._settings = settings
        self._weights = weights
        self._form = form
        self._graph = Builder()
        self._base = weights.prefix

    def write(self) -> Any:
        """The model as an ``onnx.ModelProto``.

        Raises:
            ValueError: a layer has no ONNX form; names it.
        """
        names = [kind for kind, _ in self._settings.architecture.tables]
        inputs = ["input_ids", "attention_mask"]
        if "token_type" in names and self._settings.rows["token_type"] > 1:
            inputs.append("token_type_ids")
        x = self._embeddings("token_type_ids" in inputs)
        mask = self._mask()
        for layer in range(self._settings.layers):
            x = self._layer(x, mask, layer)
        return self._graph.model(inputs, self._outputs(x))

    def _embeddings(self, types: bool) -> str:
        g, architecture = self._graph, self._settings.architecture
        root = f"{self._base}embeddings"
        ids = {"word": "input_ids", "position": self._positions(root)}
        x = ""
        for kind, name in architecture.tables:
            if kind == "token_type":
                zero = g.constant("zero", np.array(0, np.int64))
                ids[kind] = (
                    "token_type_ids" if types else g.node("Mul", ["input_ids", zero], root, "types")
                )
            module = f"{self._base}{name}"
            table = g.constant(f"{module}.weight", self._weights.table(name))
            rows = g.node("Gather", [table, ids[kind]], module)
            x = g.node("Add", [x, rows], root, kind) if x else rows
        x = self._norm(x, f"{self._base}{architecture.embedding_norm}")
        projection = self._weights.projection()
        return x if projection is None else self._linear(x, projection)

    def _positions(self, root: str) -> str:
        g = self._graph
        if self._settings.padding_id is None:
            columns, one = self._columns(root), g.constant("one", np.array(1, np.int64))
            return g.node("Range", [g.constant("zero", np.array(0, np.int64)), columns, one], root)
        padding = g.constant("padding_id", np.array(self._settings.padding_id, np.int64))
        real = g.node("Equal", ["input_ids", padding], root)
        real = g.node("Cast", [g.node("Not", [real], root)], root, to=7)
        count = g.node("CumSum", [real, g.constant("axis_1", np.array(1, np.int64))], root)
        return g.node("Add", [g.node("Mul", [count, real], root, "real"), padding], root, "padding")

    def _columns(self, root: str) -> str:
        """The sequence's length as a number."""
        g = self._graph
        sizes = g.node("Shape", ["input_ids"], root)
        return g.node("Gather", [sizes, g.constant("one", np.array(1, np.int64))], root, "length")

    def _mask(self) -> str:
        g, root = self._graph, f"{self._base}encoder.mask"
        floats = g.node("Cast", ["attention_mask"], root, to=1)
        absent = g.node("Sub", [g.constant("one_float", 1.0), floats], root)
        axes = g.constant("mask_axes", [1, 2])
        absent = g.node("Unsqueeze", [absent, axes], root)
        bias = g.node("Mul", [absent, g.constant("masked", _MASKED)], root)
        name = self._settings.architecture.relative_bias
        return bias if name is None else self._relative(bias, f"{self._base}{name}", name)

    def _relative(self, bias: str, module: str, name: str) -> str:
        """The mask plus biases by distance: float [batch, heads, sequence, sequence]."""
        g = self._graph
        table = self._weights.table(name)
        # A table of which row i holds i gives the number of the row that each pair looks up.
        rows = torch.arange(table.shape[0], dtype=torch.float32).unsqueeze(1)
        pairs = attention_bias(rows, self._settings.max_length)[0].long()
        buckets = g.constant(f"{module}.buckets", pairs)
        end = g.node("Unsqueeze", [self._columns(module), g.constant("first", [0])], module)
        starts, axes = g.constant("starts", [0, 0]), g.constant("axes", [0, 1])
        ends = g.node("Concat", [end, end], module, axis=0)
        near = g.node("Slice", [buckets, starts, ends, axes], module)
        biases = g.node("Gather", [g.constant(f"{module}.weight", table), near], module)
        heads = g.node("Transpose", [biases], module, perm=[2, 0, 1])
        return g.node("Add", [bias, heads], f"{module}_mask")

    def _layer(self, x: str, mask: str, place: int) -> str:
        g, names = self._graph, self._settings.architecture.layer
        layer, shape = f"{self._weights.stack}.{place}", self._weights.shapes[place]
        if shape.heads:
            x = self._attention_block(x, mask, layer)
        if not shape.intermediate:
            return x
        y = self._stack_linear(x, f"{layer}.{names.ffn_in}")
        y = activation(g, self._settings.activation, y, f"{layer}.{names.ffn_in}_act")
        y = self._stack_linear(y, f"{layer}.{names.ffn_out}")
        x = g.node("Add", [y, x], f"{layer}.{names.ffn_out}_residual")
        return self._norm(x, f"{layer}.{names.ffn_norm}")

    def _attention_block(self, x: str, mask: str, layer: str) -> str:
        g, names = self._graph, self._settings.architecture.layer
        quantized = self._packed.attention.get(layer)
        parts: dict[str, ActivationSpec] = {} if quantized is None else quantized.parts()
        module = f"{layer}.attention"
        sides = {}
        for name, linear in zip(("query", "key", "value"), names.qkv, strict=True):
            y = self._heads(self._stack_linear(x, f"{layer}.{linear}"), f"{layer}.{linear}", name)
            sides[name] = g.quantized(y, parts.get(name), module, name)
        scores = g.node("MatMul", [sides["query"], sides["key"]], module, "scores")
        scores = g.quantized(scores, parts.get("scores"), module, "scores")
        root = g.constant("root_of_head_size", self._settings.head_size**-0.5)
        scores = g.node("Mul", [scores, root], module, "scale")
        chances = g.node("Softmax", [g.node("Add", [scores, mask], module)], module, axis=-1)
        chances = g.quantized(chances, parts.get("probabilities"), module, "probabilities")
        context = g.node("MatMul", [chances, sides["value"]], module, "context")
        context = g.quantized(context, parts.get("context"), module, "context")
        context = g.node("Transpose", [context], module, "context", perm=[0, 2, 1, 3])
        context = g.node("Reshape", [context, g.constant("joined", [0, 0, -1])], module, "context")
        y = self._stack_linear(context, f"{layer}.{names.attention_out}")
        x = g.node("Add", [y, x], f"{layer}.{names.attention_out}_residual")
        return self._norm(x, f"{layer}.{names.attention_norm}")

    def _heads(self, x: str, module: str, name: str) -> str:
        """[batch, heads, sequence, size]; keys with their last two axes exchanged."""
        g = self._graph
        shape = g.constant("by_head", [0, 0, -1, self._settings.head_size])
        order = [0, 2, 3, 1] if name == "key" else [0, 2, 1, 3]
        return g.node("Transpose", [g.node("Reshape", [x, shape], module)], module, perm=order)

    def _norm(self, x: str, module: str) -> str:
        norm = self._weights.norm(module)
        numbers = [
            self._graph.constant(f"{module}.weight", norm.weight),
            self._graph.constant(f"{module}.bias", norm.bias),
        ]
        if norm.eps is None:
            # A norm without statistics (NoNorm): weight and bias alone.
            scaled = self._graph.node("Mul", [x, numbers[0]], module)
            return self._graph.node("Add", [scaled, numbers[1]], module)
        return self._graph.node(
            "LayerNormalization", [x, *numbers], module, axis=-1, epsilon=norm.eps
        )

    def _stack_linear(self, x: str, module: str) -> str:
        return write_linear(self._graph, x, module, self._packed.linears[module], self._form)

    def _linear(self, x: str, names: LinearNames) -> str:
        """A layer outside of the stack, packed or plain."""
        if names.name in self._packed.linears:
            return self._stack_linear(x, names.name)
        g = self._graph
        weight = g.constant(names.weight, self._plain(names.weight))
        turned = g.node("Transpose", [weight], names.name, perm=[1, 0])
        product = g.node("MatMul", [x, turned], names.name)
        return g.node("Add", [product, g.constant(names.bias, self._plain(names.bias))], names.name)

    def _plain(self, name: str) -> torch.Tensor:
        stored = self._packed.aliases.get(name, name)
        return self._packed.tensors[stored].float()

    def _outputs(self, x: str) -> dict[str, tuple[str, list[str | int]]]:
        """The task's outputs under the names that transformers and Optimum give them."""
        settings, g = self._settings, self._graph
        tokens: list[str | int] = ["batch_size", "sequence_length"]
        steps = list(self._weights.head_linears())
        first_only = settings.task in (BASE, SEQUENCE)
        y = x
        if steps and first_only:
            first = g.constant("zero", np.array(0, np.int64))
            y = g.node("Gather", [x, first], f"{self._base}first_token", axis=1)
        for step, names in steps:
            y = self._linear(y, names)
            name = settings.activation if step.activation == HIDDEN_ACT else step.activation
            y = y if name is None else activation(g, name, y, f"{names.name}_act")
            y = y if step.norm is None else self._norm(y, step.norm)
        if settings.task == BASE:
            hidden = settings.sizes["hidden"]
            found = {"last_hidden_state": (x, [*tokens, hidden])}
            return found | ({"pooler_output": (y, ["batch_size", hidden])} if steps else {})
        if settings.task == QUESTION:
            start, end = g.nodes("Split", [y], "answer", "", 2, axis=-1)
            axis = g.constant("last_axis", [-1])
            return {
                f"{name}_logits": (g.node("Squeeze", [value, axis], name), tokens)
                for name, value in (("start", start), ("end", end))
            }
        size = settings.sizes["vocab" if settings.task == MASKED else "labels"]
        return {"logits": (y, ["batch_size", size] if first_only else [*tokens, size])}
