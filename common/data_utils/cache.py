"""What makes two conversions the same: the content of the sources, the options, and this converter's code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.data_utils.atomic import write_text
from common.data_utils.sources import Resolved

_BLOCK = 4 << 20
_NOT_CONVERTING = ("report.py", "show.py", "svg.py", "terminal.py", "cli.py")


def converter_version() -> str:
    """Hash of the code that decides what an output holds, so that a change of it never meets an old cache."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.name not in _NOT_CONVERTING:
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@dataclass
class Digests:
    """Content hashes, remembered by (path, size, mtime in ns, inode) so that big files are read once.

    `save` writes what was learnt; nothing is written before.
    """

    folder: Path
    _learnt: dict[Path, str] = field(default_factory=dict)

    def of(self, path: Path) -> str:
        """The content hash of a file."""
        stat = path.stat()
        stamp = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino]
        name = hashlib.sha256(stamp[0].encode()).hexdigest()[:24]  # type: ignore[attr-defined]
        memo = self.folder / "digests" / f"{name}.json"
        try:
            kept = json.loads(memo.read_text(encoding="utf-8"))
            if kept["stamp"] == stamp:
                return str(kept["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # absent or unreadable: the content decides
        digest = file_digest(path)
        self._learnt[memo] = json.dumps({"stamp": stamp, "sha256": digest})
        return digest

    def save(self) -> None:
        """Remember the hashes of this run."""
        for memo, text in self._learnt.items():
            memo.parent.mkdir(parents=True, exist_ok=True)
            write_text(memo, text)


def cache_key(sources: Sequence[Resolved], digests: Digests, settings: dict[str, Any]) -> str:
    """Name of the cache entry. File names count because data_source defaults to them; folders do not."""
    files = [
        [Path(source.name).name, [[item.path.name, digests.of(item.path)] for item in source.files]]
        for source in sources
    ]
    text = json.dumps([converter_version(), files, settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]
