"""Keeps that a step of gpu_check.sh ran, where, and how it ended."""

from __future__ import annotations

import argparse
from pathlib import Path

from sparse_runtime.benchmarks.gpu.records import append, results_path
from sparse_runtime.benchmarks.gpu.surroundings import surroundings


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("exit_status", type=int)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    around = surroundings()
    path = results_path(options.out, around.device)
    fields = {"part": options.name, "exit_status": options.exit_status}
    append(path, "gpu_check", fields, around)
    status = "passed" if options.exit_status == 0 else f"FAILED ({options.exit_status})"
    print(f"{options.name}: {status} on {around.device}, recorded in {path}")


if __name__ == "__main__":
    main()
