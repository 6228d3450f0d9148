#!/usr/bin/env bash
# Lint, types and tests, in the environment that setup.sh makes. See --help.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'HELP'
Usage: entrypoints/test.sh [--no-lint] [PYTEST ARGUMENT...]

Sets the environment up, then runs ruff, shellcheck, mypy and pytest; the first that fails ends it. What follows goes to
pytest: a path, -k NAME, -m 'not slow', -x.

  --no-lint  go straight to pytest
  --help     this text
HELP
}

main() {
  local lint=yes
  case "${1:-}" in
    --help | -h) usage && exit 0 ;;
    --no-lint) lint=no && shift ;;
  esac
  # OpenMP's waiting threads would spin and take the cores from each other.
  export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
  "$ROOT/entrypoints/setup.sh" --hstu --test
  cd "$ROOT"
  if [[ "$lint" == yes ]]; then run_lint; fi
  exec "$VENV/bin/python" -m pytest "$@"
}

run_lint() {
  "$VENV/bin/ruff" check .
  "$VENV/bin/ruff" format --check --quiet . || die "not formatted: run $VENV/bin/ruff format"
  "$VENV/bin/shellcheck" --external-sources runpod_entrypoint.sh entrypoints/*.sh docker/*.sh tests/containers/*.sh .ci/run
  "$VENV/bin/mypy"
}

main "$@"
