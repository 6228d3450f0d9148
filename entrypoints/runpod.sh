#!/usr/bin/env bash
# From nothing to a gated result: sets the environment up and hands over to `python -m pipelines runbook`. See --help.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'HELP'
Usage: ./runpod_entrypoint.sh [RECIPE] [OPTION...]

Sets up the environment, checks the machine, brings the data, trains, evaluates by full ranking, applies the recipe's gate and
writes runs/NAME/report.html. The same command again goes on where the last one stopped.

Recipe (one of; without any: --quickstart):
  --quickstart           SS4Rec on MovieLens-100K, which ships inside a package: nothing is downloaded
  --test-ml1m            validation on MovieLens-1M, to convergence
  --test-ml20m           scale-up on MovieLens-20M
  --production           the production recipe; refuses to start before ML-20M's gate has passed
  --config FILE          a YAML file of this project, or of RecBole
  --model NAME           train this model (with a recipe: instead of the recipe's)
  --dataset NAME         train on this dataset, or interactions file (with a recipe: instead of the recipe's)

Options:
  --set KEY=VALUE        change one value of the configuration, such as training.epochs=5; may be given several times
  --debug                watch gradients and activations, dump the step that fails; never shortens a run
  --no-wandb             do not track with W&B
  --resume auto|never|PATH  go on from the newest checkpoint (auto), set the earlier run aside (never), or a checkpoint
  --max-hours H          stop, saved, after so many hours of training (all resumes together)
  --max-cost USD         stop, saved, when training has cost so much; needs --price-per-hour
  --price-per-hour USD   what the machine costs
  --force                run although the recipe before has not passed its gate
  --dry-run              say what would run, and run nothing
  --no-setup             use the current Python as it is, install nothing
  --help                 this text

Leaves with 0: done, gate passed. 2: a mistake, in one line. 3: gate missed. 75: stopped and saved; start it again to go on.
HELP
}

main() {
  local argument python setup=yes arguments=()
  for argument in "$@"; do
    case "$argument" in
      --help | -h) usage && exit 0 ;;
      --no-setup) setup=no ;;
      *) arguments+=("$argument") ;;
    esac
  done
  if [[ "$setup" == no ]]; then
    python="$(current_python)"
  else
    "$ROOT/entrypoints/setup.sh"
    python="$VENV/bin/python"
  fi
  export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
  exec "$python" -m pipelines runbook "${arguments[@]}"
}

# The interpreter that stands first on PATH, if it is a supported one with all packages.
current_python() {
  local python="${RECPOD_PYTHON:-python3}"
  [[ -n "$(probe_python "$python")" ]] || die "--no-setup: $python is not Python $PYTHON_MIN to $PYTHON_MAX: leave --no-setup away, or set RECPOD_PYTHON"
  PYTHONPATH="$ROOT" "$python" -m pipelines.machine || exit 2
  echo "$python"
}

main "$@"
