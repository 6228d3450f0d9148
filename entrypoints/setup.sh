#!/usr/bin/env bash
# Makes the virtual environment from the lock files. See --help.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'HELP'
Usage: entrypoints/setup.sh [--hstu] [--test] [--dry-run] [--help]

Makes .venv from docker/locks, for this machine: CPU or NVIDIA GPU. A second call does nothing; an interrupted one is
repaired by the next; two at once wait for each other. pip's own configuration (index, find-links, proxy) is honoured.

  --hstu     also sharded tables, tensor parallel layers and gin files (torchrec, megatron-core, gin-config); an
             environment for a GPU has them anyway
  --test     also what lint, types and tests need
  --dry-run  say what would be done, and do nothing
  --help     this text

Environment: RECPOD_VENV (where, default .venv), RECPOD_PYTHON (which interpreter), RECPOD_DEVICE (cpu, cuda, auto),
RECPOD_TORCH_INDEX (index of torch's CPU wheels; pip's find-links are asked before it).
HELP
}

main() {
  EXTRAS=() DRY=no
  parse "$@"
  KIND="$(kind_of_machine)"
  choose_locks
  if [[ "$DRY" == yes ]]; then
    describe
    return
  fi
  if ready; then return; fi
  mkdir -p "$(dirname "$VENV")"
  exec 9<"$(dirname "$VENV")"
  flock --nonblock 9 || { note "another set-up is at work here: waiting for it" && flock 9; }
  if ready; then return; fi
  install
}

parse() {
  local argument
  for argument in "$@"; do
    case "$argument" in
      --hstu | --test) EXTRAS+=("${argument#--}") ;;
      --dry-run) DRY=yes ;;
      --help | -h) usage && exit 0 ;;
      *) die "unknown flag '$argument': entrypoints/setup.sh takes --hstu, --test, --dry-run and --help" ;;
    esac
  done
}

# A GPU's core lock holds the packages of extra hstu.
choose_locks() {
  local extra asked=("${EXTRAS[@]}")
  EXTRAS=()
  CORE=("$LOCKS/cpu.txt" "$LOCKS/torch-cpu.txt")
  declare -gA LOCK_OF=([hstu]="$LOCKS/hstu.txt" [test]="$LOCKS/test.txt")
  if [[ "$KIND" == cuda ]]; then
    CORE=("$LOCKS/cuda.txt" "$LOCKS/cuda-kernels.txt")
    LOCK_OF=([test]="$LOCKS/cuda-test.txt")
  fi
  for extra in "${asked[@]}"; do
    [[ -z "${LOCK_OF[$extra]:-}" ]] || EXTRAS+=("$extra")
  done
}

describe() {
  local python extra files=("${CORE[@]}")
  if ready; then note "$VENV is ready: nothing to do" && return; fi
  python="$(pick_python)"
  for extra in "${EXTRAS[@]}"; do files+=("${LOCK_OF[$extra]}"); done
  printf '%s\n' "machine: $KIND" "python: $python" "environment: $VENV" "${files[@]/#"$ROOT/"/lock: }"
}

# --- what has been installed: one stamp a part, in the environment's .recpod folder, written when the part is whole ---

stamp_now() { # PART; an environment or a checkout that was moved counts as another one
  case "$1" in
    core) { echo "$VENV" && cat "${CORE[@]}"; } ;;
    hstu | test) cat "${LOCK_OF[$1]}" ;;
    project) { echo "$ROOT" && cat "$ROOT/pyproject.toml"; } ;;
  esac | sha256sum
}

has() { # PART
  [[ -r "$VENV/.recpod/$1" && "$(<"$VENV/.recpod/$1")" == "$(stamp_now "$1")" ]]
}

has_core() {
  [[ ! -e "$VENV/.recpod/installing" ]] && has core && "$VENV/bin/python" -c '' 2>/dev/null
}

ready() {
  local extra
  has_core && has project || return 1
  for extra in "${EXTRAS[@]}"; do has "$extra" || return 1; done
}

# --- installing ---

install() {
  local start=$SECONDS core=present extra
  if ! has_core; then
    core=absent
    make_venv
  fi
  touch "$VENV/.recpod/installing"
  if [[ "$core" == absent ]]; then
    "install_$KIND"
    check_torch
    stamp_now core >"$VENV/.recpod/core"
  fi
  for extra in "${EXTRAS[@]}"; do install_extra "$extra"; done
  if ! has project; then install_project; fi
  if [[ "$core" == absent ]]; then compile_kernels; fi
  rm "$VENV/.recpod/installing"
  note "environment ready in $((SECONDS - start)) s: $VENV"
}

