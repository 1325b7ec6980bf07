"""`python -m sparse_runtime` is the command `sparse-runtime`."""

from __future__ import annotations

from .cli import main

if __name__ == "__main__":
    main()
