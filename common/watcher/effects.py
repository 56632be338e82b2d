"""The effect check while a run starts: wait for verl's print of its config, compare it once."""

from __future__ import annotations

from common.launcher import effect
from common.launcher.errors import UserError
from common.watcher.run_state import RunState


class EffectCheck:
    """One launch of verl.

    Args:
        run: the run.
        begin: size of the console log when this launch began; what is before it is of another one.
    """

    def __init__(self, run: RunState, begin: int = 0) -> None:
        self.run, self.begin = run, begin
        self.done = False
        self.wrong: list[effect.Mismatch] = []
        self._size = -1

    def console_size(self) -> int:
        """Bytes of the console log, 0 before there is one."""
        try:
            return self.run.console.stat().st_size
        except OSError:
            return 0

    def look(self, trained: bool) -> list[str]:
        """Look at what is new in the log; returns what there is to say.

        Args:
            trained: a step was logged, so that no config can come any more.
        """
        size = self.console_size()
        if size in (0, self._size):
            return []
        self._size = size
        with self.run.console.open("rb") as log:
            log.seek(self.begin)
            text = log.read().decode("utf-8", "replace")
        try:
            found = effect.check(self.run.folder, text)
        except UserError as error:
            self.done = True
            return [f"effect check: {error}"]
        if found is None:
            self.done = trained
            note = "effect check: verl printed no config that could be read; nothing was compared"
            return [note] if trained else []
        self.done, self.wrong = True, found
        return [f"error: {mismatch}" for mismatch in found]
