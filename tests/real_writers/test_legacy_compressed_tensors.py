"""Sparse formats, written by the last versions that had them, in an environment of their own.

SPARSE_RUNTIME_LEGACY_PYTHON names an interpreter with the packages that
legacy_compressed_tensors.py pins; without it the test is skipped.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sparse_runtime.checkpoints import open_checkpoint
from sparse_runtime.tools.integers import pack_integers

_VARIABLE = "SPARSE_RUNTIME_LEGACY_PYTHON"
_SCRIPT = Path(__file__).with_name("legacy_compressed_tensors.py")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    interpreter = os.environ.get(_VARIABLE)
    if not interpreter:
        pytest.skip(f"{_VARIABLE} names no interpreter with compressed-tensors 0.12.2")
    out = tmp_path_factory.mktemp("legacy")
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [interpreter, str(_SCRIPT), str(out)],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return out


@pytest.mark.parametrize("kind", ["plain", "int", "float"])
@pytest.mark.parametrize("sparsity", ["sparse-bitmask", "sparse-24-bitmask"])
def test_weights_equal_the_packages_own(sparsity: str, kind: str, written: Path) -> None:
    directory = written / f"{sparsity}_{kind}"
    asked = {"activations": "none"} if kind == "float" else None
    checkpoint = open_checkpoint(directory, finalise=asked)
    theirs = load_file(directory.with_suffix(".safetensors"))
    # Six matrices in each of two layers and the pooler; the classifier where it is not ignored.
    assert checkpoint.steps[0].endswith(f"in {14 if kind == 'plain' else 13} modules")
    assert len(checkpoint.linears) == (13 if kind == "int" else 0)
    for name, weight in theirs.items():
        module = name.removesuffix(".weight")
        if module in checkpoint.linears:
            ours = pack_integers(checkpoint.linears[module], None)[0].dequantize()
        else:
            ours = checkpoint.tensors[name]
        assert torch.equal(ours, weight), name
