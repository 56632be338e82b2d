"""Puts tests/ on the path, where the tiny models are (an installed package is called `tests` too)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
