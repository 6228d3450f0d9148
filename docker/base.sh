#!/usr/bin/env bash
# In the Dockerfile: gives a Debian or Ubuntu base what the image needs of it and it does not have. KIND is cpu or cuda.
set -euo pipefail

main() {
  local packages=()
  python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3 python3-venv)
  # Triton compiles a few lines of C for each kernel when it first runs, against Python's headers.
  if [[ "$1" == cuda ]] && ! has_compiler; then packages+=(gcc libc6-dev python3-dev); fi
  ((${#packages[@]})) || return 0
  export DEBIAN_FRONTEND=noninteractive
  apt-get update
  apt-get install --yes --no-install-recommends "${packages[@]}"
  rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/apt /var/log/dpkg.log /var/cache/debconf
}

has_compiler() {
  command -v gcc >/dev/null && python3 -c 'import os, sysconfig as s, sys
sys.exit(not os.path.exists(os.path.join(s.get_paths()["include"], "Python.h")))' 2>/dev/null
}

main "$@"
