"""Our folder `kernels` and Hugging Face's package `kernels` live together.

Started from the checkout's root, Python looks for `import kernels` in that folder first. Without an
__init__.py ours is only a namespace, which gives way to a real package anywhere later on the path;
transformers depends on that.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.utils import import_utils

# Prints what the three imports gave, and whether a model of transformers still runs.
PROGRAM = """
import json, sys
import kernels
import sparse_runtime.kernels.dense.reference as ours
import torch, transformers
from transformers.utils.import_utils import is_kernels_available
config = transformers.BertConfig(
    vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
)
model = transformers.BertModel(config).eval()
with torch.no_grad():
    hidden = model(torch.tensor([[1, 2, 3]])).last_hidden_state
print(json.dumps({
    "kernels": getattr(kernels, "__file__", None),
    "ours": ours.__file__,
    "transformers_uses_kernels": bool(is_kernels_available()),
    "shape": list(hidden.shape),
    "finite": bool(hidden.isfinite().all()),
}))
"""

# Enough of the package's surface for transformers to import what it wants from it.
STAND_IN = '''
"""Stands in for Hugging Face's kernels."""


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return lambda *args, **kwargs: lambda decorated: decorated
'''


def run_from(root: Path, *, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs PROGRAM with `root` as working directory and `path` next on the module path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=root, env=environment, capture_output=True, text=True
    )


def report_of(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    assert done.returncode == 0, done.stderr
    report: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return report


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A folder with a distribution `kernels` of a version that transformers accepts."""
    version = getattr(import_utils, "KERNELS_MIN_VERSION", "0.18.2")
    site = tmp_path / "site"
    metadata = site / f"kernels-{version}.dist-info"
    (site / "kernels").mkdir(parents=True)
    metadata.mkdir()
    (site / "kernels" / "__init__.py").write_text(STAND_IN)
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: kernels\nVersion: {version}\n"
    )
    return site


def test_an_installed_kernels_package_wins_over_our_folder(
    checkout_root: Path, stand_in: Path
) -> None:
    report = report_of(run_from(checkout_root, path=stand_in))
    assert report["kernels"] == str(stand_in / "kernels" / "__init__.py")
    assert report["transformers_uses_kernels"] is True
    assert report["shape"] == [1, 3, 8]
    assert report["finite"] is True
    ours = Path(str(report["ours"]))
    assert ours.resolve() == checkout_root / "kernels" / "dense" / "reference.py"


def test_the_environment_as_it_is(checkout_root: Path) -> None:
    """Covers the real package where it is installed, and its absence elsewhere."""
    try:
        importlib.metadata.version("kernels")
        installed = True
    except importlib.metadata.PackageNotFoundError:
        installed = False
    report = report_of(run_from(checkout_root))
    # Without the package, the name gives our folder as a bare namespace: it has no file, and
    # transformers does not take it for the package.
    assert (report["kernels"] is not None) == installed
    if not installed:
        assert report["transformers_uses_kernels"] is False
    assert report["shape"] == [1, 3, 8]
    assert report["finite"] is True


def test_an_init_file_in_our_folder_would_break_transformers(
    checkout_root: Path, stand_in: Path, tmp_path: Path
) -> None:
    """Proves that the tests above can fail: the same program, one file more."""
    root = tmp_path / "checkout"
    (root / "kernels").mkdir(parents=True)
    (root / "kernels" / "__init__.py").touch()
    (root / "sparse_runtime").symlink_to(checkout_root / "sparse_runtime")
    done = run_from(root, path=stand_in)
    assert done.returncode != 0
    assert "ImportError" in done.stderr
    assert "'kernels'" in done.stderr


def test_the_symlinks_are_the_only_way_in(checkout_root: Path) -> None:
    for room in ("kernels", "benchmarks"):
        link = checkout_root / "sparse_runtime" / room
        assert link.is_symlink()
        assert os.readlink(link) == f"../{room}"
