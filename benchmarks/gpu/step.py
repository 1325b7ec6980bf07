"""Keeps that a step of gpu_check.sh ran, where, and how it ended, or why it did not run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sparse_runtime.benchmarks.gpu.records import append, results_path
from sparse_runtime.benchmarks.gpu.surroundings import surroundings


def ending(fields: dict[str, Any]) -> str:
    """How a step ended, in words."""
    if "skipped" in fields:
        return f"skipped, {fields['skipped']}"
    status = fields["exit_status"]
    return "passed" if status == 0 else f"FAILED ({status})"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--exit-status", type=int)
    how.add_argument("--skipped", help="why it did not run")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    around = surroundings()
    path = results_path(options.out, around.device)
    fields = {"part": options.name, "exit_status": options.exit_status}
    if options.skipped is not None:
        fields["skipped"] = options.skipped
    append(path, "gpu_check", fields, around)
    print(f"{options.name}: {ending(fields)} on {around.device}, recorded in {path}")


if __name__ == "__main__":
    main()
