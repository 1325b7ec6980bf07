"""Open, pack, verify and run pruned and quantized transformer encoders.

Names are imported when they are first used, so that ``import sparse_runtime`` costs nothing and
needs neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .integrations import hook as _hook

if TYPE_CHECKING:
    from . import compress
    from .encoders import SparseModel
    from .integrations.transformers import SparseRuntimeConfig
    from .layers import Linear, replace_linears
    from .tools.convert import convert
    from .tools.information import info
    from .tools.inspection import inspect
    from .tools.tuning import tune
    from .tools.verification import verify

__version__ = "0.1.0"

_PUBLIC = {
    "Linear": "layers",
    "SparseModel": "encoders",
    "SparseRuntimeConfig": "integrations.transformers",
    "convert": "tools.convert",
    "info": "tools.information",
    "inspect": "tools.inspection",
    "replace_linears": "layers",
    "tune": "tools.tuning",
    "verify": "tools.verification",
}

# A room of its own, whose names are used as compress.NAME.
_ROOMS = frozenset({"compress"})

__all__ = [
    "Linear",
    "SparseModel",
    "SparseRuntimeConfig",
    "__version__",
    "compress",
    "convert",
    "info",
    "inspect",
    "replace_linears",
    "tune",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


_hook.install()
