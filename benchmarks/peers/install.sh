#!/usr/bin/env bash
# One virtual environment a peer, with pinned versions, and the checkpoints for all of them.
#
#   benchmarks/peers/install.sh DIR
#
#   PYTHON3_11, PYTHON3_10  interpreters (default: python3.11, python3.10)
#   PYTHON                  the one that has sparse_runtime (default: python3)
#
# DeepSparse's licence allows evaluation in development and testing only.
set -euo pipefail
home=${1:?usage: install.sh DIR}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python11=${PYTHON3_11:-python3.11}
python10=${PYTHON3_10:-python3.10}
mkdir -p "$home"

# environment NAME PYTHON: makes it unless it is whole; the rest of the work comes from stdin.
environment() {
  local name=$1 python=$2
  if [[ -f $home/$name/.whole ]]; then
    echo "$name: there already"
    return
  fi
  # A version manager's stand-in may be on PATH without that Python behind it.
  if ! "$python" -c '' 2>/dev/null; then
    echo "$name: skipped, there is no $python"
    return
  fi
  "$python" -m venv "$home/$name"
  local pip=("$home/$name/bin/python" -m pip install -q)
  if install_"$name"; then touch "$home/$name/.whole"; else echo "$name: skipped, see above"; fi
}

install_ov() {
  "${pip[@]}" openvino==2026.4.1 onnxruntime==1.31.1 nncf==3.4.0 onnx sympy
}

install_export() {
  "${pip[@]}" torch==2.13.0 "numpy<2.3" &&
    "${pip[@]}" torch==2.13.0 transformers==4.46.3 "numpy<2.3" onnx onnxscript \
      onnxruntime==1.31.1 sympy
}

install_ds() {
  "${pip[@]}" --no-deps deepsparse==1.8.0 &&
    "${pip[@]}" sparsezoo==1.8.1 "numpy<2" onnx==1.14.1 "pydantic>=2,<3" requests tqdm \
      "protobuf<5" click
}

# The neural engine alone: the toolkit around it asks for PyTorch and a compressor, unused here.
install_itrex() {
  "${pip[@]}" --no-deps intel-extension-for-transformers==1.4.2 &&
    "${pip[@]}" "numpy<1.25" onnx==1.14.1 "protobuf<5" schema pyyaml packaging "setuptools<70" \
      tqdm sympy pandas py-cpuinfo
}

environment ov "$python11"
environment export "$python11"
environment ds "$python10"
environment itrex "$python10"
"${PYTHON:-python3}" "$here/make_models.py" "$home"
