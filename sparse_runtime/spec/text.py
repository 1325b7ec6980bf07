"""What the descriptions' strings and JSON have in common."""

from __future__ import annotations

from typing import Any

# One spelling a number: no leading zeros, and ASCII digits only, which \d is not.
NUMBER = "(0|[1-9][0-9]{0,7})"


def require_keys(
    data: Any, expected: set[str], what: str, optional: frozenset[str] = frozenset()
) -> None:
    """Raise ValueError unless ``data`` is a JSON object with these keys and no others."""
    if not isinstance(data, dict):
        raise ValueError(f"{what}: expected a JSON object, got {type(data).__name__}")
    if not expected <= set(data) <= expected | optional:
        missing, unknown = sorted(expected - set(data)), sorted(set(data) - expected - optional)
        raise ValueError(f"{what}: missing keys {missing}, unknown keys {unknown}")
