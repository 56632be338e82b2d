"""The one error type that a user of the reward library sees."""

from __future__ import annotations


class RewardError(ValueError):
    """A mistake in a reward's name, file, signature, knobs or result, said in one sentence."""
