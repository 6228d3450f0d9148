#!/usr/bin/env bash
# The SASRec family's train_distributed.sh: main_distributed in NUM_GPUS processes, with that script's sizes. See --help.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'HELP'
Usage: [NUM_GPUS=N] entrypoints/train_distributed.sh DATASET TRAIN_DIR [FLAG...]

Trains in NUM_GPUS processes that share each batch; without NUM_GPUS, one a GPU. A FLAG is one of main_distributed's
(python -m pipelines.compat.sasrec main_distributed --help) and replaces what is set here:

  --batch_size=512 --num_epochs=200 --lr=0.001 --num_heads=4 --num_blocks=3 --hidden_units=100 --maxlen=100
  --dropout_rate=0.2 --use_amp

  --help  this text

Leaves with 0 done, 2 a mistake, 75 stopped and saved: start it again. Results lie in DATASET_TRAIN_DIR/.
Example: NUM_GPUS=2 entrypoints/train_distributed.sh ml-1m mine --num_epochs=20
HELP
}

main() {
  local python="$VENV/bin/python" sizes
  case "${1:-}" in
    --help | -h) usage && exit 0 ;;
  esac
  if [[ $# -lt 2 || "$1" == -* || "$2" == -* ]]; then die "DATASET and TRAIN_DIR come first: see $0 --help"; fi
  sizes=(--batch_size=512 --num_epochs=200 --lr=0.001 --num_heads=4 --num_blocks=3)
  sizes+=(--hidden_units=100 --maxlen=100 --dropout_rate=0.2 --use_amp)
  [[ -x "$python" ]] || python="${RECPOD_PYTHON:-python3}"
  export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
  exec "$python" -m pipelines.compat.sasrec main_distributed --dataset="$1" --train_dir="$2" "${sizes[@]}" "${@:3}"
}

main "$@"
