"""Bytes as people write and read them."""

from __future__ import annotations

import re

from common.launcher.errors import UserError

_UNITS = {"": 1 << 30, "G": 1 << 30, "M": 1 << 20, "T": 1 << 40}


def parse_size(text: str) -> int:
    """Bytes of `80GB`, `24GiB`, `80`, `46068MB`. GB counts 2**30, as a GPU's maker does.

    Raises:
        UserError: something else.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([GMT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    size = round(float(found.group(1)) * _UNITS[found.group(2).upper()]) if found else 0
    if size <= 0:
        raise UserError(f"--gpu-memory {text}: write a size such as 80GB")
    return size


def show_size(size: int) -> str:
    """Bytes as GiB or MiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
