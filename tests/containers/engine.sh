#!/usr/bin/env bash
# A container engine for the tests on a Debian machine. See --help.
set -euo pipefail

STATE="${RECPOD_ENGINE:-/var/lib/recpod-engine}"
SOCKET="unix://$STATE/docker.sock"
BASE=localhost/base:bookworm

usage() {
  cat <<'HELP'
Usage: tests/containers/engine.sh start|stop

start  prints the address of a container engine for DOCKER_HOST: the one that answers already, else one of its own, beside
       anything else on the machine and without a network of its own (containers take --network host or none). Brings
       Debian's docker.io and debootstrap where they are missing, and makes the image localhost/base:bookworm, Debian 12
       with Python 3.11, from the machine's own Debian source. Root only.
stop   ends the engine that start began, if it did, and removes what it kept.

Environment: RECPOD_ENGINE, the folder of its state (default /var/lib/recpod-engine).
HELP
}

main() {
  case "${1:-}" in
    start) start ;;
    stop) stop ;;
    *) usage && [[ "${1:-}" == --help ]] ;;
  esac
}

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

start() {
  local address="${DOCKER_HOST:-unix:///var/run/docker.sock}"
  if ! answers "$address"; then
    address="$SOCKET"
    answers "$address" || begin
  fi
  DOCKER_HOST="$address" has_base || DOCKER_HOST="$address" make_base >&2
  echo "$address"
}

answers() {
  command -v docker >/dev/null && DOCKER_HOST="$1" timeout 20 docker info >/dev/null 2>&1
}

begin() {
  local attempt
  ((EUID == 0)) || die "no container engine answers, and only root can start one"
  bring dockerd docker.io
  mkdir -p "$STATE"
  dockerd --bridge=none --iptables=false --host "$SOCKET" --data-root "$STATE/data" --exec-root "$STATE/run" \
    --pidfile "$STATE/pid" >"$STATE/log" 2>&1 </dev/null &
  for attempt in {1..120}; do
    if answers "$SOCKET"; then return; fi
    kill -0 $! 2>/dev/null || break
    sleep 0.5
  done
  tail -5 "$STATE/log" >&2
  die "the container engine does not start (attempt $attempt): its last lines are above, the rest is in $STATE/log"
}

bring() { # COMMAND PACKAGE
  if command -v "$1" >/dev/null; then return; fi
  command -v apt-get >/dev/null || die "$1 is missing and there is no apt-get to bring it"
  apt-get update >&2
  DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "$2" >&2
}

has_base() {
  docker image inspect "$BASE" >/dev/null 2>&1
}

make_base() {
  local root mirror
  ((EUID == 0)) || die "only root can make $BASE"
  bring debootstrap debootstrap
  root="$(mktemp -d "${TMPDIR:-/tmp}/recpod-base.XXXXXX")"
  # shellcheck disable=SC2064  # the folder is known now and forgotten at the end
  trap "rm -rf '$root'" EXIT
  mirror="$(debian_source)"
  debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates bookworm "$root" \
    ${mirror:+"$mirror"} || die "debootstrap failed: see above"
  rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
  tar -C "$root" -c . | docker import - "$BASE"
}

# The address that this machine takes Debian from; nothing where it names none: debootstrap has one of its own.
debian_source() {
  local found
  found="$(find /etc/apt \( -name '*.list' -o -name '*.sources' \) -exec grep -hE '^(deb |URIs:)' {} + |
    grep -oE 'https?://[^ ]+' | grep -v security | sort -u)" || found=""
  echo "${found%%$'\n'*}"
}

stop() {
  local pid attempt
  [[ -r "$STATE/pid" ]] || return 0
  pid="$(<"$STATE/pid")"
  kill "$pid" 2>/dev/null || true
  for attempt in {1..60}; do
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.5
  done
  ((attempt < 60)) || die "the container engine (process $pid) does not end"
  release_mounts
  rm -rf "$STATE"
}

# An engine that ends leaves the mount of its network name space (run/netns/default) behind; a folder with a mount in it
# cannot be removed.
release_mounts() {
  local folder
  while read -r folder; do umount --lazy "$folder"; done < \
    <(awk -v under="$(readlink -f "$STATE")/" 'index($5, under) == 1 { print $5 }' /proc/self/mountinfo | sort -r)
}

main "$@"
