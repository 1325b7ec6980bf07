"""From an understood graph to the model's tensors and quantized layers."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from ...spec import ActivationSpec, QuantizedAttention
from ..draft import Draft
from ..errors import CheckpointError, listed
from ..options import one_of
from ..quantized import QuantizedLinear
from .attention import find_parts
from .constants import Constant
from .feed_forward import check_feed_forwards
from .flow import find_attentions
from .graph import Graph
from .leftovers import explain_rest
from .linears import GraphLinear, find_linears
from .lowering import lowered
from .names import name_linears, wrapper_of
from .parameters import Parameter, find_parameters
from .path import check_path
from .quantizers import Placed, Quantizers, find_quantizers
from .stated import check_heads, take_epsilon
from .weights import read_values, value_spec

_LAYER = re.compile(r"(.*\.layers?\.\d+)\..+")
_PER_TOKEN = ActivationSpec("dynamic", "uint8")


class Assembly:
    """Fills a draft from a graph.

    Args:
        draft: gets tensors, linears, attention, steps and what was left out.
        stored: the graph as read from the file.

    Raises:
        CheckpointError: the graph contradicts itself or config.json, or has lost names.
    """

    def __init__(self, draft: Draft, stored: Graph) -> None:
        self._draft = draft
        self._stored = stored
        self._graph = lowered(stored)
        self._linears = find_linears(self._graph)
        self._attentions = find_attentions(self._graph, self._linears)
        names = name_linears(self._linears, self._attentions, draft.config, stored.where)
        check_feed_forwards(self._graph, self._linears, names, draft.config)
        check_path(self._graph, self._linears, self._attentions)
        check_heads(self._graph, self._attentions, draft.config)
        epsilon = take_epsilon(self._graph, draft.config)
        if epsilon:
            draft.steps.append(epsilon)
        self._parameters = find_parameters(self._graph, self._linears)
        wrapper = wrapper_of([*names, *(found.module for found in self._parameters)])
        if wrapper:
            draft.steps.append(f"names of modules: without the wrapper {wrapper!r}")
        self._plain = lambda module: module.removeprefix(wrapper)
        self._names = [self._plain(name) for name in names]
        self._used: set[str] = set()
        self._dequantized: Counter[str] = Counter()

    def run(self) -> None:
        """Do it.

        Raises:
            CheckpointError: the file holds what a packed model has no place for, or leaves
                something open.
        """
        attention, placed = self._quantized_attention()
        quantizers = find_quantizers(self._graph, self._linears, placed)
        self._ask(quantizers)
        for place, (name, linear) in enumerate(zip(self._names, self._linears, strict=True)):
            self._put_linear(name, linear, place, quantizers)
        self._draft.attention.update(attention)
        self._put_parameters()
        self._report(quantizers)
        explain_rest(self._draft, self._stored, self._graph, self._used)

    def _quantized_attention(self) -> tuple[dict[str, QuantizedAttention], Placed]:
        found, placed = {}, Placed()
        names = {id(linear): name for linear, name in zip(self._linears, self._names, strict=True)}
        for attention in self._attentions:
            layer = _LAYER.fullmatch(names[id(attention.roles["query"])])
            parts = find_parts(self._graph, attention, placed) if layer else {}
            if layer and parts:
                found[layer[1]] = QuantizedAttention(**parts)
        return found, placed

    def _ask(self, quantizers: Quantizers) -> None:
        """What the user has to know of arithmetic that is not the file's."""
        options, where = self._draft.options, self._stored.where
        if quantizers.dynamic:
            options.ask(
                "activations",
                one_of("dynamic"),
                f"{where}: it quantizes the inputs of {len(quantizers.dynamic)} linear layers with "
                "one scale for a whole batch (DynamicQuantizeLinear), padding included; here every "
                "token gets a scale and a zero point of its own, which is finer, and not the same "
                "to the last bit",
                "dynamic",
            )
        if quantizers.left:
            options.ask(
                "other_quantizers",
                one_of("drop"),
                f"{where}: {len(quantizers.left)} quantizers are neither of a linear layer's input "
                "or output nor of attention's products, such as those before a bias, at a residual "
                f"or inside of GELU ({listed(quantizers.left, 2)}); without them these values stay "
                "floats, which is finer, and not the same to the last bit",
                "drop",
            )

    def _put_linear(
        self, name: str, linear: GraphLinear, place: int, quantizers: Quantizers
    ) -> None:
        rows = linear.weight.shape[0]
        self._put_bias(name, linear, rows)
        stored = linear.weight.quantized
        if stored is None:
            self._put(f"{name}.weight", linear.weight)
            return
        self._used |= linear.weight.leaves
        spec = value_spec(f"{name}.weight", linear.weight, stored)
        activations = quantizers.inputs.get(place)
        self._draft.put_linear(
            name,
            QuantizedLinear(
                shape=(rows, linear.weight.shape[1]),
                values=spec,
                activations=_PER_TOKEN if place in quantizers.dynamic else activations,
                nbytes=math.prod(stored.values.shape) + 4 * math.prod(stored.scale.shape),
                load=lambda: read_values(stored),
                outputs=quantizers.outputs.get(place),
            ),
        )

    def _put_bias(self, name: str, linear: GraphLinear, rows: int) -> None:
        bias = linear.bias
        if bias is None:
            # An exporter leaves additions of zeros out; the model's module has a bias all the same.
            self._draft.put(f"{name}.bias", (rows,), torch.float32, lambda: torch.zeros(rows))
            self._draft.steps.append(f"{name}.bias = 0: the graph adds none")
            return
        self._put(f"{name}.bias", bias, (rows,))
        # The bias of an output layer is its head's, which transformers ties to the layer's own.
        head, _, last = name.rpartition(".")
        if last == "decoder":
            self._put(f"{head}.bias", bias, (rows,))

    def _put_parameters(self) -> None:
        done: dict[str, Constant] = {}
        for found in self._parameters:
            name = f"{self._plain(found.module)}.{found.part}"
            if name in done:
                # Modules that run twice, such as a table that is looked up by two inputs.
                if done[name].leaves != found.value.leaves:
                    raise CheckpointError(
                        f"{self._stored.where}: two tensors are used as {name} "
                        f"({listed(done[name].leaves)} and {listed(found.value.leaves)})"
                    )
                continue
            done[name] = found.value
            self._put(name, found.value, _shape(found))

    def _put(self, name: str, value: Constant, shape: tuple[int, ...] | None = None) -> None:
        """A float tensor; what is stored as integers is dequantized as the graph does it."""
        self._used |= value.leaves
        if not value.dtype.startswith(("float", "bfloat")):
            raise CheckpointError(f"{name}: expected floats, got {value.dtype}")
        sizes = value.shape if shape is None else shape
        load: Callable[[], Tensor] = lambda: value.load().reshape(sizes).contiguous()  # noqa: E731
        self._draft.put(name, sizes, getattr(torch, value.dtype), load)
        if value.quantized is not None:
            self._dequantized[value.quantized.values.dtype] += 1

    def _report(self, quantizers: Quantizers) -> None:
        """The steps that the reports print."""
        draft, steps = self._draft, self._draft.steps
        for dtype, count in sorted(self._dequantized.items()):
            steps.append(
                f"{count} tensors stored as {dtype} (embeddings, norms, biases): "
                "float32 = (q - zero point) x scale"
            )
        if not draft.linears:
            return
        kinds = Counter(
            (linear.values.scales, linear.values.zero_points) for linear in draft.linears.values()
        )
        for (scales, zero_points), count in kinds.items():
            kept = ", zero points kept" if zero_points else ""
            steps.append(f"{count} linear layers: int8 as stored, scales by {scales}{kept}")
        if quantizers.dynamic:
            steps.append(
                f"inputs of {len(quantizers.dynamic)} linear layers: uint8 with a scale and a zero "
                "point a token, where the file has one for the whole batch"
            )
        if quantizers.inputs:
            steps.append(f"inputs of {len(quantizers.inputs)} linear layers: the file's scales")
        if quantizers.outputs:
            steps.append(f"outputs of {len(quantizers.outputs)} linear layers: requantized")
        if draft.attention:
            steps.append(f"attention of {len(draft.attention)} layers: products of integers")
        if quantizers.left:
            steps.append(f"{len(quantizers.left)} other quantizers of activations: left out")


def _shape(found: Parameter) -> tuple[int, ...]:
    sizes = found.value.shape
    return sizes if found.part == "weight" and len(sizes) == 2 else (math.prod(sizes),)
