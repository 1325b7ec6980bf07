"""JSON from files that nobody vouches for: bounded, finite, without duplicate keys."""

from __future__ import annotations

import json
import math
from typing import Any

# The digits of any 64-bit integer; longer ones take Python quadratic time to read.
MAX_INTEGER_DIGITS = 20


class _Refused(ValueError):
    """Raised inside the parser, so that its message is kept."""


def parse(data: bytes) -> Any:
    """Read UTF-8 JSON.

    Raises:
        ValueError: it is not, or it holds a duplicate key, NaN, an infinity, an integer of more
            than ``MAX_INTEGER_DIGITS`` digits, or is nested too deeply.
    """
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_int,
        )
    except _Refused:
        raise
    except RecursionError:
        raise ValueError("expected JSON, got one that is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"expected JSON in UTF-8, got something else ({error})") from None


def parse_object(data: bytes) -> dict[str, Any]:
    """Read UTF-8 JSON that is one object; raises ValueError as :func:`parse` does."""
    value = parse(data)
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {type(value).__name__}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Refused(f"expected each key once, got {twice[:80]!r} twice in one object")
    return result


def _constant(text: str) -> Any:
    raise _Refused(f"expected finite numbers, got {text}")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Refused(f"expected finite numbers, got {text[:40]}")
    return value


def _int(text: str) -> int:
    if len(text) > MAX_INTEGER_DIGITS:
        raise _Refused(
            f"expected integers of at most {MAX_INTEGER_DIGITS} digits, got {text[:20]}..."
        )
    return int(text)
