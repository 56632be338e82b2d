#!/usr/bin/env bash
# Writes requirements/lock-*.txt anew: every package of every set, pinned, for Linux and Python 3.10 to 3.12.
# Run it after a change to requirements*.txt, then run the tests. Pins that still fit are kept; --upgrade moves
# them all to their newest version. Needs uv (./setup_env.sh puts it into the environment) and the package index.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"

lock() {
  local name="$1"
  shift
  echo "lock-${name}.txt"
  # No index address in the output: what is pinned is a version, wherever the user's mirror is.
  uv pip compile --quiet --universal --python-version 3.10 --no-emit-index-url --no-annotate \
    --custom-compile-command "requirements/lock.sh" --output-file "lock-${name}.txt" "$@"
}

lock gpu-vllm ../requirements.txt --excludes excludes.txt "$@"
lock gpu-sglang gpu-sglang.txt --excludes excludes.txt --excludes excludes-gpu-sglang.txt \
  --override overrides-gpu-sglang.txt "$@"
lock cpu ../requirements-cpu.txt --excludes excludes.txt --excludes excludes-cpu.txt --override overrides-cpu.txt "$@"
# The development tools go on top of any set, so they are resolved within the pins of the sets.
lock dev ../requirements-dev.txt --constraint lock-cpu.txt --constraint lock-gpu-vllm.txt "$@"
