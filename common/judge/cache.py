"""Judgements on disk: the same question, answer, judge and wording are paid for once. Holds replies, no keys."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

from common.cpu.model import cache_root

_BUSY_SECONDS = 30.0


def default_path() -> Path:
    """The cache that every run and the evaluator share."""
    return cache_root() / "judge" / "replies.sqlite3"


def content_key(*content: Any) -> str:
    """SHA-256 over everything that determines a reply."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


class Cache:
    """Replies by content key in one SQLite file that many processes may use at once.

    Writes are gathered until `flush`, so that a judgement does not wait for the disk. A file that cannot be used
    (full disk, broken) costs hits, never a run: it is said once on stderr.
    """

    def __init__(self, path: Path | None) -> None:
        self._pending: dict[str, str] = {}
        self._database: sqlite3.Connection | None = None
        self._told = False
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # No write-ahead log: it does not work on network file systems, where home folders often are.
            self._database = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
            self._database.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT)")
        except (OSError, sqlite3.Error) as error:
            self._complain(error, path)
            self._database = None

    @property
    def enabled(self) -> bool:
        return self._database is not None

    def get(self, key: str) -> str | None:
        """The stored reply, None where there is none."""
        if self._database is None:
            return None
        if key in self._pending:
            return self._pending[key]
        try:
            row = self._database.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            self._complain(error)
            return None
        return None if row is None else str(row[0])

    def put(self, key: str, reply: str) -> None:
        """Store a reply at the next `flush`."""
        if self._database is not None:
            self._pending[key] = reply

    def flush(self) -> None:
        """Write what was gathered, in one transaction; on an error it is kept for the next time."""
        if self._database is None or not self._pending:
            return
        try:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany("INSERT OR REPLACE INTO replies VALUES (?, ?)", self._pending.items())
            self._database.execute("COMMIT")
            self._pending.clear()
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            self._complain(error)

    def close(self) -> None:
        """Write the rest and let go of the file."""
        self.flush()
        if self._database is not None:
            self._database.close()
            self._database = None

    def _complain(self, error: Exception, path: Path | str = "") -> None:
        if not self._told:
            self._told = True
            print(
                f"judge warning: the cache {path} cannot be used ({error}); replies are paid for again. "
                "Set cache to another path, or delete the file.",
                file=sys.stderr,
                flush=True,
            )
