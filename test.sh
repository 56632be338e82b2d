#!/usr/bin/env bash
# Chat with any model or checkpoint, or score it on a file with the reward of its training.
#
#   ./test.sh --model_path last:grpo --single
#   ./test.sh --model_path last:grpo --batch --input_file test.json --output_file results.xlsx
#
# All flags: ./test.sh --help, explained in docs/evaluation.md.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=common/env.sh
source "$root/common/env.sh"
# shellcheck disable=SC2119 # env::ensure takes no arguments here
env::ensure
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" -m common.test_model "$@"
