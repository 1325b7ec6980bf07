"""A contender of bench_peers.py: one process with one model (benchmarks/peers/worker.py)."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORKER = Path(__file__).resolve().parent / "peers" / "worker.py"
# Which environment runs a peer.
HOMES = {
    "openvino": "ov",
    "onnxruntime": "ov",
    "deepsparse": "ds",
    "itrex": "itrex",
    "transformers": "ours",
    "sparse-runtime": "ours",
}
ENDED = "the process ended"
SILENT = "no answer in time"
# Loading may compile for minutes.
LONGEST_WAIT_S = 900.0


@dataclass(frozen=True)
class Answer:
    """To one order.

    Attributes:
        seconds: of each pass; empty where it failed.
        peak_mb: largest resident size of the process so far, in 10^6 bytes; 0 where it failed.
        error: why it failed, or None.
    """

    seconds: tuple[float, ...] = ()
    peak_mb: float = 0.0
    error: str | None = None


class Worker:
    """A contender's process. Whatever happens to it is an error to report, not to raise.

    Attributes:
        peer: "NAME:PRECISION".
        error: why it does not run at all, or None.
        version: of its libraries; "" where it does not run.
    """

    def __init__(self, home: Path, peer: str, model: Path, threads: int) -> None:
        environment = HOMES[peer.partition(":")[0]]
        python = sys.executable if environment == "ours" else str(home / environment / "bin/python")
        self.peer = peer
        self.version = ""
        self._process: subprocess.Popen[str] | None = None
        try:
            self._process = subprocess.Popen(
                [python, str(WORKER), peer, str(model), str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            )
        except OSError as error:  # its environment was not installed
            self.error: str | None = str(error)
            return
        first = self._read()
        self.error = first.get("error")
        self.version = str(first.get("ready", ""))

    def _read(self) -> dict[str, Any]:
        pipe = self._process.stdout if self._process else None
        # Each order has one line of answer, so nothing waits in the pipe's own buffer.
        if pipe is not None and not select.select([pipe], [], [], LONGEST_WAIT_S)[0]:
            self.close()
            return {"error": SILENT}
        line = pipe.readline() if pipe is not None and not pipe.closed else ""
        try:
            return dict(json.loads(line))
        except ValueError:  # nothing, or a line that was cut off
            return {"error": ENDED}

    def run(
        self, batch: int, seq: int, runs: int, save: str = "", lengths: tuple[int, ...] = ()
    ) -> Answer:
        """Let it make ``runs`` passes of random tokens [batch, seq].

        Args:
            batch: sequences.
            seq: tokens of each.
            runs: timed passes, after one that is not.
            save: where its output goes as .npy; "" for nowhere.
            lengths: tokens of each sequence, the others are padding; () for no padding.
        """
        order = {
            "batch": batch,
            "seq": seq,
            "lengths": list(lengths),
            "runs": runs,
            "seed": batch + seq,
            "save": save,
        }
        if self._process is None or self._process.stdin is None or self._process.stdin.closed:
            return Answer(error=ENDED)
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except OSError:
            return Answer(error=ENDED)
        answer = self._read()
        if "error" in answer:
            return Answer(error=str(answer["error"]))
        return Answer(tuple(answer["seconds"]), float(answer["peak_mb"]))

    def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # an order that it never read
                    pipe.close()
