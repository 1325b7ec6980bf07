"""An ONNX graph: nodes in the order in which they run, and constants.

Source: the ONNX specification, docs/IR.md. Every value has one name and one producer, and a node
comes after those that it reads, which rules out cycles.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

from ..errors import CheckpointError, listed
from .constants import Constant, folded
from .nodes import Node

# Operations whose every output element is an element of their first input: quantizing before or
# after them is the same.
LAYOUT_OPS = frozenset(
    {"Reshape", "Transpose", "Identity", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split"}
    | {"Gather", "Dropout", "Expand"}
)


class Graph:
    """A graph whose every value is made before it is read.

    Args:
        where: what errors call the file.
        nodes: in topological order.
        leaves: tensors of the file by name.
        inputs: names that a caller gives.
        outputs: names that a caller reads.
        initializers: names of those leaves that are no nodes of the file.

    Raises:
        CheckpointError: a value has two producers, or none before it is read.
    """

    def __init__(
        self,
        where: str,
        nodes: Iterable[Node],
        leaves: Mapping[str, Constant],
        inputs: Iterable[str],
        outputs: Iterable[str],
        initializers: Iterable[str] = (),
    ) -> None:
        self.initializers = frozenset(initializers)
        self.where = where
        self.nodes = tuple(nodes)
        self.leaves = dict(leaves)
        self.inputs = frozenset(inputs)
        self.outputs = tuple(outputs)
        self._check()

    @cached_property
    def producers(self) -> dict[str, Node]:
        """The node that makes a value."""
        return {name: node for node in self.nodes for name in node.outputs if name}

    @cached_property
    def consumers(self) -> dict[str, list[Node]]:
        """The nodes that read a value, in order."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                found.setdefault(name, []).append(node)
        return found

    @cached_property
    def constants(self) -> dict[str, Constant]:
        """The values that depend on no input."""
        known = dict(self.leaves)
        for node in self.nodes:
            value = folded(node, known)
            if value is not None:
                known[node.outputs[0]] = value
        return known

    def of(self, *ops: str) -> Iterator[Node]:
        """Nodes of some types that read what depends on the inputs."""
        return (n for n in self.nodes if n.op in ops and n.outputs[0] not in self.constants)

    def readers(self, value: str) -> list[Node]:
        """The nodes that read a value."""
        return self.consumers.get(value, [])

    def only_reader(self, value: str) -> Node | None:
        """The one node that reads a value; None where there are more, or a caller reads it."""
        readers = self.readers(value)
        return readers[0] if len(readers) == 1 and value not in self.outputs else None

    def origin(self, value: str) -> str:
        """The value that this one holds elements of, in whatever shape."""
        while (node := self.producers.get(value)) is not None and node.op in LAYOUT_OPS:
            value = node.inputs[0]
        return value

    def uses(self, value: str) -> Iterator[tuple[Node, str]]:
        """(node, the name it reads) for all that computes with a value, in whatever shape."""
        waiting = [value]
        while waiting:
            name = waiting.pop()
            for node in self.readers(name):
                if node.op in LAYOUT_OPS and node.inputs[0] == name:
                    waiting.extend(node.outputs)
                # Its shape is no use of its numbers.
                elif node.op not in ("Shape", "Size"):
                    yield node, name

    def _check(self) -> None:
        known = {"", *self.inputs, *self.leaves}
        for node in self.nodes:
            absent = [name for name in node.inputs if name not in known]
            if absent:
                raise CheckpointError(
                    f"{self.where}: {node.title} reads {listed(absent)}, which no input, "
                    "initializer or node before it makes: a node is missing, or the graph has a "
                    "cycle; export the model again"
                )
            twice = [name for name in node.outputs if name and name in known]
            if twice or not any(node.outputs):
                raise CheckpointError(
                    f"{self.where}: {node.title} makes {listed(twice)} again; expected new values "
                    "of each node, and at least one; the file is damaged"
                )
            known.update(node.outputs)
        absent = [name for name in self.outputs if name not in known]
        if absent or not self.outputs:
            raise CheckpointError(
                f"{self.where}: nothing makes the graph's outputs ({listed(absent)}); the file is "
                "incomplete"
            )


def without_dead_nodes(nodes: Iterable[Node], outputs: Iterable[str]) -> list[Node]:
    """The nodes that an output depends on."""
    wanted, kept = set(outputs), []
    for node in reversed(list(nodes)):
        if wanted.intersection(node.outputs):
            wanted.update(node.inputs)
            kept.append(node)
    return kept[::-1]
