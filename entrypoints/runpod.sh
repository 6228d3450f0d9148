#!/usr/bin/env bash
# From nothing to a gated result: finds a Python and hands over to `python -m pipelines.pod`, which checks, sets up and trains.
# See --help.
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
  --engine NAME          recpod, or recbole: train a model of RecBole's on the same data (its name: engine.model)

Options:
  --set KEY=VALUE        change one value of the configuration, such as training.epochs=5; may be given several times
  --debug                watch gradients and activations, dump the step that fails; never shortens a run
  --no-wandb             do not track with W&B
  --resume auto|never|PATH  go on from the newest checkpoint (auto), set the earlier run aside (never), or a checkpoint
  --max-hours H          stop, saved, after so many hours (all resumes together; in a pod from the pod's start)
  --max-cost USD         stop, saved, when the run has cost so much, the pod's time before it included; needs the price
  --price-per-hour USD   what the machine costs
  --force                run although the recipe before has not passed its gate
  --dry-run              say what would run, and run nothing (the environment is set up if it is not yet)
  --no-setup             use the current Python as it is, install nothing
  --help                 this text

On a rented machine:
  --stop-pod-when-done   stop the pod at the end, whatever the end, unless SIGTERM or Ctrl-C was the end
  --webhook URL          tell Discord, Slack or another address: start, gate, failure, spend, idleness, stop. Every user of
                         the machine sees a command line: better put the address into a file, RECPOD_WEBHOOK_FILE
  --idle-minutes N       end a run in which nothing moves for so long; 0: never. Default: 15 in a container or pod, else 0

Several processes or machines:
  --processes N|auto     processes on this machine; auto: one a GPU
  --nodes N              machines that train together
  --node-rank R          this machine's number, from 0
  --rendezvous HOST:PORT where the first machine can be reached
  --max-restarts N       how often processes that crashed are started anew

Environment: RECPOD_VOLUME (a folder: runs/ and data/ go there), RECPOD_PRICE_PER_HOUR, RECPOD_ENV_ALLOW (NAME,PREFIX_*:
what training may see beyond the usual), RECPOD_STOP_COMMAND (how another cloud's machine is stopped), RECPOD_GRACE_SECONDS
(from a signal to the kill; 7 in a container), RECPOD_MIN_FREE_GB. Secrets, each as NAME, as a file in NAME_FILE or as a file
of /run/secrets named in lower case: WANDB_API_KEY, MLFLOW_TRACKING_PASSWORD, MLFLOW_TRACKING_TOKEN, RUNPOD_API_KEY,
RECPOD_WEBHOOK.

Leaves with 0: done, gate passed. 2: a mistake, in one line. 3: gate missed. 75: stopped and saved; start it again to go on.
HELP
}

main() {
  local argument python setup=yes
  for argument in "$@"; do
    case "$argument" in
      --help | -h) usage && exit 0 ;;
      --no-setup) setup=no ;;
    esac
  done
  if [[ "$setup" == no ]]; then python="$(current_python)"; else python="$(any_python)"; fi || pod_stays "$@"
  export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" RECPOD_VENV="$VENV"
  exec "$python" -m pipelines.pod "$@"
}

# The interpreter that stands first on PATH, if it is a supported one.
current_python() {
  local python="${RECPOD_PYTHON:-python3}" found
  found="$(probe_python "$python")" || found=""
  [[ -n "$found" ]] || die "--no-setup: $python is not Python $PYTHON_MIN to $PYTHON_MAX: leave --no-setup away, or set RECPOD_PYTHON"
  echo "$python"
}

# For what comes before the set-up: the environment's Python where there is one, which saves the search.
any_python() {
  if "$VENV/bin/python" -c '' 2>/dev/null; then echo "$VENV/bin/python"; else pick_python; fi
}

main "$@"
