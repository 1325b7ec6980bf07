"""What a file does not say and its user does: the ``finalise=`` argument."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from .errors import CheckpointError, listed

T = TypeVar("T")


class Options:
    """Answers by name, each read by the layout that needs it.

    Args:
        given: values, or their text as the command line has it.

    Raises:
        TypeError: it is no mapping, or its keys are no names.
    """

    def __init__(self, given: Mapping[str, Any] | None = None) -> None:
        if given is not None and not isinstance(given, Mapping):
            raise TypeError(
                "finalise: expected answers by name, such as {'threshold': 0.1}, got "
                f"{type(given).__name__}"
            )
        strange = [name for name in given or {} if not isinstance(name, str)]
        if strange:
            raise TypeError(f"finalise: expected names of options as keys, got {strange[0]!r}")
        self._given = dict(given or {})
        self._known: set[str] = set()

    def get(self, name: str, kind: Callable[[Any], T]) -> T | None:
        """The answer, or None where there is none.

        Args:
            name: of the option.
            kind: reads a value or its text, such as ``float`` or :func:`one_of`; raises
                ValueError or TypeError for what it does not take.

        Raises:
            CheckpointError: ``kind`` does not take the value.
        """
        self._known.add(name)
        if name not in self._given:
            return None
        try:
            return kind(self._given[name])
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"finalise {name}={self._given[name]!r}: {error}") from error

    def ask(self, name: str, kind: Callable[[Any], T], why: str, example: str) -> T:
        """The answer, which the layout cannot do without.

        Args:
            name: of the option.
            kind: as in :meth:`get`.
            why: what the file leaves open, for the error.
            example: a value, as the command line takes it.

        Raises:
            CheckpointError: it is not given; names the argument and the flag.
        """
        answer = self.get(name, kind)
        if answer is None:
            raise CheckpointError(
                f"{why}; say it with --finalise {name}={example}, in Python "
                f"finalise={{{name!r}: {_as_python(example)}}}"
            )
        return answer

    def check_all_read(self) -> None:
        """Raise CheckpointError for answers that nothing has asked for."""
        unread = sorted(self._given.keys() - self._known)
        if unread:
            raise CheckpointError(
                f"finalise: {listed(unread)} means nothing for this checkpoint, "
                + (f"which takes {listed(self._known)}" if self._known else "which takes none")
            )


def one_of(*choices: str) -> Callable[[Any], str]:
    """A ``kind`` for one of several words."""

    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}")
        return str(value)

    return read


def number(low: float, high: float) -> Callable[[Any], float]:
    """A ``kind`` for a finite number from ``low`` to ``high``."""

    def read(value: Any) -> float:
        found = float(value)
        if not low <= found <= high:
            raise ValueError(f"expected a number from {low:g} to {high:g}")
        return found

    return read


def existing_file(value: Any) -> Path:
    """A ``kind`` for a file of the user's, wherever it lies."""
    path = Path(value).expanduser()
    if not path.is_file():
        raise ValueError("no such file; a relative path starts where the command is run")
    return path


def _as_python(example: str) -> str:
    try:
        return repr(float(example)) if "." in example else repr(int(example))
    except ValueError:
        return repr(example)
