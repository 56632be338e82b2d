#!/bin/sh
# Behaves like the Python named in the environment, for those who take a program's path: see fork_client.py.
exec "$VERL_TRAINING_FORK_PYTHON" -S -E "${0%/*}/fork_client.py" "${VERL_TRAINING_FORK_SOCKET:-}" \
  "$VERL_TRAINING_FORK_PYTHON" "$@"
