"""Stand-ins for the contenders of the peers' benchmark, and for timing them on a GPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from sparse_runtime.benchmarks import peer_process
from sparse_runtime.testing import Timing

Contenders = Mapping[str, Sequence[Callable[[], object]]]

# Speaks the protocol of benchmarks/peers/worker.py and does what its plan says.
STAND_IN = """
import json, os, shutil, sys
plan = json.loads(os.environ["STAND_INS"]).get(sys.argv[1], {})
if plan.get("exits"):
    sys.exit(3)
if "error" in plan:
    print(json.dumps({"error": plan["error"]}), flush=True)
    sys.exit()
version = plan.get("version", "/".join([*sys.argv[1:], os.environ["OMP_NUM_THREADS"]]))
print(json.dumps({"ready": version}), flush=True)
for number, line in enumerate(sys.stdin):
    order = json.loads(line)
    if number == plan.get("dies_at"):
        print('{"seconds": [0.', end="", flush=True)
        os._exit(1)
    if number == plan.get("hangs_at"):
        continue
    if number == plan.get("fails_at"):
        print(json.dumps({"error": "RuntimeError: out of memory"}), flush=True)
        continue
    if order["save"]:
        shutil.copy(plan["output"], order["save"])
    each = plan["seconds"] * order["batch"] * order["seq"]
    seconds = [each] * order["runs"]
    if len(seconds) > 2:
        seconds[0], seconds[-1] = each / 2, each * 4
    print(json.dumps({"seconds": seconds, "peak_mb": 7.0}), flush=True)
"""


@pytest.fixture
def set_plans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[dict[str, dict[str, Any]]], None]:
    """Every contender becomes a stand-in; the plans say what each does."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(peer_process, "WORKER", script)
    monkeypatch.setattr(peer_process, "HOMES", dict.fromkeys(peer_process.HOMES, "ours"))
    return lambda plans: monkeypatch.setenv("STAND_INS", json.dumps(plans))


@pytest.fixture
def call_once() -> Callable[..., dict[str, Timing | str]]:
    """In the place of ``time_kernels``: makes every call, as if it had taken a microsecond."""

    def once(
        calls: Contenders, rounds: int = 1, uncaptured: Collection[str] = ()
    ) -> dict[str, Timing | str]:
        for own in calls.values():
            for call in own:
                call()
        return {name: Timing((1e-6,)) for name in calls}

    return once
