"""The one error of this package."""

from __future__ import annotations

from common.launcher.errors import UserError


class CheckpointError(UserError):
    """A checkpoint that is not there, not complete or cannot be used as asked; one line says what to do."""
