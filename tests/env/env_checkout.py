"""A copy of the repository's setup in a folder with a space in its name, and a PATH on which uv is a fake.

Real are: setup_env.sh, the installer, the virtualenv, the doctor and its processes. Only the packages are
stand-ins.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import packaging

REPO = Path(__file__).resolve().parents[2]
FILES = ("setup_env.sh", "requirements.txt", "requirements-cpu.txt", "requirements-dev.txt", "requirements")
FILES += ("common/__init__.py", "common/env.sh", "common/system.py", "common/check_env", "common/install_env")
TOOLS = ("bash", "cat", "cp", "cksum", "dirname", "python3", "env", "sh", "sleep")


@dataclass
class Checkout:
    """A copy of the setup and the environment variables it is run with."""

    root: Path
    bin: Path
    environ: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run setup_env.sh."""
        return self.call([str(self.root / "setup_env.sh"), *arguments], **environ)

    def shell(self, script: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a few lines of bash with common/env.sh sourced."""
        script = f"set -euo pipefail; source {shlex.quote(str(self.root / 'common/env.sh'))}; {script}"
        return self.call(["bash", "-c", script], **environ)

    def call(self, command: list[str], **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env={**self.environ, **environ}, capture_output=True, text=True, timeout=120, check=False
        )

    def program(self, name: str, script: str) -> None:
        """Put a program on PATH."""
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    @property
    def uv_calls(self) -> list[list[str]]:
        """What uv was called with, --version left out."""
        record = Path(self.environ["FAKE_UV_RECORD"])
        return [line.split("\t") for line in record.read_text().splitlines()] if record.exists() else []


def make_checkout(folder: Path) -> Checkout:
    root = folder / "a repo"
    for name in FILES:
        source = REPO / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, root / name)
    programs = folder / "bin"
    programs.mkdir()
    for name in TOOLS:
        where = shutil.which(name, path="/usr/local/bin:/usr/bin:/bin")
        assert where, name
        if name != "python3":
            (programs / name).symlink_to(where)
    checkout = Checkout(
        root,
        programs,
        {
            "PATH": str(programs),
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "CUDA_HOME": str(folder / "no cuda"),
            "FAKE_UV_RECORD": str(folder / "uv.calls"),
            "FAKE_UV_PACKAGING": str(Path(packaging.__file__).parent),
        },
    )
    # The Python on this PATH is the real one behind a wrapper whose `-m venv` leaves pip out (it is slow) and
    # adds the fake uv; `exec -a` makes the wrapper sys.executable, which is what the installer starts.
    real = shlex.quote(str(Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"))
    checkout.program(
        f"python3.{sys.version_info.minor}",
        f"""if [[ "$1 $2" == "-m venv" ]]; then
  {real} -m venv --without-pip "${{@:3}}" && cp {shlex.quote(str(programs / "uv"))} "${{@: -1}}/bin/uv"
else
  exec -a "$0" {real} "$@"
fi""",
    )
    fake = Path(__file__).with_name("fake_uv.py")
    checkout.program(
        "uv",
        f'exec {real} {shlex.quote(str(fake))} {shlex.quote(str(root))} "$@"',
    )
    return checkout
