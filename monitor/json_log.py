"""A file of JSON lines that belongs to a run beside its metrics: read as it grows."""

from __future__ import annotations

from pathlib import Path

CHUNK = 4 << 20


class JsonLog:
    """Reads new complete lines of ``path`` (None: there is no such file). Subclasses keep what they say."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.revision = 0
        self._offset = 0
        self._bad = 0
        self._error = ""
        self._clear()

    def _clear(self) -> None:
        """Forget everything read."""
        raise NotImplementedError

    def _take(self, line: bytes) -> None:
        """Keep one line.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: it is not as expected (counted, not fatal).
        """
        raise NotImplementedError

    def advance(self) -> bool:
        """Read new complete lines; True when there were some."""
        if self.path is None:
            return False
        try:
            size = self.path.stat().st_size
            if size == self._offset:
                return False
            if size < self._offset:  # the file was replaced: start over
                self._offset, self._bad = 0, 0
                self._clear()
            with self.path.open("rb") as handle:
                handle.seek(self._offset)
                data = handle.read(CHUNK)
            self._error = ""
        except OSError as error:
            self._error = f"{self.path.name}: {error.strerror or error}"
            return False
        end = data.rfind(b"\n") + 1
        self._offset += end
        for line in data[:end].split(b"\n"):
            if line.strip():
                try:
                    self._take(line)
                except (ValueError, KeyError, TypeError, AttributeError):
                    self._bad += 1
        self.revision += bool(end)
        return bool(end)

    def problems(self) -> list[str]:
        """What could not be read, in words."""
        lines = [self._error] if self._error else []
        return [*lines, f"{self.path.name}: {self._bad} lines skipped"] if self._bad and self.path else lines
