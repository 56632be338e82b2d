"""Why a run ended badly, in plain words: `python -m common.failures CONSOLE_LOG`, or `explain_file(path)`."""

from common.failures.explain import Failure, explain, explain_file, explain_run

__all__ = ["Failure", "explain", "explain_file", "explain_run"]
