#!/usr/bin/env bash
# All that a GPU has to show, in one call of under ten minutes, with nothing installed but torch and numpy. See --help.
set -euo pipefail

usage() {
  cat <<'HELP'
Usage: benchmarks/gpu.sh [--store FOLDER] [--seconds 540] [OPTION of benchmarks/gpu.py...]

Kernels against the reference, training speed, repeated and resumed runs, an epoch of SASRec and TiSASRec, the step as a
CUDA graph, HSTU's figures; with a sequence store also a short training.
With pytest installed, the tests of the Triton kernels run natively first. Writes JSON files into OUT.

Environment: PYTHON (default python3), RECPOD_STORE (as --store), RECPOD_COMMIT (named in the results where there is no
git), OUT (default benchmarks/results/gpu).
Leaves with 0 when all checks have passed, with 1 when one has failed.
HELP
}

main() {
  local root python="${PYTHON:-python3}" begin=$SECONDS failed=0
  case "${1:-}" in
    --help | -h) usage && exit 0 ;;
  esac
  root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
  export OUT="${OUT:-$root/benchmarks/results/gpu}" PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
  export CUBLAS_WORKSPACE_CONFIG="${CUBLAS_WORKSPACE_CONFIG:-:4096:8}" # what deterministic matrix products ask for
  export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
  mkdir -p "$OUT"
  triton_tests "$python" "$root" || failed=1
  graphed_step "$python" "$@" || failed=1
  "$python" -m benchmarks.gpu --seconds "$((540 - SECONDS + begin))" "$@" || failed=1
  exit "$failed"
}

# A process of its own, and first: what it breaks of the GPU's state is gone with it.
graphed_step() { # PYTHON [OPTION of benchmarks/gpu.py...]
  if ! "$1" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
    echo "no GPU here: no CUDA graph"
    return
  fi
  timeout 100 "$1" -m benchmarks.gpu_graph "${@:2}" || { echo "FAILED   the step as a CUDA graph" && return 1; }
}

# The tests' own verdict, where the machine has what they need.
triton_tests() { # PYTHON ROOT
  if ! "$1" -c 'import pytest, torch, triton; assert torch.cuda.is_available()' 2>/dev/null; then
    echo "no pytest, triton or GPU here: the kernels are checked by benchmarks/gpu.py alone"
    return
  fi
  timeout 180 "$1" -m pytest -c /dev/null --rootdir "$2" -p no:cacheprovider -q "$2/tests/models/kernels/test_triton_kernels.py" |
    tee "$OUT/triton-tests.txt"
}

main "$@"