# A half-made environment is made anew: pip may take a package for installed of which only a part was written.
make_venv() {
  local python
  python="$(pick_python)"
  if [[ -e "$VENV" && ! -d "$VENV/.recpod" ]] && [[ -n "$(ls -A "$VENV")" ]]; then
    die "$VENV was not made by entrypoints/setup.sh: move it away, or set RECPOD_VENV to another place"
  fi
  note "making $VENV with $python, for a machine $([[ "$KIND" == cuda ]] && echo with || echo without) an NVIDIA GPU"
  rm -rf "$VENV"
  mkdir -p "$VENV/.recpod"
  touch "$VENV/.recpod/installing"
  "$python" -m venv "$VENV" || die "'$python -m venv' failed: see above"
}

venv_pip() {
  local quiet=()
  [[ -t 2 ]] || quiet=(--quiet --quiet)
  PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 "$VENV/bin/python" -m pip install --no-input --no-deps "${quiet[@]}" "$@"
}

locked_pip() {
  venv_pip --require-hashes --only-binary=:all: "$@"
}

install_lock() { # LOCK [OPTION...]
  note "installing the packages of ${1#"$ROOT"/}"
  locked_pip "${@:2}" -r "$1" || die "pip could not install ${1#"$ROOT"/} (its own lines are above): call this again to go on"
}

install_cpu() {
  install_cpu_torch # first: the one package that may be out of reach
  install_lock "$LOCKS/cpu.txt"
}

install_extra() { # NAME
  if has "$1"; then return; fi
  install_lock "${LOCK_OF[$1]}"
  stamp_now "$1" >"$VENV/.recpod/$1"
}

# From find-links, else from the CPU index, never from the default index: there the same version is a CUDA build.
install_cpu_torch() {
  local index="${RECPOD_TORCH_INDEX:-$TORCH_CPU_INDEX}" said
  note "installing torch $TORCH, CPU build"
  if said="$(locked_pip --no-index -r "$LOCKS/torch-cpu.txt" 2>&1)"; then return; fi
  if [[ "$said" == *"DO NOT MATCH THE HASHES"* ]]; then
    die "the wheel of torch $TORCH in pip's find-links is none of those in docker/locks/torch-cpu.txt: remove it, or add its sum to docker/versions.env"
  fi
  note "pip's find-links have no such wheel: taking it from $index"
  locked_pip --index-url "$index" -r "$LOCKS/torch-cpu.txt" ||
    die "torch $TORCH (CPU build) is neither in pip's find-links nor to be had from $index: set PIP_FIND_LINKS to a folder that holds its wheel, or RECPOD_TORCH_INDEX"
}

install_cuda() {
  install_lock "$LOCKS/cuda.txt"
  note "installing mamba-ssm and causal-conv1d"
  # At most ten minutes: their set-up takes a prebuilt wheel for this torch where there is one, else it compiles for long.
  timeout 600 "$VENV/bin/python" -m pip install --quiet --no-deps --require-hashes --no-build-isolation \
    --no-binary=:all: -r "$LOCKS/cuda-kernels.txt" ||
    note "warning: mamba-ssm and causal-conv1d could not be installed; the Triton kernels do the same work"
}

check_torch() {
  "$VENV/bin/python" - "$KIND" <<'PYTHON' || die "remove $VENV, look at pip's find-links and index, and run this again"
import sys
import torch
if (torch.version.cuda is None) != (sys.argv[1] == "cpu"):
    sys.exit(f"error: torch {torch.__version__} with CUDA {torch.version.cuda} on a machine of kind {sys.argv[1]}")
PYTHON
}

install_project() {
  note "installing the project, editable"
  venv_pip --no-build-isolation --editable "$ROOT" || die "pip could not install the project (its own lines are above)"
  stamp_now project >"$VENV/.recpod/project"
}

# Once, here, rather than in the first minute of the first run; whether they are right is the preflight's to say.
compile_kernels() {
  note "compiling the kernels"
  "$VENV/bin/python" -c 'from models.kernels import self_check; self_check()' >/dev/null ||
    note "warning: the kernels could not be compiled now: see recpod preflight"
}

main "$@"
