"""Checks an installed wheel in an environment without torch: check_wheel.py CHECKOUT WHEEL."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import sys
import zipfile
from pathlib import Path


def main() -> None:
    """Exits with a message when the wheel lacks a file or does not import."""
    checkout, wheel = Path(sys.argv[1]), Path(sys.argv[2])
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"sparse_runtime/{path.relative_to(checkout)}"
        for room in ("kernels", "benchmarks")
        for path in (checkout / room).rglob("*.py")
    }
    expected |= {
        str(path.relative_to(checkout)) for path in (checkout / "sparse_runtime").rglob("*.py")
    }
    missing = sorted((expected | {"sparse_runtime/py.typed"}) - names)
    if missing:
        sys.exit(f"{wheel.name} lacks {missing}")
    library = "sparse_runtime/libsparse_runtime_cuda.so"
    wanted = os.environ.get("SPARSE_RUNTIME_CUDA") == "1"
    if (library in names) != wanted:
        sys.exit(f"{wheel.name}: {library} is {'missing' if wanted else 'there, unasked for'}")
    outside = sorted({name.split("/")[0] for name in names} - {"sparse_runtime"})
    if any(not name.endswith(".dist-info") for name in outside):
        sys.exit(f"{wheel.name} installs {outside} beside sparse_runtime")
    if importlib.util.find_spec("torch"):
        sys.exit("this environment has torch, so it proves nothing")

    import sparse_runtime
    import sparse_runtime._C as extension

    if wanted:
        built = ctypes.CDLL(str(Path(sparse_runtime.__file__).parents[1] / library))
        if not built.sr_kernel_count():
            sys.exit(f"{wheel.name}: the CUDA library has no kernels")

    print(
        f"Python {platform.python_version()}: {wheel.name}, {len(names)} files, "
        f"sparse_runtime {sparse_runtime.__version__}, features "
        f"{[name for name, present in extension.cpu_features().items() if present]}"
    )


if __name__ == "__main__":
    main()
