#!/usr/bin/env bash
# Builds an image from this checkout. See --help.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
# shellcheck source-path=SCRIPTDIR source=versions.env
source "$ROOT/docker/versions.env"

usage() {
  cat <<'HELP'
Usage: docker/build.sh [OPTION...] [-- DOCKER BUILD OPTION...]

Builds the image recpod:TARGET with the pins of docker/versions.env and this checkout's commit in its labels.

  --target NAME     cpu (default) or cuda
  --tag NAME        name of the image (default recpod:TARGET); may be given several times
  --base IMAGE      a Debian or Ubuntu image in the place of the pinned base
  --kernels HOW     mamba-ssm and causal-conv1d in the cuda image: none (default; the Triton kernels do the same work),
                    prebuilt (checked sums, Python 3.12) or source (compiled with nvcc, long)
  --ca FILE         certificate that the network's proxy signs with; may be given several times
  --wheels FOLDER   wheels to take before any index is asked; may be given several times
  --pip-settings    --ca and --wheels as pip is configured on this machine (cert, find-links)
  --dry-run         say what would be called, and call nothing
  --help            this text

After --: options of `docker build`, such as --no-cache or --network host. Certificates and wheels are in no layer of the image.
HELP
}

main() {
  TARGET=cpu BASE="" KERNELS=none DRY=no TAGS=() CERTIFICATES=() WHEELS=() OPTIONS=()
  while (($#)); do parse "$@" && shift "$TAKEN"; done
  [[ "$TARGET" =~ ^(cpu|cuda)$ ]] || die "--target $TARGET: cpu or cuda"
  [[ "$KERNELS" =~ ^(none|prebuilt|source)$ ]] || die "--kernels $KERNELS: none, prebuilt or source"
  ((${#TAGS[@]})) || TAGS=(--tag "recpod:$TARGET")
  CONTEXT="$(mktemp -d "${TMPDIR:-/tmp}/recpod-build.XXXXXX")"
  trap 'rm -rf "$CONTEXT"' EXIT
  fill_context
  build_arguments
  local command=(docker build --target "$TARGET" "${TAGS[@]}" "${ARGUMENTS[@]}" "${OPTIONS[@]}" "$CONTEXT")
  if [[ "$DRY" == yes ]]; then printf '%s\n' "${command[@]}" && return; fi
  command -v docker >/dev/null || die "there is no docker on PATH"
  # A client without buildx cannot use BuildKit; one that has it uses it unless told otherwise.
  docker buildx version >/dev/null 2>&1 || export DOCKER_BUILDKIT="${DOCKER_BUILDKIT:-0}"
  "${command[@]}"
}

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

parse() { # reads the first option; TAKEN: how many words it was
  TAKEN=2
  case "$1" in
    --target | --tag | --base | --kernels | --ca | --wheels) (($# > 1)) || die "$1 needs a value" ;;&
    --target) TARGET="$2" ;;
    --tag) TAGS+=(--tag "$2") ;;
    --base) BASE="$2" ;;
    --kernels) KERNELS="$2" ;;
    --ca) CERTIFICATES+=("$2") ;;
    --wheels) WHEELS+=("$2") ;;
    --pip-settings) ask_pip && TAKEN=1 ;;
    --dry-run) DRY=yes TAKEN=1 ;;
    --help | -h) usage && exit 0 ;;
    --) OPTIONS=("${@:2}") TAKEN=$# ;;
    *) die "unknown option '$1': see docker/build.sh --help" ;;
  esac
}

ask_pip() {
  local certificate folder
  certificate="$(pip_setting cert)"
  certificate="${certificate:-${REQUESTS_CA_BUNDLE:-}}"
  [[ -z "$certificate" ]] || CERTIFICATES+=("$certificate")
  while IFS= read -r folder; do
    folder="${folder#file://}"
    if [[ -d "$folder" ]]; then WHEELS+=("$folder"); fi
  done < <(pip_setting find-links | tr -s '[:space:]' '\n')
}

pip_setting() { # the environment's word is the last one, as for pip
  local name="PIP_${1^^}"
  name="${name//-/_}"
  if [[ -n "${!name:-}" ]]; then echo "${!name}" && return; fi
  python3 -m pip config get "install.$1" 2>/dev/null || python3 -m pip config get "global.$1" 2>/dev/null || true
}

# A copy, so that certificates and wheels need not lie in the checkout, and with the other target cut out of the Dockerfile:
# the classic builder would make it too.
fill_context() {
  local file folder
  (cd "$ROOT" && cp -a --parents .dockerignore configs docker entrypoints models pipelines pyproject.toml \
    runpod_entrypoint.sh "$CONTEXT")
  for file in "${CERTIFICATES[@]}"; do
    [[ -r "$file" ]] || die "--ca $file: no such file"
    cp "$file" "$CONTEXT/docker/extras/$(basename "${file%.*}").crt"
  done
  for folder in "${WHEELS[@]}"; do
    [[ -d "$folder" ]] || die "--wheels $folder: no such folder"
    find "$folder" -maxdepth 1 -name '*.whl' -exec cp {} "$CONTEXT/docker/extras" \;
  done
  if [[ "$TARGET" == cpu ]]; then
    sed '/^# --- cuda ---$/,$d' "$ROOT/Dockerfile"
  else
    sed '/^# --- cpu ---$/,/^# --- cuda ---$/d' "$ROOT/Dockerfile"
  fi >"$CONTEXT/Dockerfile"
}

build_arguments() {
  local pinned="$BASE_IMAGE_CPU" commit
  [[ "$TARGET" == cpu ]] || pinned="$BASE_IMAGE_CUDA"
  commit="$(git -C "$ROOT" rev-parse HEAD 2>/dev/null)" || commit="${RECPOD_COMMIT:-unknown}"
  [[ -z "$(git -C "$ROOT" status --porcelain --untracked-files=no 2>/dev/null)" ]] || commit+=-dirty
  ARGUMENTS=(--build-arg "CPU_BASE_IMAGE=$BASE_IMAGE_CPU" --build-arg "COMMIT=$commit" --build-arg "VERSION=$(version)")
  ARGUMENTS+=(--build-arg "BASE_NAME=${BASE:-$pinned}" --build-arg "PINS=$(pins)")
  [[ -z "$BASE" ]] || ARGUMENTS+=(--build-arg "BASE_IMAGE=$BASE")
  if [[ "$TARGET" == cuda ]]; then
    ARGUMENTS+=(--build-arg "CUDA_BASE_IMAGE=$BASE_IMAGE_CUDA" --build-arg "KERNELS=$KERNELS")
    if [[ "$KERNELS" == source ]]; then ARGUMENTS+=(--build-arg "CUDA_WHEELS_IMAGE=${BASE:-$BASE_IMAGE_CUDA_DEVEL}"); fi
  fi
}

version() {
  sed -n 's/^version = "\(.*\)"$/\1/p' "$ROOT/pyproject.toml"
}

# Name and version of every package in the image, as one line.
pins() {
  local locks=("$ROOT/docker/locks/image.txt")
  if [[ "$TARGET" == cpu ]]; then
    locks+=("$ROOT"/docker/locks/{torch-cpu,cpu}.txt)
  else
    locks+=("$ROOT/docker/locks/cuda.txt")
  fi
  sed -n 's/^\([a-z0-9-]*==[^ ;]*\).*/\1/p' "${locks[@]}" | sort | tr '\n' ' ' | sed 's/ $//'
}

main "$@"
