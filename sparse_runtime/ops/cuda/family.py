"""What each way to multiply by a weight on a GPU says of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from ...kernels.linear.operands import Epilogue
from .machine import Machine
from .predict import Work
from .problem import Problem
from .stacked import StackedLayers
from .variants import Variant


class Family(ABC):
    """One way to multiply.

    Attributes:
        name: in tables and messages.
        layout: families of one layout share the weight's bytes.
        dense: whether it multiplies every weight, zeros included: nothing that is slower is run.
        config_type: a named tuple of integers and truth values; None for a library.
        predicted: whether its times can be predicted; the others run only where measured.
    """

    name: ClassVar[str]
    layout: ClassVar[str] = "dense"
    dense: ClassVar[bool] = False
    config_type: ClassVar[Any] = None
    predicted: ClassVar[bool] = True

    @abstractmethod
    def rejects(self, problem: Problem) -> str | None:
        """Why it cannot take such a product, or None."""

    def unfit(self, machine: Machine) -> str | None:
        """Why it cannot run on such a GPU, or None."""
        return None

    def refuses(self, epilogue: Epilogue) -> str | None:
        """Why it cannot do what follows the product, or None."""
        return None

    def remark(self, problem: Problem) -> str:
        """What ``explain()`` says behind its name: of the weight, in its layout."""
        return ""

    def least_tokens(self, problem: Problem) -> int:
        """The fewest rows that it takes."""
        return 1

    def launches(self, problem: Problem) -> int:
        """Kernels that a product and what follows it take."""
        return 1

    @abstractmethod
    def pack(self, layers: StackedLayers) -> Any:
        """Bring the weight into its layout."""

    @abstractmethod
    def variant(self, packed: Any, config: Any, layers: StackedLayers) -> Variant:
        """What is launched, of what :meth:`pack` gave."""

    @abstractmethod
    def work(self, problem: Problem, tokens: int, machine: Machine) -> Work:
        """What it does for one product."""

    def configs(self, packed: Any, problem: Problem, tokens: int, machine: Machine) -> list[Any]:
        """Configurations worth measuring, the default first."""
        return [None]

    def decode(self, fields: tuple[int, ...]) -> Any:
        """A configuration from the fields that tables keep.

        Raises:
            ValueError: another version's, with other fields.
        """
        kind = self.config_type
        if len(fields) != (0 if kind is None else len(kind._fields)):
            raise ValueError(f"{self.name}: a configuration of {len(fields)} fields")
        return None if kind is None else kind(*fields)

    def stored_bytes(self, problem: Problem) -> float:
        """Bytes of its layout."""
        return problem.weights * problem.itemsize
