"""The installer behind setup_env.sh. Standard library only: it runs before anything is installed."""
