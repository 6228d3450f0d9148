#!/usr/bin/env bash
# In the Dockerfile's wheels stages: makes the environment VENV of a KIND (cpu, cuda) from the locks, for code that will lie
# at CODE. From the environment: KERNELS (cuda only: prebuilt, source or none).
set -euo pipefail

HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
LOCKS="$HERE/locks" EXTRAS="$HERE/extras"
# shellcheck source-path=SCRIPTDIR source=versions.env
source "$HERE/versions.env"

main() {
  local kind="$1" code="$3"
  VENV="$2"
  check_python
  trust_extra_certificates
  python3 -m venv "$VENV"
  "install_$kind"
  locked -r "$LOCKS/image.txt"
  put_code_on_path "$code"
  bash "$HERE/prune.sh" "$kind" "$VENV"
}

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

check_python() {
  python3 - "$PYTHON_MIN" "$PYTHON_MAX" <<'PYTHON' || die "this base has $(python3 --version): the locks are for $PYTHON_MIN to $PYTHON_MAX"
import sys
low, high = (tuple(map(int, text.split("."))) for text in sys.argv[1:])
sys.exit(not low <= sys.version_info[:2] <= high)
PYTHON
}

# A proxy that opens TLS signs with a certificate of its own: pip must trust it as well as the public ones.
trust_extra_certificates() {
  local found=("$EXTRAS"/*.crt) bundle=/tmp/certificates.pem
  [[ -e "${found[0]}" ]] || return 0
  python3 -c 'import pip._vendor.certifi as c; print(open(c.where()).read())' >"$bundle" 2>/dev/null ||
    cat /etc/ssl/certs/ca-certificates.crt >"$bundle"
  cat "${found[@]}" >>"$bundle"
  export PIP_CERT="$bundle" SSL_CERT_FILE="$bundle"
}

locked() {
  "$VENV/bin/python" -m pip install --no-input --disable-pip-version-check --no-cache-dir --quiet --no-deps \
    --require-hashes --only-binary=:all: --find-links "$EXTRAS" "$@"
}

install_cpu() {
  # The wheel in docker/extras, else the CPU index; never the default index, where this version is a CUDA build.
  locked --no-index -r "$LOCKS/torch-cpu.txt" 2>/dev/null ||
    locked --index-url "$TORCH_CPU_INDEX" -r "$LOCKS/torch-cpu.txt" ||
    die "torch $TORCH (CPU build) is neither in docker/extras nor to be had from $TORCH_CPU_INDEX: docker/build.sh --wheels DIR"
  locked -r "$LOCKS/cpu.txt"
}

install_cuda() {
  locked -r "$LOCKS/cuda.txt"
  case "${KERNELS:-none}" in
    none) ;;
    prebuilt) install_prebuilt_kernels ;;
    source) build_kernels ;;
    *) die "KERNELS=$KERNELS: prebuilt, source or none" ;;
  esac
}

install_prebuilt_kernels() {
  python3 -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' ||
    die "KERNELS=prebuilt: the pinned wheels are for Python 3.12, this base has $(python3 --version); take none or source"
  prebuilt mamba-ssm "$KERNEL_WHEEL_MAMBA_SSM" "$KERNEL_WHEEL_MAMBA_SSM_SHA256"
  prebuilt causal-conv1d "$KERNEL_WHEEL_CAUSAL_CONV1D" "$KERNEL_WHEEL_CAUSAL_CONV1D_SHA256"
}

prebuilt() { # NAME URL SHA256; a file of that name in docker/extras stands in for the address
  local url="${2//+/%2B}"
  local file="$EXTRAS/${2##*/}"
  if [[ -e "$file" ]]; then url="file://${file//+/%2B}"; fi
  locked -r <(echo "$1 @ $url --hash=sha256:$3")
}

build_kernels() {
  command -v nvcc >/dev/null || die "KERNELS=source needs nvcc: --build-arg CUDA_WHEELS_IMAGE=$BASE_IMAGE_CUDA_DEVEL"
  # Without KEEP the first Mamba's scan, the one that is wanted, is left out.
  TORCH_CUDA_ARCH_LIST="${KERNEL_CAPABILITIES//,/ }" MAMBA_KEEP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE \
    CAUSAL_CONV1D_FORCE_BUILD=TRUE "$VENV/bin/python" -m pip install --no-input --no-cache-dir --no-deps \
    --require-hashes --no-build-isolation --no-binary=:all: -r "$LOCKS/cuda-kernels.txt"
}

put_code_on_path() {
  local packages
  packages="$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  echo "$1" >"$packages/recpod.pth"
  printf '#!%s\nfrom pipelines.cli import main\n\nmain()\n' "$VENV/bin/python" >"$VENV/bin/recpod"
  chmod 755 "$VENV/bin/recpod"
}

main "$@"
