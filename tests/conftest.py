"""Settings of every test run."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Set before the first import of torch and transformers, and inherited by the subprocesses of tests.
# Cores are divided among the workers of pytest-xdist: OpenMP threads that outnumber the cores wait
# for each other and slow a run manyfold. Only in workers: they inherit what their parent sets.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A test that needs the network would pass or fail by the weather.
os.environ["HF_HUB_OFFLINE"] = "1"

import torch

# Triton reads this when a kernel is defined: without a GPU, kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
if importlib.util.find_spec("triton") is not None:
    from triton.runtime import interpreter

    _patch_lang_tensor = interpreter._patch_lang_tensor

    def _patch_for_new_numpy(tensor: Any, scope: Any) -> None:
        # Triton 3.6 keeps scalars as arrays of shape [1], of which NumPy 2.4 makes no int.
        _patch_lang_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = _patch_for_new_numpy

    # Triton 3.6 keeps bfloat16 as its bits: it multiplies these, and cuts floats off to get them.
    Builder = interpreter.InterpreterBuilder
    bf16, fp32 = interpreter.tl.bfloat16, interpreter.tl.float32
    _create_dot, _cast = Builder.create_dot, Builder.cast_impl

    def _widen(handle: Any) -> Any:
        if handle.dtype.scalar != bf16:
            return handle
        return interpreter.TensorHandle((handle.data.astype("uint32") << 16).view("float32"), fp32)

    def _dot_of_bfloat16(self: Any, a: Any, b: Any, *arguments: Any) -> Any:
        return _create_dot(self, _widen(a), _widen(b), *arguments)

    def _cast_to_nearest(self: Any, source: Any, to: Any) -> Any:
        if (source.dtype.scalar, to.scalar) != (fp32, bf16):
            return _cast(self, source, to)
        bits = source.data.astype("float32").view("uint32").astype("uint64")
        nearest = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        bits = nearest * (source.data == source.data) + 0x7FC0 * (source.data != source.data)
        return interpreter.TensorHandle(bits.astype("uint16"), bf16)

    def _fma_rounded_once(self: Any, x: Any, y: Any, z: Any) -> Any:
        # Triton 3.6 rounds the product too; float64 holds that of two float32.
        exact = x.data.astype("float64") * y.data + z.data
        return interpreter.TensorHandle(exact.astype(x.data.dtype), z.dtype.scalar)

    Builder.create_fma = _fma_rounded_once
    Builder.create_dot = _dot_of_bfloat16
    Builder.cast_impl = _cast_to_nearest

# A deadline would make slow machines fail; the same examples every time make a failure in CI one
# that a developer can repeat.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(scope="session")
def checkout_root() -> Path:
    """Root of the checkout: the folder that holds pyproject.toml."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def a_gpu_that_faulted_ends_its_worker() -> Iterator[None]:
    """No later test of this process could pass: pytest-xdist blames this one, and starts anew."""
    yield
    if "PYTEST_XDIST_WORKER" in os.environ and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            print(error, file=sys.__stderr__, flush=True)
            os._exit(1)


@pytest.fixture
def float_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU backend with the reference's attention, where matrix units multiply in bf16.

    What is left then are the roundings of float32 and of quantizers.
    """
    from sparse_runtime.ops.backends import Backend
    from sparse_runtime.ops.cpu_backend import CpuBackend

    def attention(self: CpuBackend, qkv: Any, batch: Any, **arguments: Any) -> Any:
        rows = Backend.attention(self, self.to_tokens(qkv), batch, **arguments)
        return qkv.run.from_rows(rows)

    monkeypatch.setattr(CpuBackend, "attention", attention)
