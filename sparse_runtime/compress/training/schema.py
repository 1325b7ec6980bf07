"""Plain mappings, as YAML gives them, to frozen dataclasses: nothing unknown passes."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class WrongValue(ValueError):
    """A key's value that nothing can be made of; who knows where the key stands says so.

    Args:
        key: of the section that is built, such as "structure" or "per.query".
        message: what was expected, and what came.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}")
        self.key, self.message = key, message


def regular_expression(key: str, text: str | None) -> None:
    """Raise WrongValue for a text that is no regular expression."""
    try:
        re.compile(text or "")
    except re.error as error:
        raise WrongValue(
            key,
            f"{text!r}: expected a regular expression, for example 'layer.0.attention'; {error}",
        ) from None


def require(**ranges: tuple[object, bool, str]) -> None:
    """Raise WrongValue for the first key that does not fit: key -> (value, it fits, expected)."""
    for key, (value, fits, expected) in ranges.items():
        if not fits:
            raise WrongValue(key, f"expected {expected}, got {value}")


def place(where: str, key: str) -> str:
    """Where a key of a section stands: "stage 'prune', pruning.structure"."""
    return f"{where}, {key}" if where.endswith("'") else f"{where}.{key}"


def build(kind: type[T], data: Any, where: str) -> T:
    """An instance of the dataclass ``kind`` from a mapping.

    Fields may be str, int, float, bool, Literal, another dataclass, ``tuple[X, ...]`` of these,
    ``Mapping[str, X]``, ``Any``, or each of them or None. An int passes as a float, a float never
    as an int, and a dataclass that is built already as it is.

    Args:
        kind: the dataclass.
        data: the mapping.
        where: what to call it in errors, such as "stage 'prune', pruning".

    Raises:
        ValueError: an unknown key (the nearest known one is named), a missing one, or a value of
            another type.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"recipe: {where}: expected keys and values, got {data!r}")
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    refuse_unknown(data, known, where)
    hints = get_type_hints(kind)
    for name, field in known.items():
        required = field.default is MISSING and field.default_factory is MISSING
        if required and name not in data:
            raise ValueError(f"recipe: {where}: {name!r} is missing")
    values = {key: _value(hints[key], item, place(where, key)) for key, item in data.items()}
    try:
        return kind(**values)
    except WrongValue as error:
        raise ValueError(f"recipe: {place(where, error.key)}: {error.message}") from None
    except ValueError as error:
        raise ValueError(f"recipe: {where}: {error}") from None


def refuse_unknown(given: Mapping[Any, Any], known: Any, where: str) -> None:
    """Raises ValueError for the first key of ``given`` that ``known`` lacks, with the nearest."""
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), list(known), n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ValueError(f"recipe: {where}: unknown key {key!r}; {hint}")


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, inside = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inside:
            return None
        return _one_of([kind for kind in inside if kind is not type(None)], value, where)
    if origin is Literal:
        if value not in inside:
            near = difflib.get_close_matches(str(value), [str(word) for word in inside], n=1)
            hint_text = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"recipe: {where}: expected one of {', '.join(map(str, inside))}, got {value!r}"
                f"{hint_text}"
            )
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise ValueError(f"recipe: {where}: expected a list, got {value!r}")
        return tuple(_value(inside[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f"recipe: {where}: expected keys and values, got {value!r}")
        return {str(key): _value(inside[1], item, f"{where}.{key}") for key, item in value.items()}
    if is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        return build(hint, value, where)  # type: ignore[arg-type]
    return _plain(hint, value, where)


def _one_of(kinds: list[Any], value: Any, where: str) -> Any:
    errors = []
    for kind in kinds:
        try:
            return _value(kind, value, where)
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def _plain(kind: type[Any], value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"recipe: {where}: expected {_WORDS[kind]}, got {value!r}")
    return value


_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
