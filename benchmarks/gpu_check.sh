#!/usr/bin/env bash
# Everything that only a machine with an NVIDIA GPU can say, without network and without installing:
# tests on the GPU, the same under compute-sanitizer, tuning, benchmarks against peers, and a short
# table last. Each part can be run by itself, in any order, and its steps end within ten minutes, of which
# the build takes up to 5 (build once, then BUILD=0) and in parts 3 to 13, once for a device, a commit and
# a library, a short test of hand-written kernels up to 3. Parts 3 to 13 go on where the last call left off.
#
#   benchmarks/gpu_check.sh             all parts
#   benchmarks/gpu_check.sh --part N    1 tests           2 sanitizer        3 tuning
#                                       4 linear layers   5 encoders         6 the table alone
#                                       7 dense and 2:4 int8 products, 8 unstructured ones
#                                       9 and 10 the same in bf16      11 blocks
#                                       12 fp16, 1:4 and 2:8           13 rows, padding and attention
#   benchmarks/gpu_check.sh --again     (with --part or without) cases too whose results are there already
#
#   PYTHON                 interpreter with torch, triton and pytest (default: python3)
#   OUT                    folder for results (default: benchmarks/results); what is printed is in its log too
#   BUILD                  0: take the C++ extension and the CUDA library as they lie there
#   WORKERS                processes that share the tests (default: 8, where pytest-xdist is installed)
#   SPARSE_RUNTIME_COMMIT  the commit, where the checkout brings no history (default: a hash of the sources)
#
# The kernels for sm_90a need CUTLASS's headers. Where these are missing, build the library elsewhere
# (SPARSE_RUNTIME_CUTLASS, docs/kernels/cuda_library.md) and bring sparse_runtime/libsparse_runtime_cuda.so
# along, which git ignores: it runs under any torch and Python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

parts=13
usage() { sed -n '2,/^set /{s/^# \{0,1\}//p}' benchmarks/gpu_check.sh; }
refuse() {
  printf 'error: %s\n\n%s\n' "$1" "$(usage)" >&2
  exit 2
}
part=all again=()
while (($#)); do
  case $1 in
    --part)
      part=${2:-}
      if ! [[ $part =~ ^[1-9][0-9]?$ ]] || ((part > parts)); then
        refuse "--part takes 1 to $parts, got ${part:-nothing}"
      fi
      shift
      ;;
    --again) again=(--again) ;;
    -h | --help)
      usage
      exit
      ;;
    *) refuse "expected --part or --again, got $1" ;;
  esac
  shift
done

python=${PYTHON:-python3}
out=${OUT:-benchmarks/results}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
# PyTorch would round its float32 products to tf32 where the second is set: tests compare with these.
unset TRITON_INTERPRET TORCH_ALLOW_TF32_CUBLAS_OVERRIDE

"$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' || {
  echo "error: torch sees no CUDA device on this machine" >&2
  exit 1
}
mkdir -p "$out"
if [[ -n ${OUT:-} ]]; then
  exec > >(tee -i -a "$out/log") 2>&1
  logger=$!
  trap 'exec >&- 2>&-; wait "$logger"' EXIT
fi

# With nvcc, the CUDA library too. One that lies there already is used as it is where CUTLASS's headers
# are missing, for it would lose its kernels for sm_90a.
library=sparse_runtime/libsparse_runtime_cuda.so
if [[ -e $library && -z ${SPARSE_RUNTIME_CUTLASS:-} ]] &&
  ! "$python" -c 'import cutlass_library' 2>/dev/null; then
  export SPARSE_RUNTIME_CUDA=0
fi
# Hardly anything on a GPU needs the extension: where it does not build, all else goes on.
if [[ ${BUILD:-1} != 0 ]]; then
  timeout 300 "$python" setup.py -q build_ext --inplace ||
    echo "the C++ extension is not built: that takes a compiler, pybind11 and setuptools 77 or later" >&2
fi

# Of all parts, each has ten minutes of its own; one alone shares them with what came before.
wanted() {
  if [[ $part == all ]]; then SECONDS=0; fi
  [[ $part == all || $part == "$1" ]]
}

failed=0
# What a shell in the background starts ignores interrupts.
interruptible=()
if env --default-signal=INT true 2>/dev/null; then interruptible=(env --default-signal=INT); fi

record() { "$python" -m sparse_runtime.benchmarks.gpu.step "$@" --out "$out" || failed=1; }

# Ten minutes, less a margin, the time to be killed (-k) and that to record it.
least=30
latest=$((590 - 20 - 10))

# Runs a step of at most so many seconds, fewer where the part has no more left, and appends a JSON line
# with its exit status. What it loses, a driver's own --seconds lose too. Interrupted, pytest still says
# what has failed.
step() {
  local name=$1 seconds=$2 status=0 left=$((latest - SECONDS)) before='' word command=()
  shift 2
  local most=$((seconds < left ? seconds : left))
  for word; do
    if [[ $before == --seconds ]]; then
      word=$((word - seconds + most))
      if ((word <= 0)); then left=0; fi
    fi
    command+=("$word")
    before=$word
  done
  if ((left < least)); then
    record "$name" --skipped "ten minutes have no room left for it: run this part again with BUILD=0"
    failed=1
    return
  fi
  timeout -s INT -k 20 "$most" "${interruptible[@]}" "${command[@]}" || status=$?
  record "$name" --exit-status "$status"
  if [[ $status != 0 ]]; then failed=1; fi
}

# Triton's kernels are tested by the same files as in its interpreter.
kernel_tests=(tests/gpu tests/ops/test_cuda_linear.py tests/encoders/test_cuda_encoders.py
  tests/kernels/test_*_triton.py tests/compress/training/test_method_recipes.py)

