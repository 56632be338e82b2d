"""The run watcher: `python -m common.watcher` beside a run, started by the supervisor. See docs/watch.md."""
