"""Register with transformers as soon as it is there, without importing it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Every model class imports it first, and `import transformers` alone does not: whoever only wants
# a tokenizer does not pay for torch.
TRIGGER = "transformers.quantizers"
INTEGRATION = "sparse_runtime.integrations.transformers"


def install() -> None:
    """Have the integration imported right after ``TRIGGER``, or now where that has been."""
    if TRIGGER in sys.modules:
        _register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register() -> None:
    try:
        importlib.import_module(INTEGRATION)
    except Exception as error:
        # A transformers that is too old for the integration must stay usable for everything else.
        warnings.warn(
            f"sparse_runtime could not register with transformers ({error}); packed models do not "
            f"load through it. `import {INTEGRATION}` shows why",
            RuntimeWarning,
            stacklevel=2,
        )


class _Finder(MetaPathFinder):
    """Finds ``TRIGGER`` as the other finders do, and has its loader call :func:`_register`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != TRIGGER:
            return None
        for finder in list(sys.meta_path):
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self)
                return spec
        return None


class _Loader(Loader):
    """Another loader, until the module has run."""

    def __init__(self, loader: Loader, finder: _Finder) -> None:
        self._loader = loader
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        # Whoever asks for source, resources or the file name gets them from the real one.
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        # Only now: a look-up without an import, or an import that failed, comes again.
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        _register()
