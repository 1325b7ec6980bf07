"""The tensors a model needs, checked against those a packed model holds before any is used.

Nothing is ever made up: a missing tensor is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..ops import Backend, LinearWeight, Norm, PreparedLinear
from ..spec import QuantizedAttention
from .architecture import Step
from .dense import DenseLinear
from .layer_shapes import read_layer_shapes, stored_though_absent
from .settings import BASE, Settings

if TYPE_CHECKING:
    from ..store import PackedModel

RELATIVE_BUCKETS = 32
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


@dataclass(frozen=True)
class LinearNames:
    """Where one linear layer lies: packed as ``name``, or as two plain tensors.

    ``packed_only`` layers are the stack's, which backends prepare; others may be either.
    """

    name: str
    weight: str
    bias: str
    shape: tuple[int, int]
    packed_only: bool = False


class Weights:
    """A packed model's tensors by role, for one backend.

    Args:
        model: the packed model.
        settings: what its config.json says.
        backend: prepares the packed layers.

    Raises:
        ValueError: tensors are missing, have other shapes, or belong to no part of the model.
    """

    def __init__(self, model: PackedModel, settings: Settings, backend: Backend) -> None:
        self._model = model
        self._settings = settings
        self._backend = backend
        self.prefix = _find_prefix(model, settings)
        self.stack = f"{self.prefix}{settings.architecture.stack}"
        self.shapes = read_layer_shapes(model, settings, self.stack)
        self.unused = self._check()

    def table(self, name: str) -> Tensor:
        """An embedding table in the activations' dtype."""
        return self._tensor(f"{self.prefix}{name}.weight", self._backend.dtype)

    def norm(self, name: str) -> Norm:
        """Parameters of a norm by full module name, in float32."""
        weight, bias = (self._tensor(f"{name}.{part}", torch.float32) for part in _PARTS)
        return Norm(weight, bias, self._settings.norm_eps)

    def stack_linear(self, *names: str) -> PreparedLinear:
        """Layers of the stack that read the same input, by full module name."""
        return self._backend.prepare_linear(self._packed(*names))

    def stack_pair(
        self,
        makers: tuple[str, ...],
        reader: str,
        unit: int | None = None,
        *,
        between: bool = False,
    ) -> tuple[PreparedLinear, PreparedLinear]:
        """:meth:`stack_linear` of layers and of the one that reads their last outputs, which may
        change places; arguments as of ``Backend.prepare_pair``."""
        (last,) = self._packed(reader)
        return self._backend.prepare_pair(self._packed(*makers), last, unit, between=between)

    def _packed(self, *names: str) -> list[LinearWeight]:
        linears = [(name, self._model.linears[name]) for name in names]
        return [LinearWeight(name, linear.packed, linear.bias) for name, linear in linears]

    def attention(self, name: str) -> QuantizedAttention | None:
        """How a layer's self-attention is quantized, by the layer's full name."""
        return self._model.attention.get(name)

    def linear(self, names: LinearNames) -> PreparedLinear | DenseLinear:
        """A layer outside of the stack, packed or plain."""
        if names.name in self._model.linears:
            return self.stack_linear(names.name)
        dtype = self._backend.dtype
        return DenseLinear(self._tensor(names.weight, dtype), self._tensor(names.bias, dtype))

    def has_pooler(self) -> bool:
        """Whether a base model's checkpoint brings the family's pooler."""
        pooler = self._settings.architecture.pooler
        if pooler is None:
            return False
        name = f"{self.prefix}{pooler.linear}"
        return name in self._model.linears or self._stored(f"{name}.weight") is not None

    def head_steps(self) -> tuple[Step, ...]:
        """The task's steps; for a base model its pooler, where there is one."""
        architecture = self._settings.architecture
        if self._settings.task != BASE:
            return architecture.heads[self._settings.task].steps
        return (architecture.pooler,) if architecture.pooler and self.has_pooler() else ()

    def head_linears(self) -> Iterator[tuple[Step, LinearNames]]:
        """Each step of the head with the place of its layer."""
        inputs = self._settings.sizes["hidden"]
        for step in self.head_steps():
            outputs = self._settings.sizes[step.size]
            name = f"{self.prefix}{step.linear}" if step.in_base else step.linear
            weight, bias = f"{name}.weight", f"{name}.bias"
            if step.tied and self._settings.tied and self._stored(weight) is None:
                weight = f"{self.prefix}{self._settings.architecture.word_table}.weight"
            if step.bias is not None and self._stored(bias) is None:
                bias = step.bias
            if step.size == "hidden" and step.norm is None:
                outputs = self._inner_outputs(name, weight, outputs)
            yield step, LinearNames(name, weight, bias, (outputs, inputs))
            inputs = outputs

    def _inner_outputs(self, name: str, weight: str, hidden: int) -> int:
        """Outputs of a pooler or its like: pruning hidden channels may leave them as they were."""
        whole = self._settings.heads * self._settings.head_size
        linear, stored = self._model.linears.get(name), self._stored(weight)
        if linear is not None:
            rows = linear.packed.spec.shape[0]
        else:
            rows = 0 if stored is None else next(iter(self._model.tensors[stored].shape), 0)
        return whole if rows == whole else hidden

    def projection(self) -> LinearNames | None:
        """The layer between embeddings and stack, or None."""
        name, sizes = self._settings.architecture.projection, self._settings.sizes
        if name is None or sizes["embedding"] == sizes["hidden"]:
            return None
        full = f"{self.prefix}{name}"
        shape = (sizes["hidden"], sizes["embedding"])
        return LinearNames(full, f"{full}.weight", f"{full}.bias", shape)

    def _tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        stored = self._stored(name)
        if stored is None:
            raise ValueError(f"{name}: missing from the packed model")
        return self._model.tensors[stored].to(self._backend.device, dtype)

    def _stored(self, name: str) -> str | None:
        """The name under which a tensor is stored, or None."""
        name = self._model.aliases.get(name, name)
        return name if name in self._model.tensors else None

    def _linears(self) -> Iterator[LinearNames]:
        architecture, settings = self._settings.architecture, self._settings
        hidden, layer = settings.sizes["hidden"], architecture.layer
        for i, sizes in enumerate(self.shapes):
            shapes: dict[str, tuple[int, int]] = {}
            if sizes.heads:
                context = sizes.heads * settings.head_size
                shapes |= {name: (3 * context // len(layer.qkv), hidden) for name in layer.qkv}
                shapes[layer.attention_out] = (hidden, context)
            if sizes.intermediate:
                shapes[layer.ffn_in] = (sizes.intermediate, hidden)
                shapes[layer.ffn_out] = (hidden, sizes.intermediate)
            for name, shape in shapes.items():
                full = f"{self.stack}.{i}.{name}"
                yield LinearNames(full, f"{full}.weight", f"{full}.bias", shape, packed_only=True)
        projection = self.projection()
        if projection is not None:
            yield projection
        for _, names in self.head_linears():
            yield names

    def _plain(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the tensors that are not linear layers."""
        architecture, settings = self._settings.architecture, self._settings
        base, layer = self.prefix, architecture.layer
        hidden, embedding = settings.sizes["hidden"], settings.sizes["embedding"]
        for kind, name in architecture.tables:
            yield f"{base}{name}.weight", (settings.rows[kind], embedding)
        norms = [(f"{base}{architecture.embedding_norm}", embedding)]
        for i, sizes in enumerate(self.shapes):
            own = ((layer.attention_norm, sizes.heads), (layer.ffn_norm, sizes.intermediate))
            norms += [(f"{self.stack}.{i}.{name}", hidden) for name, size in own if size]
        norms += [(s.norm, settings.sizes[s.size]) for s in self.head_steps() if s.norm is not None]
        for name, size in norms:
            yield from ((f"{name}.{part}", (size,)) for part in _PARTS)
        if architecture.relative_bias is not None:
            shape = (RELATIVE_BUCKETS, settings.heads)
            yield f"{base}{architecture.relative_bias}.weight", shape

    def _check(self) -> tuple[str, ...]:
        """Compare names and shapes; returns the tensors that the task leaves unused."""
        missing: list[str] = []
        wrong: list[str] = []
        used: set[str] = set()
        wanted = dict(self._plain())
        for names in self._linears():
            linear = self._model.linears.get(names.name)
            if linear is None and names.packed_only:
                missing.append(f"{names.name} (a packed linear layer)")
            elif linear is None:
                wanted |= {names.weight: names.shape, names.bias: names.shape[:1]}
            else:
                used.add(names.name)
                if linear.bias is None:
                    missing.append(names.bias)
                if linear.packed.spec.shape != names.shape:
                    wrong.append(_difference(names.name, names.shape, linear.packed.spec.shape))
        for name, shape in wanted.items():
            stored = self._stored(name)
            if stored is None:
                missing.append(name)
                continue
            used.add(stored)
            if tuple(self._model.tensors[stored].shape) != shape:
                found = tuple(self._model.tensors[stored].shape)
                wrong.append(_difference(name, shape, found))
        left = sorted({*self._model.linears, *self._model.tensors} - used)
        absent = stored_though_absent(self._model, self._settings)
        if absent:
            raise ValueError(
                f"the packed model states that these sublayers are absent, but holds "
                f"{', '.join(absent)}; its reader should have left one of the two out"
            )
        unknown = [name for name in left if not self._ignorable(name)]
        layers = {f"{self.stack}.{i}" for i, sizes in enumerate(self.shapes) if sizes.heads}
        unknown += [f"{n} (quantized attention)" for n in sorted({*self._model.attention} - layers)]
        self._refuse(missing, wrong, unknown)
        return tuple(left)

    def _ignorable(self, name: str) -> bool:
        beginnings = (*self._settings.architecture.ignored, *_BUFFERS)
        prefix = self._settings.architecture.prefix
        return f"{name}.".startswith(beginnings) or f"{name}.".removeprefix(prefix).startswith(
            beginnings
        )

    def _refuse(self, missing: list[str], wrong: list[str], unknown: list[str]) -> None:
        problems = []
        if missing:
            problems.append(f"missing: {_listed(missing)}")
        if wrong:
            problems.append(f"of another shape: {_listed(wrong, '; ')}")
        if unknown:
            problems.append(f"of no known part: {_listed(unknown)}")
        if problems:
            raise ValueError(
                f"the packed model does not hold a {self._settings.config.model_type} "
                f"{self._settings.task} model; tensors {'; '.join(problems)}. Weights are never "
                "made up: convert a checkpoint whose config.json and tensors agree (a config.json "
                'with "architectures": ["...Model"] runs the encoder without a head)'
            )


_PARTS = ("weight", "bias")
_MOST_LISTED = 24


def _listed(problems: list[str], between: str = ", ") -> str:
    shown = between.join(problems[:_MOST_LISTED])
    rest = len(problems) - _MOST_LISTED
    return f"{shown} and {rest} more" if rest > 0 else shown


def _difference(name: str, expected: tuple[int, ...], found: tuple[int, ...]) -> str:
    return f"{name} expected {list(expected)}, got {list(found)}"


def _find_prefix(model: PackedModel, settings: Settings) -> str:
    """The base model's prefix, or nothing in a checkpoint of the base model alone."""
    prefix = settings.architecture.prefix
    names = (*model.linears, *model.tensors, *model.aliases)
    return prefix if any(name.startswith(prefix) for name in names) else ""
