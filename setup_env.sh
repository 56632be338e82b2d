#!/usr/bin/env bash
# Makes or completes the Python environment of this repository: see --help. The work is in common/install_env.py;
# this script finds a Python that can run it.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: ./setup_env.sh [--gpu|--cpu] [--engine vllm|sglang] [--dev]
       ./setup_env.sh --check [--json]

Installs the pinned packages into the active virtualenv or conda environment, or into .venv here when none is
active. Asks nothing, and does nothing when everything is in place.

  --gpu, --cpu      which set to install; default: what the environment already holds, else --gpu when nvidia-smi
                    shows a GPU
  --engine NAME     rollout engine of the GPU set: vllm (default) or sglang
  --dev             add the test, lint and benchmark tools
  --check           install nothing: examine the machine and the environment, and say what to do (--json: as JSON)
  --help            this text

Environment variables:
  UV_DEFAULT_INDEX, HTTPS_PROXY, SSL_CERT_FILE   package mirror, proxy, certificates; pip's own settings
                    (pip config, PIP_INDEX_URL ...) are taken over when these are not set
  UV_CACHE_DIR      where downloads are kept (default ~/.cache/uv)
  FLASH_ATTN        auto (default): install it when that is possible; off: leave it out
  FLASH_ATTN_INDEX  package index with prebuilt flash-attn wheels (default https://wheels.astral.sh/simple/cu130/)
EOF
}

# Succeeds when the program named is a Python >= 3.10, < 3.13 that runs.
python_fits() {
  "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))' >/dev/null 2>&1
}

# Prints the first fitting Python on PATH.
find_python() {
  local name
  for name in python3.12 python3.11 python3.10 python3 python; do
    # A name on PATH may still not run (pyenv's shims do that), hence the trial.
    if type -P "$name" >/dev/null && python_fits "$name"; then
      type -P "$name"
      return 0
    fi
  done
  return 1
}

main() {
  local argument python prefix check=""
  for argument in "$@"; do
    case "$argument" in
      -h | --help)
        usage
        return 0
        ;;
      --check) check=1 ;;
    esac
  done

  local root
  root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
  cd "$root"
  # shellcheck source=common/env.sh
  source "$root/common/env.sh"
  prefix="${VIRTUAL_ENV:-${CONDA_PREFIX:-$root/.venv}}"
  if [[ -n "$check" ]]; then
    prefix="$(env::prefix "$root")" # the one that the other scripts would use
  fi

  if [[ -x "$prefix/bin/python" ]] && python_fits "$prefix/bin/python"; then
    python="$prefix/bin/python"
  elif ! python="$(find_python)"; then
    echo "error: no Python >= 3.10, < 3.13 on PATH (python3 is $(python3 --version 2>&1 || echo missing));" \
      "install one, for example: sudo apt install python3.11 python3.11-venv, or conda create -n verl python=3.11" >&2
    return 1
  fi

  if [[ -n "$check" ]]; then
    local -a rest=()
    for argument in "$@"; do
      [[ "$argument" == --check ]] || rest+=("$argument")
    done
    exec "$python" -m common.check_env "${rest[@]+"${rest[@]}"}"
  fi
  exec "$python" -m common.install_env --digest "$(env::digest "$root")" --prefix "$prefix" "$@"
}

main "$@"
