"""The doctor: examines environment and machine, and says what to do. ./setup_env.sh --check runs it."""
