#!/usr/bin/env bash
# Sourced by the other entry points: where things are, which Python, which kind of machine, one clear line at the end.
# shellcheck disable=SC2034  # its variables are read by those who source it

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
VENV="${RECPOD_VENV:-$ROOT/.venv}"
[[ "$VENV" == /* ]] || VENV="$PWD/$VENV"
LOCKS="$ROOT/docker/locks"
# shellcheck source-path=SCRIPTDIR source=../docker/versions.env
source "$ROOT/docker/versions.env"

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# After a refusal that comes before Python, which alone can stop a pod: ends with 2, and says what that costs.
pod_stays() {
  local argument
  for argument in "$@"; do
    if [[ "$argument" == --stop-pod* ]]; then note "the pod still runs and costs money: it cannot be stopped from here"; fi
  done
  exit 2
}

note() {
  printf '%s\n' "$*" >&2
}

# cuda or cpu. RECPOD_DEVICE overrides; a driver that hangs counts as none unless its device file is there.
kind_of_machine() {
  case "${RECPOD_DEVICE:-auto}" in
    cpu | cuda) echo "$RECPOD_DEVICE" ;;
    auto)
      if [[ -e /dev/nvidiactl ]] || timeout 10 nvidia-smi -L >/dev/null 2>&1; then echo cuda; else echo cpu; fi
      ;;
    *) die "RECPOD_DEVICE=$RECPOD_DEVICE: cpu, cuda or auto" ;;
  esac
}

# What one candidate says of itself: its path when it will do, "VERSION without venv", or nothing. Runs on any Python.
probe_python() {
  "$1" - "$PYTHON_MIN" "$PYTHON_MAX" 2>/dev/null <<'PYTHON'
import sys
low, high = ([int(part) for part in text.split(".")] for text in sys.argv[1:])
if low <= list(sys.version_info[:2]) <= high:
    try:
        import ensurepip, venv
        print(sys.executable)
    except ImportError:
        print("%d.%d without venv" % sys.version_info[:2])
PYTHON
}

# The path of a supported interpreter that really runs: a name on PATH may be a shim with nothing behind it.
pick_python() {
  local candidate found bare="" candidates=("python$PYTHON_MIN" "python$PYTHON_MAX" python3 python)
  [[ -z "${RECPOD_PYTHON:-}" ]] || candidates=("$RECPOD_PYTHON")
  for candidate in "${candidates[@]}"; do
    found="$(probe_python "$candidate")" || continue
    case "$found" in
      "") ;;
      *" without venv") bare="${found%% *}" ;;
      *) echo "$found" && return ;;
    esac
  done
  [[ -z "$bare" ]] || die "Python $bare is here without its venv module: apt-get install python$bare-venv"
  die "no Python $PYTHON_MIN to $PYTHON_MAX on PATH${RECPOD_PYTHON:+ (RECPOD_PYTHON=$RECPOD_PYTHON)}: install one, or set RECPOD_PYTHON to its path"
}
