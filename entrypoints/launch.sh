#!/usr/bin/env bash
# Several processes, on one node or many: torchrun with meaningful exit codes. See --help.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'HELP'
Usage: entrypoints/launch.sh [OPTION...] -- VERB [ARGUMENT...]

Runs `recpod VERB ARGUMENT...` in several processes that train together: one batch, shared out. A process that crashes or
is killed is started again, with all others, from the newest checkpoint.

  --processes N|auto      on this node (default auto: one a GPU, one without any)
  --nodes N               how many nodes take part (default 1); every one runs this command
  --node-rank R           which of them this is, from 0; node 0 writes the run's folder
  --rendezvous HOST:PORT  where nodes meet: an address of node 0 and a free port
  --max-restarts N        starts again after so many crashes (default 3)
  --help                  this text

Leaves with the code of VERB: 0 done, 2 a mistake, 3 gate missed, 75 stopped and saved. 1: crashed once too often.
Example: entrypoints/launch.sh --processes 2 -- run quickstart
HELP
}

main() {
  local python="$VENV/bin/python"
  case "${1:-}" in
    --help | -h) usage && exit 0 ;;
  esac
  [[ -x "$python" ]] || python="${RECPOD_PYTHON:-python3}"
  export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
  exec "$python" -m pipelines.training.launcher "$@"
}

main "$@"
