#!/usr/bin/env bash
# The one test command. On a fresh machine it makes the environment first.
#
#   tests/run.sh           lint, types, unit tests, launcher tests, real CPU training runs  (about 45 minutes; up to twice that on a slow machine)
#   tests/run.sh --fast    lint, types and the quick tests                                  (over 2 minutes)
#   tests/run.sh --ci      the default set and today's part of the long matrix
#   tests/run.sh --all     everything: every algorithm, three seeds                         (about two hours)
#   tests/run.sh PATH ...  only these tests, with their markers as they are
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
# shellcheck source=common/env.sh
source common/env.sh

# Prints a headline, so that a log can be read.
step() {
  printf '\n=== %s (%(%H:%M:%S)T)\n' "$1" -1
}

# Shell: shellcheck at style level and shfmt. Python: ruff and mypy.
lint() {
  local scripts=() bin="${PYTHON%/*}"
  mapfile -t scripts < <(git ls-files --cached --others --exclude-standard -- '*.sh' .ci/run)
  step "lint: ${#scripts[@]} shell scripts, Python"
  "$bin/shellcheck" -x --severity=style "${scripts[@]}"
  "$bin/shfmt" -i 2 -ci -d "${scripts[@]}"
  "$PYTHON" -m ruff check
  "$PYTHON" -m ruff format --check
  step "types"
  "$PYTHON" -m mypy
}

# Installs a Debian package that tests drive: Chromium for the monitor, LibreOffice for Excel files.
# Arguments: the program, the package
ensure_program() {
  type -P "$1" >/dev/null && return 0
  if [[ "$(id -u)" == 0 ]] && type -P apt-get >/dev/null; then
    step "installing $2"
    apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y "$2" \
      >/dev/null && return 0
  fi
  echo "error: the tests need $1: sudo apt-get install $2" >&2
  return 2
}

# Quick and slow tests side by side on both cores; training runs one after another, each with both.
quick_tests() {
  step "quick tests"
  OMP_NUM_THREADS=1 "$PYTHON" -m pytest -q -n 2 --dist loadfile -m "not slow and not e2e and not browser" tests
}

long_tests() {
  ensure_program soffice libreoffice-calc-nogui
  ensure_program chromium chromium
  step "slow tests"
  OMP_NUM_THREADS=1 "$PYTHON" -m pytest -q -n 2 --dist loadfile --durations=15 \
    -m "slow and not e2e and not browser" tests
  step "browser tests"
  "$PYTHON" -m pytest -q -m "browser and not e2e" tests
  step "real training runs"
  "$PYTHON" -m pytest -q --durations=25 -m "$1" tests
}

main() {
  env::ensure --dev
  case "${1:-}" in
    --fast)
      lint
      quick_tests
      ;;
    "")
      lint
      quick_tests
      long_tests "e2e and not matrix"
      ;;
    --ci)
      export VERL_TRAINING_MATRIX=today
      lint
      quick_tests
      long_tests "e2e"
      ;;
    --all)
      lint
      quick_tests
      long_tests "e2e"
      ;;
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' tests/run.sh ;;
    --*)
      echo "error: unknown flag $1 (tests/run.sh --help)" >&2
      return 2
      ;;
    *) "$PYTHON" -m pytest "$@" ;;
  esac
}

main "$@"
