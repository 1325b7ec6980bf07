"""YAML -> recipes: the recipes that come along by name, files by path, changes by ``--set``."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

from .pruners import PRUNERS
from .recipe import Recipe, Stage
from .schema import build, place, refuse_unknown
from .sections import Pruning
from .stage_checks import check_stage

_SUFFIXES = (".yaml", ".yml")
_INTEGER = re.compile(r"[-+]?[0-9]+$")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")


def recipe_names() -> list[str]:
    """Names of the recipes that come along."""
    folder = resources.files("sparse_runtime.compress") / "recipes"
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in folder.iterdir()
        if entry.name.endswith(".yaml")
    )


def load_recipe(recipe: str | Path | Mapping[str, Any], changes: Iterable[str] = ()) -> Recipe:
    """A recipe by name, file or content.

    Args:
        recipe: a name of :func:`recipe_names`, a path that ends in .yaml or .yml, or what such a
            file holds.
        changes: texts "STAGE.KEY[.KEY...]=VALUE", the value in YAML; "*" is every stage.

    Raises:
        ValueError: no such recipe, or, with the file's or recipe's name before it, what
            :func:`parse` and :func:`apply_change` refuse.
        FileNotFoundError: no such file.
        ImportError: PyYAML is missing.
    """
    if isinstance(recipe, Mapping):
        return _changed(copy.deepcopy(recipe), changes)
    text = _text(recipe)
    try:
        return _changed(_load_yaml(text), changes)
    except ValueError as error:
        raise ValueError(f"{recipe}: {error}") from None


def _changed(data: Any, changes: Iterable[str]) -> Recipe:
    for change in changes:
        apply_change(data, change)
    return parse(data)


def parse(data: Any) -> Recipe:
    """Check a mapping and build the recipe.

    Raises:
        ValueError: an unknown, missing or wrong key, named with its place.
    """
    stages = []
    for number, stage in enumerate(_stage_list(data)):
        where = f"stage '{stage.get('name', number)}'"
        section = stage.get("pruning")
        if section is not None:
            stage = {**stage, "pruning": _with_options(section, place(where, "pruning"))}
        made = build(Stage, stage, where)
        try:
            check_stage(made)
        except ValueError as error:
            raise ValueError(f"recipe: {error}") from None
        stages.append(made)
    return build(Recipe, {**data, "stages": stages}, "the top level")


def apply_change(data: Any, change: str) -> None:
    """Set one key of the stages of a recipe's mapping in place.

    Raises:
        ValueError: the text is not "STAGE.KEY=VALUE", or there is no such stage.
    """
    path, equals, text = change.partition("=")
    name, _, keys = path.partition(".")
    if not equals or not name or not keys:
        raise ValueError(f"--set {change!r}: expected STAGE.KEY=VALUE, such as prune.epochs=3")
    stages = [stage for stage in _stage_list(data) if name in ("*", stage.get("name"))]
    if not stages:
        names = ", ".join(str(stage.get("name")) for stage in _stage_list(data))
        raise ValueError(f"--set {change!r}: no stage {name!r}; expected * or one of {names}")
    try:
        values = [_load_yaml(text) for _ in stages]  # each its own, for later changes go into it
    except ValueError as error:
        raise ValueError(f"--set {change!r}: {error}") from None
    for stage, value in zip(stages, values, strict=True):
        _assign(stage, keys.split("."), value, change)


def _assign(stage: Any, keys: list[str], value: Any, change: str) -> None:
    *inner, last = keys
    for key in inner:
        if stage.get(key) is None:
            stage[key] = {}
        stage = stage[key]
        if not isinstance(stage, dict):
            raise ValueError(f"--set {change!r}: {key!r} holds a value, not keys")
    stage[last] = value
    # The two say the same in two ways.
    other = {"epochs": "steps", "steps": "epochs"}.get(last)
    if not inner and other and value is not None:
        stage.pop(other, None)


def _stage_list(data: Any) -> Sequence[dict[str, Any]]:
    stages = data.get("stages") if isinstance(data, Mapping) else None
    if not isinstance(stages, list | tuple) or not all(isinstance(stage, dict) for stage in stages):
        raise ValueError("recipe: expected a mapping with a list of 'stages', each keys and values")
    return stages


def _with_options(section: Any, where: str) -> Any:
    """The section with the method's own keys gathered into its ``Options``."""
    if not isinstance(section, Mapping):
        return section
    method = section.get("method")
    if method not in PRUNERS:
        near = difflib.get_close_matches(str(method), PRUNERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"recipe: {where}.method: expected one of {', '.join(PRUNERS)}, got {method!r}{hint}"
        )
    common = {field.name for field in fields(Pruning)} - {"options"}
    kind = PRUNERS[method].Options
    own = [field.name for field in fields(kind)]
    refuse_unknown(section, [*sorted(common), *own], where)
    options = {key: value for key, value in section.items() if key not in common}
    rest = {key: value for key, value in section.items() if key in common}
    return {**rest, "options": build(kind, options, where)}


def _text(recipe: str | Path) -> str:
    path = Path(recipe)
    if path.suffix in _SUFFIXES:
        if not path.expanduser().is_file():
            raise FileNotFoundError(
                f"recipe (--recipe) {path}: there is no such file; correct the path, or give one "
                f"of {', '.join(recipe_names())}"
            )
        try:
            return path.expanduser().read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"recipe (--recipe) {path}: not UTF-8 ({error.reason}); convert the file first"
            ) from error
    names = recipe_names()
    if str(recipe) not in names:
        near = difflib.get_close_matches(str(recipe), names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"recipe {str(recipe)!r}: {hint}expected a path that ends in .yaml, or one of "
            f"{', '.join(names)}"
        )
    folder = resources.files("sparse_runtime.compress") / "recipes"
    return (folder / f"{recipe}.yaml").read_text(encoding="utf-8")


def _load_yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ImportError("recipes need PyYAML: pip install 'sparse-runtime[train]'") from error

    class Loader(yaml.SafeLoader):
        """YAML 1.2: 2:4 is a text and not 124, 1e-4 is a number, and each key stands once."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for key in keys:
                if keys.count(key) > 1:
                    line = node.start_mark.line + 1
                    raise ValueError(f"key {key!r} stands twice in the section of line {line}")
            found: dict[Any, Any] = super().construct_mapping(node, deep)
            return found

    numbers = {"tag:yaml.org,2002:int": _INTEGER, "tag:yaml.org,2002:float": _FLOAT}
    Loader.yaml_implicit_resolvers = {
        first: [(tag, form) for tag, form in known if tag not in numbers]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for tag, form in numbers.items():
        Loader.add_implicit_resolver(tag, form, list("-+.0123456789"))
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from None
