#!/usr/bin/env bash
# What a container starts. Flags, or nothing, go to the front door (runpod.sh --help); anything else is a command:
# `docker run IMAGE --quickstart`, `docker run IMAGE recpod preflight`, `docker run -it IMAGE bash`.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

main() {
  local scratch="${TMPDIR:-/tmp}"
  if ! [[ -w "$scratch" ]]; then
    (die "$scratch cannot be written: with --read-only give the container --tmpfs /tmp") || pod_stays "$@"
  fi
  keep_compiled_kernels
  if (($# == 0)) || [[ "$1" == -* ]]; then
    exec "$ROOT/entrypoints/runpod.sh" --no-setup "$@"
  fi
  command -v "$1" >/dev/null || die "'$1' is neither a flag nor a command: a recipe is a flag (--help), or recpod run $1"
  exec "$@"
}

# Kernels compiled for this GPU or CPU outlive the container where there is a volume to put them on.
keep_compiled_kernels() {
  local volume="${RECPOD_VOLUME:-$PWD}"
  [[ -w "$volume" ]] || return 0
  export NUMBA_CACHE_DIR="${NUMBA_CACHE_DIR:-$volume/.cache/numba}"
  export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$volume/.cache/triton}"
  export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$volume/.cache/torchinductor}"
}

main "$@"
