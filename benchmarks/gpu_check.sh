#!/usr/bin/env bash
# Everything that only a machine with an NVIDIA GPU can say, without network and without installing:
# tests on the GPU, the same under compute-sanitizer, and a record of what ran where.
#
#   benchmarks/gpu_check.sh             all parts
#   benchmarks/gpu_check.sh --part N    1 tests, 2 sanitizer (each under ten minutes)
#
#   PYTHON   interpreter with torch and pytest (default: python3)
#   OUT      folder for results (default: benchmarks/results)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
out=${OUT:-benchmarks/results}
part=all
if [[ ${1:-} == --part ]]; then part=${2:?--part takes 1 or 2}; fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

"$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' || {
  echo "error: torch sees no CUDA device on this machine" >&2
  exit 1
}
mkdir -p "$out"

if "$python" -c 'import pybind11, setuptools' 2>/dev/null; then
  "$python" setup.py -q build_ext --inplace
else
  echo "the C++ extension is not built: pybind11 or setuptools is missing"
fi

# Runs a part and appends one JSON line: device, commit, versions, exit status.
record() {
  local name=$1 status=0
  shift
  "$@" || status=$?
  "$python" - "$name" "$status" "$out" <<'PY'
import json, pathlib, re, subprocess, sys, time

import torch

name, status, out = sys.argv[1:]
device = torch.cuda.get_device_name()
commit = subprocess.run(
    ["git", "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True
).stdout.strip()
line = {
    "kind": "gpu_check",
    "part": name,
    "exit_status": int(status),
    "device": device,
    "capability": list(torch.cuda.get_device_capability()),
    "commit": commit or None,
    "versions": {"torch": torch.__version__, "cuda": torch.version.cuda},
    "time": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
}
path = pathlib.Path(out, re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".jsonl")
with path.open("a") as file:
    file.write(json.dumps(line) + "\n")
print(f"{name}: {'passed' if status == '0' else 'FAILED'} on {device}, recorded in {path}")
PY
  return "$status"
}

failed=0
if [[ $part == all || $part == 1 ]]; then
  record tests "$python" -m pytest -q tests/gpu || failed=1
fi
if [[ $part == all || $part == 2 ]]; then
  if command -v compute-sanitizer >/dev/null; then
    record memcheck compute-sanitizer --tool memcheck --error-exitcode 9 \
      "$python" -m pytest -q tests/gpu -k "65 and 2:4" || failed=1
  else
    echo "sanitizer: skipped, compute-sanitizer is not on PATH"
  fi
fi
exit "$failed"
