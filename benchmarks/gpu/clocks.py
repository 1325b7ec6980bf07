"""The clocks that a GPU runs at while something is measured."""

from __future__ import annotations

import subprocess
import time
from statistics import median
from threading import Thread
from types import TracebackType

from typing_extensions import Self

EVERY_MS = 100
COMMAND = (
    "nvidia-smi", "--query-gpu=clocks.sm,clocks.mem", "--format=csv,noheader,nounits",
    f"--loop-ms={EVERY_MS}",
)  # fmt: skip


class Clocks:
    """Reads clocks beside the measurement, in a process of nvidia-smi's own; none without it."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, int, int]] = []
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        try:
            self._process = subprocess.Popen(
                COMMAND, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        except OSError:
            return self
        Thread(target=self._read, args=(self._process,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None  # a pipe
        for line in process.stdout:
            try:
                processors, memory = map(int, line.split(","))
            except ValueError:  # "[N/A]", or a line of another GPU's trouble
                continue
            self._samples.append((time.monotonic(), processors, memory))

    def since(self, start: float) -> dict[str, int] | None:
        """Median and lowest MHz from a moment of ``time.monotonic`` on; None: nothing was read."""
        found = [sample for sample in list(self._samples) if sample[0] >= start]
        if not found:
            return None
        processors = [sample[1] for sample in found]
        return {
            "sm_mhz": int(median(processors)),
            "least_sm_mhz": min(processors),
            "memory_mhz": int(median(sample[2] for sample in found)),
        }
