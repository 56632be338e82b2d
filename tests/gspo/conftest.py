"""The launcher's fixture: a real train.sh with a recording interpreter on its way to verl."""

from __future__ import annotations

import sys
from pathlib import Path

# This folder cannot be a package (its name is the method's), so the launcher's tests are found by path.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from launcher.conftest import launch  # noqa: F401
