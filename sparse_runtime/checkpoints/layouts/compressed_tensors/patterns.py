"""The regular expressions of ``targets`` and ``ignore``, matched in bounded time.

A checkpoint's config.json is a stranger's, and Python's ``re`` takes exponential time for patterns
such as ``(a+)+b``. Here a pattern becomes a nondeterministic automaton whose states are all
followed at once (Thompson 1968), so that a match takes at most length of name x length of pattern
steps. What the automaton has no state for (look-ahead, back references, flags) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

MAX_LENGTH = 500
MAX_DEPTH = 20
MAX_COUNT = 64
MAX_STATES = 4000

_TOKEN = re.compile(
    r"\\[dDwWsS]|\\[^A-Za-z0-9]|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?:|\{\d{1,4}(?:,\d{0,4})?\}|."
)
_COUNT = re.compile(r"\{(\d+)(,?)(\d*)\}")


@dataclass
class _State:
    """``accepts`` None moves on without a character; ``at`` asks for a place."""

    accepts: Callable[[str], object] | None = None
    at: str = ""
    following: list[int] = field(default_factory=list)


class Pattern:
    """A regular expression that matches from the start of a name, as ``re.match`` does.

    Args:
        text: literals, ``.``, classes such as ``[a-z]`` and ``\\d``, groups, ``|``, ``*``
            ``+`` ``?`` ``{m,n}``, ``^`` and ``$``.

    Raises:
        ValueError: other syntax, or an expression beyond the bounds of this module.
    """

    def __init__(self, text: str) -> None:
        if len(text) > MAX_LENGTH:
            raise ValueError(f"expected at most {MAX_LENGTH} characters, got {len(text)}")
        self._tokens = _TOKEN.findall(text)
        if "".join(self._tokens) != text:
            raise ValueError("expected one line of plain regular-expression syntax")
        self._place = 0
        self._states: list[_State] = []
        self._start, ends = self._alternatives(0)
        if self._place != len(self._tokens):
            raise ValueError("expected balanced parentheses")
        self._accepting = self._add(_State())
        self._join(ends, self._accepting)

    @property
    def size(self) -> int:
        """Number of states, to which the time of a match is proportional."""
        return len(self._states)

    def matches(self, name: str) -> bool:
        """Whether the expression matches the beginning of a name."""
        current = self._closure({self._start}, name, 0)
        for place, character in enumerate(name):
            if self._accepting in current or not current:
                break
            reached = {
                following
                for index in current
                if (accepts := self._states[index].accepts) and accepts(character)
                for following in self._states[index].following
            }
            current = self._closure(reached, name, place + 1)
        return self._accepting in current

    def _closure(self, reached: set[int], name: str, place: int) -> set[int]:
        """All states that are reached without a character."""
        waiting, found = list(reached), set(reached)
        while waiting:
            state = self._states[waiting.pop()]
            holds = {"": True, "^": place == 0, "$": place == len(name)}[state.at]
            if state.accepts is None and holds:
                new = set(state.following) - found
                found |= new
                waiting += new
        return found

    def _add(self, state: _State) -> int:
        if len(self._states) >= MAX_STATES:
            raise ValueError(f"expected an expression of at most {MAX_STATES} states")
        self._states.append(state)
        return len(self._states) - 1

    def _join(self, ends: list[int], start: int) -> None:
        for end in ends:
            self._states[end].following.append(start)

    def _peek(self) -> str:
        return self._tokens[self._place] if self._place < len(self._tokens) else ""

    def _alternatives(self, depth: int) -> tuple[int, list[int]]:
        """(first state, states that lead out) of ``a|b|c``."""
        if depth > MAX_DEPTH:
            raise ValueError(f"expected at most {MAX_DEPTH} nested groups")
        split = self._add(_State())
        ends: list[int] = []
        while True:
            start, out = self._sequence(depth)
            self._join([split], start)
            ends += out
            if self._peek() != "|":
                return split, ends
            self._place += 1

    def _sequence(self, depth: int) -> tuple[int, list[int]]:
        first = self._add(_State())
        ends = [first]
        while self._peek() not in ("", "|", ")"):
            begin = self._place
            start, out = self._atom(depth)
            low, high = self._counts()
            after = self._place
            self._join(ends, start)
            ends = self._repeat(begin, (start, out), low, high, ends, depth)
            self._place = after
        return first, ends

    def _repeat(
        self,
        begin: int,
        copy: tuple[int, list[int]],
        low: int,
        high: int | None,
        ends: list[int],
        depth: int,
    ) -> list[int]:
        """States that lead out of ``atom{low,high}``, whose first copy is there already."""
        skipping = list(ends) if low == 0 else []
        for number in range(2, max(low, high or 1) + 1):
            if number > low:
                skipping += copy[1]
            self._place = begin
            following = self._atom(depth)
            self._join(copy[1], following[0])
            copy = following
        if high is None:
            self._join(copy[1], copy[0])
        return [*skipping, *([] if high == 0 else copy[1])]

    def _counts(self) -> tuple[int, int | None]:
        """Least and greatest number of repetitions; None is any."""
        token = self._peek()
        simple: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        counted = _COUNT.fullmatch(token)
        if token not in simple and counted is None:
            return 1, 1
        self._place += 1
        if self._peek() in ("?", "*", "+"):
            # A lazy quantifier finds the same matches; a possessive one does not.
            if self._peek() != "?":
                raise ValueError(f"{token + self._peek()!r} is not supported")
            self._place += 1
        if counted is None:
            return simple[token]
        low = int(counted[1])
        high = low if not counted[2] else int(counted[3]) if counted[3] else None
        if max(low, high or 0) > MAX_COUNT or (high is not None and not low <= high):
            raise ValueError(f"{token}: expected counts in order and of at most {MAX_COUNT}")
        return low, high

    def _atom(self, depth: int) -> tuple[int, list[int]]:
        token = self._peek()
        self._place += 1
        if token in ("(", "(?:"):
            if self._peek() == "?":
                raise ValueError("groups that begin with '(?' are not supported, but for '(?:'")
            start, ends = self._alternatives(depth + 1)
            if self._peek() != ")":
                raise ValueError("expected balanced parentheses")
            self._place += 1
            return start, ends
        if token in ("*", "+", "?") or _COUNT.fullmatch(token):
            raise ValueError(f"{token!r} has nothing to repeat")
        if token in ("^", "$"):
            index = self._add(_State(at=token))
        elif token == "\\":
            raise ValueError("escapes are supported for punctuation, \\d, \\w and \\s alone")
        else:
            try:
                index = self._add(_State(accepts=re.compile(token).fullmatch))
            except re.error as error:
                raise ValueError(f"{token!r}: {error}") from error
        return index, [index]
