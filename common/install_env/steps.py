"""Runs one step at a time: output to the log; a failure names the step, the log and the likely fix."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from common.install_env.fixes import likely_fix
from common.install_env.options import SetupError
from common.install_env.pip_config import redact


class Log:
    """The log of one run, under outputs/logs/setup/, else in the environment or the temporary folder."""

    def __init__(self, folders: Sequence[Path]) -> None:
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
        for folder in (*folders, Path(tempfile.gettempdir())):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self.file: TextIO = (folder / name).open("w", encoding="utf-8")
            except OSError:
                continue
            self.path = folder / name
            return
        raise SetupError(
            "no folder to write a log in (tried outputs/logs/setup, the environment and /tmp): disk full?"
        )

    def write(self, text: str) -> None:
        """Add a line, passwords masked."""
        self.file.write(redact(text) + "\n")
        self.file.flush()


class Steps:
    """Runs commands as numbered steps."""

    def __init__(self, log: Log, total: int) -> None:
        self.log = log
        self.total = total
        self.number = 0

    def say(self, text: str) -> None:
        """Announce the next step."""
        self.number += 1
        print(f"[{self.number}/{self.total}] {text}", flush=True)
        self.log.write(f"== step {self.number}: {text}")
        self.title = text

    def run(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        """Run a command of the announced step; SetupError when it fails."""
        code, output = self.attempt(command, environ)
        if code != 0:
            raise self.failure(output, code)

    def attempt(self, command: Sequence[str], environ: Mapping[str, str]) -> tuple[int, str]:
        """Run a command that may fail: its exit code and output. Lines of progress are shown as well."""
        self.log.write(f"$ {shlex.join(command)}")
        lines: list[str] = []
        try:
            process = subprocess.Popen(
                command,
                env=dict(environ),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        except OSError as error:
            self.log.write(str(error))
            return 127, str(error)
        with process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    lines.append(line.rstrip("\n"))
                    self.log.write(lines[-1])
                    if _tells_of_progress(line):
                        print(f"      {redact(lines[-1].strip())}", flush=True)
            except BaseException:
                process.terminate()
                raise
        return process.returncode, "\n".join(lines)

    def failure(self, output: str, code: int) -> SetupError:
        """The error for the announced step, with the likely fix read off its output."""
        said = [redact(line.strip()) for line in output.splitlines() if line.strip()]
        last = next(
            (line for line in said if re.match(r"error|fatal", line, re.IGNORECASE)), said[-1] if said else ""
        )
        fix = likely_fix(output) or "see the end of the log"
        lines = [
            f"step {self.number} ({self.title}) failed with code {code}: {last[:300]}",
            f"  log: {self.log.path}",
        ]
        lines.append(f"  fix: {fix}; then run ./setup_env.sh again, it goes on from there")
        return SetupError("\n".join(lines))


def _tells_of_progress(line: str) -> bool:
    """Whether a line of uv's output is worth the terminal: big downloads, compilations, the totals."""
    size = re.match(r"\s*Downloading .*\((\d+)\.\d+(MiB|GiB)\)", line)
    if size:
        return size.group(2) == "GiB" or int(size.group(1)) >= 50
    return re.match(r"\s*(Building|Built|Prepared|Installed|Uninstalled|Bytecode)\b", line) is not None
