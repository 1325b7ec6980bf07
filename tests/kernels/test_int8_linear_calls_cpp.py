"""Calls of the C++ family int8_linear: threads, concurrency, fork, exit, and refused arguments."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparse_runtime import _C

T, N, K = 150, 330, 257  # 6 column groups, several token blocks, an input group of one


class Buffers:
    """Operands of every function, and calls of them in which single arguments can be replaced."""

    def __init__(self, t: int = T, n: int = N, k: int = K) -> None:
        rng = np.random.default_rng(0)
        size, sums = _C.int8_linear_layout_size(n, k)
        self.t, self.n, self.k = t, n, k
        self.w = rng.integers(-128, 128, (n, k), dtype=np.int8)
        self.q = rng.integers(0, 256, (t, k), dtype=np.uint8)
        self.x = rng.standard_normal((t, k), dtype=np.float32)
        self.packed, self.row_sums = np.empty(size, np.int8), np.empty(sums, np.int32)
        self.scale, self.w_scale = np.ones(t, np.float32), np.ones(n, np.float32)
        self.acc, self.out = np.zeros((t, n), np.int32), np.zeros((t, n), np.float32)
        self.call("int8_linear_pack")

    def exact(self, zero_point: int) -> np.ndarray:
        return (self.q.astype(np.int64) - zero_point) @ self.w.T.astype(np.int64)

    def arguments(self, function: str) -> dict[str, Any]:
        t, n, k = self.t, self.n, self.k
        weight = {"packed_ptr": self.packed.ctypes.data, "n": n, "k": k}
        sums = {"row_sums_ptr": self.row_sums.ctypes.data}
        where = {"num_threads": 2, "isa": "auto"}
        inputs = {"q_ptr": self.q.ctypes.data, "q_stride": k, "t": t, "zero_point": 3}
        floats = {"x_ptr": self.x.ctypes.data, "x_stride": k, "t": t, "k": k}
        target = {"q_ptr": self.q.ctypes.data, "q_stride": k}
        w = {"w_ptr": self.w.ctypes.data}
        static = {"scale": 0.1, "zero_point": 3, "qmin": 0, "qmax": 255}
        sum_out = {"out_ptr": self.acc.ctypes.data, "out_stride": n}
        epilogue = {
            **{"x_scale_ptr": self.scale.ctypes.data, "x_scale_is_per_row": True},
            **{"w_scale_ptr": self.w_scale.ctypes.data, "bias_ptr": 0, "activation": "none"},
            **{"residual_ptr": 0, "residual_stride": n},
            **{"out_ptr": self.out.ctypes.data, "out_stride": n},
        }
        return {
            "int8_linear_layout_size": {"n": n, "k": k},
            "int8_linear_pack": w | weight | sums,
            "int8_linear_unpack": w | weight,
            "quantize_rows": floats | target | {"scale_ptr": self.scale.ctypes.data} | where,
            "quantize_static": floats | target | static | where,
            "int8_linear": inputs | weight | sums | epilogue | where,
            "int8_linear_accumulate": inputs | weight | sums | sum_out | where,
        }[function]

    def call(self, function: str, **changes: Any) -> Any:
        run: Callable[..., Any] = getattr(_C, function)
        return run(**(self.arguments(function) | changes))


@pytest.mark.parametrize("isa", [s["name"] for s in _C.isas() if s["available"]])
def test_any_number_of_threads_gives_the_same_sums(isa: str) -> None:
    buffers = Buffers()
    wanted = buffers.exact(3)
    for threads in (*range(1, 9), 1000):
        buffers.acc[:] = 77
        buffers.call("int8_linear_accumulate", num_threads=threads, isa=isa)
        assert np.array_equal(buffers.acc, wanted), threads


def test_concurrent_callers_each_get_their_own_result() -> None:
    def work(seed: int) -> int:
        buffers = Buffers(t=40 + seed)
        wanted, right = buffers.exact(3), 0
        for _ in range(60):
            buffers.acc[:] = 77
            buffers.call("int8_linear_accumulate", num_threads=4)
            right += np.array_equal(buffers.acc, wanted)
        return right

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(work, range(6))) == [60] * 6


SCRIPT = """
import os, sys, threading
sys.path.insert(0, {tests!r})
from test_int8_linear_calls_cpp import Buffers
import numpy as np
def right():
    buffers = Buffers()
    buffers.call("int8_linear_accumulate", num_threads=4)
    return np.array_equal(buffers.acc, buffers.exact(3))
assert right()
{body}
"""

FORK_WHILE_BUSY = """
stop = False
def keep_the_pool_busy():
    while not stop:
        assert right()
