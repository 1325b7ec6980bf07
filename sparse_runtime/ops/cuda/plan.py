"""From recorded values to steps: who stores what in which form, and for how long.

A value is stored as its readers want it: as floats, as rows quantized for a linear layer, or both,
by the launch that makes it where that can. Only what a launch cannot write, such as a second
quantization of the same value, takes a launch of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from ...spec import ActivationSpec
from .buffers import Buffer, place
from .stacked import row_quantizer
from .values import Attend, AttendVarlen, Embed, Form, Linear, Node, Value

INT8_BYTES, FLOAT32_BYTES, INT32_BYTES = 1, 4, 4


def stride_of(features: int) -> int:
    """Elements from a row to the next: whole vectors of 16 bytes, whatever the type."""
    return -(-features // 16) * 16


@dataclass(frozen=True)
class Storage:
    """The buffers of one value in one form.

    Attributes:
        rows: [tokens, stride] of floats or int8.
        scale: float32 [tokens] of a dynamic quantization.
        zero: int32 [tokens], where it has zero points.
    """

    rows: Buffer
    scale: Buffer | None = None
    zero: Buffer | None = None

    @property
    def buffers(self) -> list[Buffer]:
        """Those that are there."""
        return [buffer for buffer in (self.rows, self.scale, self.zero) if buffer is not None]


@dataclass(frozen=True)
class Step:
    """One operation at its place.

    Attributes:
        value: what it makes.
        fused: the quantization that it writes itself.
        quantizes: None; or, of a launch that only quantizes the value's floats, how.
    """

    value: Value
    fused: Form = None
    quantizes: Form = None

    def launches(self, rows: int) -> int:
        """Kernels that it launches on so many rows."""
        if self.quantizes is not None:
            return 1
        scheme = "none" if self.fused is None else row_quantizer(self.fused).scheme
        return self.value.node.launches(rows, scheme)


@dataclass
class Plan:
    """The steps that make ``result``, and where everything lies.

    Attributes:
        steps: in order.
        stored: by value and form.
        result: the value whose floats are wanted.
        bytes_per_token: of all buffers, which share their memory where their times do not meet.
    """

    steps: list[Step]
    stored: dict[tuple[Value, Form], Storage]
    result: Value
    bytes_per_token: int = field(init=False)

    def __post_init__(self) -> None:
        self.bytes_per_token = place(
            [buffer for storage in self.stored.values() for buffer in storage.buffers]
        )

    @cached_property
    def nodes(self) -> list[Node]:
        """The operations that are not mere quantizations."""
        return [step.value.node for step in self.steps if step.quantizes is None]

    @cached_property
    def linears(self) -> list[Linear]:
        """Those that our kernels run."""
        return [node for node in self.nodes if isinstance(node, Linear)]

    @cached_property
    def tables(self) -> int:
        """Embedding tables, each with its ids."""
        return sum(len(node.tables) for node in self.nodes if isinstance(node, Embed))

    @cached_property
    def heads(self) -> dict[int, int]:
        """Of the attentions that our kernel runs: the most heads of each size."""
        most: dict[int, int] = {}
        for node in self.nodes:
            if isinstance(node, Attend):
                most[node.head_size] = max(node.heads, most.get(node.head_size, 0))
        return most

    @cached_property
    def bounded(self) -> bool:
        """Whether an attention goes by where each sequence begins."""
        return any(isinstance(node, AttendVarlen) for node in self.nodes)

    @cached_property
    def specs(self) -> set[ActivationSpec]:
        """Every quantization that occurs."""
        return {spec for _, spec in self.stored if spec is not None}

    @cached_property
    def span(self) -> int | None:
        """Columns that every attention bias reaches, or None: there is no bias."""
        biases = [bias for node in self.nodes if (bias := getattr(node, "bias", None)) is not None]
        return min((bias.shape[1] for bias in biases), default=None)

    @cached_property
    def repeatable(self) -> bool:
        """Whether it can run for other tokens."""
        return all(node.repeatable for node in self.nodes)

    @cached_property
    def capturable(self) -> bool:
        """Whether all of it may be one CUDA graph."""
        return all(node.capturable for node in self.nodes)

    def launches(self, rows: int) -> int:
        """Kernels that one run on so many rows launches; plain PyTorch's do not count."""
        return sum(step.launches(rows) for step in self.steps)


def make_plan(result: Value, float_bytes: int) -> Plan:
    """Plan the way to ``result``.

    Args:
        result: a recorded value.
        float_bytes: size of the activations' float type.
    """
    values = list(_in_order(result))
    wanted: dict[Value, dict[Form, None]] = {value: {} for value in values}  # ordered, each once
    for value in values:
        for read, form in value.node.reads:
            wanted[read][form] = None
    wanted[result][None] = None

    steps: list[Step] = []
    for value in values:
        specs = [form for form in wanted[value] if form is not None]
        fused = specs[0] if specs and value.node.fuses else None
        steps.append(Step(value, fused=fused))
        steps += [Step(value, quantizes=spec) for spec in specs if spec != fused]
    return Plan(steps, _storages(steps, wanted, result, float_bytes), result)


def _in_order(result: Value) -> Iterator[Value]:
    """The values that ``result`` is made from and itself, producers first, without recursion:
    a deep encoder has more operations than Python has stack frames."""
    done: set[Value] = set()
    waiting = [result]
    while waiting:
        value = waiting[-1]
        missing = [read for read, _ in value.node.reads if read not in done]
        if missing:
            waiting += reversed(missing)
            continue
        waiting.pop()
        if value not in done:
            done.add(value)
            yield value


def _storages(
    steps: list[Step], wanted: dict[Value, dict[Form, None]], result: Value, float_bytes: int
) -> dict[tuple[Value, Form], Storage]:
    """A storage for each form of each value, with the steps between which it is alive."""
    first: dict[tuple[Value, Form], int] = {}
    last: dict[tuple[Value, Form], int] = {}
    for at, step in enumerate(steps):
        value, node = step.value, step.value.node
        if step.quantizes is not None:
            first[value, step.quantizes] = last[value, step.quantizes] = at
            last[value, None] = at
            continue
        dynamic = step.fused is not None and step.fused.scheme == "dynamic"
        separate = any(form is not None and form != step.fused for form in wanted[value])
        if None in wanted[value] or separate or (dynamic and node.in_parts):
            first[value, None] = last[value, None] = at
        if step.fused is not None:
            first[value, step.fused] = last[value, step.fused] = at
        for read in node.reads:
            last[read] = at
    last[result, None] = len(steps)
    return {
        (value, form): _storage(value.features, form, start, last[value, form], float_bytes)
        for (value, form), start in first.items()
    }


def _storage(features: int, form: Form, start: int, end: int, float_bytes: int) -> Storage:
    stride = stride_of(features)
    if form is None:
        return Storage(Buffer(stride * float_bytes, start, end))
    rows = Buffer(stride * INT8_BYTES, start, end)
    how = row_quantizer(form)
    if how.scheme == "static":
        return Storage(rows)
    zero = Buffer(INT32_BYTES, start, end) if how.has_zero_points else None
    return Storage(rows, Buffer(FLOAT32_BYTES, start, end), zero)
