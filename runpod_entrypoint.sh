#!/usr/bin/env bash
# The front door: see --help.
exec "$(dirname "${BASH_SOURCE[0]}")/entrypoints/runpod.sh" "$@"