# Tests compile their kernels, each on one core. Those that measure time have the GPU alone.
pytest=("$python" -m pytest -q -p no:cacheprovider)
tests=("${pytest[@]}" --durations=8 "${kernel_tests[@]}")
workers=() limit=()
if "$python" -c 'import xdist' 2>/dev/null; then workers=(-n "${WORKERS:-8}" --dist worksteal); fi
# A kernel that hangs costs one worker, which is replaced.
if "$python" -c 'import pytest_timeout' 2>/dev/null; then
  limit=(--timeout 120 --timeout-method thread)
fi

# Hand-written kernels that fault or hang would take down whatever runs beside them: a short test of
# each kind says which are left out from here on, on this device, at this commit and with this library (a
# hash stands for changed files). Part 1 asks anew.
key=$("$python" -c 'import torch
from sparse_runtime.benchmarks.gpu.surroundings import commit, library
print(torch.cuda.get_device_name(), commit(), library())')
left_out=${XDG_CACHE_HOME:-$HOME/.cache}/sparse_runtime/gpu_check.without.${key//[^[:alnum:]]/-}
leave_out() {
  if [[ ! -e $left_out ]]; then
    local kinds=() kind status
    for kind in mma hopper; do
      status=0
      timeout 90 "${pytest[@]}" tests/gpu/test_library_linear_on_cuda.py -x \
        -k "small_products and $kind" >/dev/null || status=$?
      # 5: there is no such test here, so no kernel has failed.
      if [[ $status != [05] ]]; then kinds+=("$kind"); fi
    done
    mkdir -p "${left_out%/*}"
    (IFS=, && echo "${kinds[*]}") >"$left_out"
  fi
  SPARSE_RUNTIME_WITHOUT=${SPARSE_RUNTIME_WITHOUT:-$(<"$left_out")}
  export SPARSE_RUNTIME_WITHOUT
  if [[ -n $SPARSE_RUNTIME_WITHOUT ]]; then echo "left out: $SPARSE_RUNTIME_WITHOUT kernels"; fi
}

if wanted 1; then
  rm -f "$left_out"
  step tests 400 "${tests[@]}" -m "not alone" "${workers[@]}" "${limit[@]}"
  step "tests alone" 100 "${tests[@]}" -m alone
fi
if [[ $part != [126] ]]; then leave_out; fi
if wanted 2; then
  if command -v compute-sanitizer >/dev/null; then
    # Small cases, chosen for their edges: off-tile shapes and kernels whose programs count each other.
    # Each tensor has memory of its own, or what lies behind it would be another's. What libraries ask
    # of the CUDA API in vain is no error. The Hopper kernels, which no emulator has run, hide nobody's.
    sanitize() {
      local name=$1 seconds=$2 kind=$3
      shift 3
      step "$name" "$seconds" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
        compute-sanitizer --tool "$@" --error-exitcode 9 --target-processes all \
        "${tests[@]}" -m sanitize -k "$kind" "${workers[@]}" "${limit[@]}"
    }
    memcheck=(memcheck --report-api-errors no)
    racecheck=(racecheck --racecheck-detect-level error)
    sanitize memcheck 170 "not hopper" "${memcheck[@]}"
    sanitize racecheck 170 "not hopper" "${racecheck[@]}"
    sanitize "memcheck hopper" 90 hopper "${memcheck[@]}"
    sanitize "racecheck hopper" 90 hopper "${racecheck[@]}"
  else
    record sanitizer --skipped "compute-sanitizer is not on PATH"
  fi
fi
if wanted 3; then
  step tuning 540 "$python" -m sparse_runtime.benchmarks.gpu.tune --out "$out" --seconds 470 "${again[@]}"
fi
if wanted 4; then
  step linears 540 "$python" -m sparse_runtime.benchmarks.gpu.linears --out "$out" --seconds 500 "${again[@]}"
fi
if wanted 5; then
  step encoders 540 "$python" -m sparse_runtime.benchmarks.gpu.encoders --out "$out" --seconds 450 "${again[@]}"
fi
# Products of one part: its number and its cases.
products() {
  local number=$1
  shift
  if wanted "$number"; then
    step "products $number" 540 "$python" -m sparse_runtime.benchmarks.gpu.gemms --out "$out" \
      --seconds 500 "${again[@]}" --case "$@"
  fi
}
products 7 "dense int8" "2:4 int8"
products 8 "unstructured@0.9 int8 ordered" "unstructured@0.9 int8"
products 9 "dense bf16" "2:4 bf16"
products 10 "unstructured@0.9 bf16 ordered" "unstructured@0.9 bf16"
products 11 "block:64x64@0.9 bf16" "block:64x64@0.9 int8" "block:32x32@0.9 bf16" \
  "block:32x32@0.9 int8" "block:128x128@0.9 bf16" "block:128x128@0.9 int8" "block:16x16@0.9 bf16" \
  "block:16x16@0.9 int8" "block:16x64@0.9 bf16" "block:16x64@0.9 int8"
products 12 "dense fp16" "2:4 fp16" "block:64x64@0.9 fp16" "unstructured@0.9 fp16" \
  "1:4 int8" "2:8 int8" "1:4 bf16" "2:8 bf16"
if wanted 13; then
  step rows 540 "$python" -m sparse_runtime.benchmarks.gpu.rows --out "$out" --seconds 450 "${again[@]}"
fi
for results in "$out"/*.jsonl; do
  if grep -q '"kind": "gpu_' "$results"; then
    "$python" -m sparse_runtime.benchmarks.gpu.view "$results" || failed=1
  fi
done
exit "$failed"