busy = threading.Thread(target=keep_the_pool_busy)
busy.start()
for _ in range(10):
    child = os.fork()
    if child == 0:
        os._exit(0 if right() and right() else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert right()
stop = True
busy.join()
"""

EXIT_WHILE_BUSY = """
def endless():
    while True:
        right()
threading.Thread(target=endless, daemon=True).start()
"""


@pytest.mark.parametrize("body", ["", FORK_WHILE_BUSY, EXIT_WHILE_BUSY], ids=["", "fork", "exit"])
def test_process_forks_and_exits_cleanly(body: str, checkout_root: Path) -> None:
    script = SCRIPT.format(tests=str(Path(__file__).parent), body=body)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=checkout_root,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


BAD_ARGUMENTS: list[tuple[str, str, Any]] = [
    ("int8_linear_layout_size", "n", -1),
    ("int8_linear_layout_size", "k", 65537),  # an accumulator could leave int32
    ("int8_linear_layout_size", "n", 2**62),
    ("int8_linear_pack", "w_ptr", 0),
    ("int8_linear_pack", "packed_ptr", 0),
    ("int8_linear_pack", "row_sums_ptr", 0),
    ("int8_linear_pack", "row_sums_ptr", 4097),  # int32 at an odd address
    ("int8_linear_unpack", "packed_ptr", 0),
    ("int8_linear_unpack", "w_ptr", 0),
    ("quantize_rows", "x_ptr", 0),
    ("quantize_rows", "x_ptr", 4098),
    ("quantize_rows", "t", -1),
    ("quantize_rows", "k", -1),
    ("quantize_rows", "x_stride", K - 1),
    ("quantize_rows", "x_stride", 2**62),
    ("quantize_rows", "q_stride", K - 1),
    ("quantize_rows", "scale_ptr", 0),
    ("quantize_rows", "num_threads", 0),
    ("quantize_static", "q_ptr", 0),
    ("quantize_static", "scale", 0.0),
    ("quantize_static", "scale", float("nan")),
    ("quantize_static", "scale", 1e300),  # infinite in float32
    ("quantize_static", "zero_point", 256),
    ("quantize_static", "qmin", -1),
    ("quantize_static", "qmax", 256),
    ("int8_linear", "q_ptr", 0),
    ("int8_linear", "q_ptr", 2**64 - 8),  # would wrap around the address space
    ("int8_linear", "q_stride", K - 1),
    ("int8_linear", "t", -1),
    ("int8_linear", "packed_ptr", 0),
    ("int8_linear", "row_sums_ptr", 0),
    ("int8_linear", "x_scale_ptr", 0),
    ("int8_linear", "zero_point", -1),
    ("int8_linear", "zero_point", 256),
    ("int8_linear", "w_scale_ptr", 0),
    ("int8_linear", "bias_ptr", 4098),
    ("int8_linear", "activation", "tanh"),
    ("int8_linear", "residual_ptr", 4098),
    ("int8_linear", "out_ptr", 0),
    ("int8_linear", "out_stride", N - 1),
    ("int8_linear", "num_threads", -1),
    ("int8_linear", "isa", "sse9"),
    ("int8_linear_accumulate", "out_ptr", 4098),
    ("int8_linear_accumulate", "out_stride", 1),
    ("int8_linear_accumulate", "zero_point", 300),
]


@pytest.mark.parametrize(("function", "argument", "value"), BAD_ARGUMENTS)
def test_bad_arguments_are_refused_by_name_before_anything_is_written(
    function: str, argument: str, value: Any
) -> None:
    buffers = Buffers()
    arrays = [buffers.w, buffers.q, buffers.packed, buffers.out, buffers.acc]
    before = [array.copy() for array in arrays]
    with pytest.raises(ValueError, match=rf"\b{argument}: expected .*; got "):
        buffers.call(function, **{argument: value})
    assert all(np.array_equal(a, b) for a, b in zip(before, arrays, strict=True))


def test_residual_stride_is_checked_only_with_a_residual() -> None:
    buffers = Buffers()
    buffers.call("int8_linear", residual_stride=0)
    residual = np.zeros((T, N), np.float32)
    with pytest.raises(ValueError, match="residual_stride: expected at least the row length 330"):
        buffers.call("int8_linear", residual_ptr=residual.ctypes.data, residual_stride=0)


def test_qmax_below_qmin_is_refused() -> None:
    with pytest.raises(ValueError, match=r"qmax: expected a value in 9\.\.255; got 8"):
        Buffers().call("quantize_static", qmin=9, qmax=8)
