"""What can be wrong with the watcher's knobs, said at the launch."""

from __future__ import annotations

import os
from collections.abc import Mapping

from common.callbacks import actions_of
from common.launcher.errors import UserError
from common.watcher.alerts import FORMAT_VARIABLE, VARIABLE, format_of
from common.watcher.settings import stop_rules


def problems(knobs: Mapping[str, str], task: str, environment: Mapping[str, str] = os.environ) -> list[str]:
    """One line per problem.

    Args:
        task: rl | sft | preference; only RL saves nothing at its end where SAVE_FREQ is 0.
    """
    found = []
    for check in (lambda: stop_rules(knobs.get("STOP_ON", "")), lambda: actions_of(knobs)):
        try:
            check()
        except UserError as error:
            found.append(str(error))
    try:
        format_of(environment.get(VARIABLE, ""), environment.get(FORMAT_VARIABLE, ""))
    except ValueError as error:
        found.append(str(error))
    save, test = int(knobs.get("SAVE_FREQ") or 0), int(knobs.get("TEST_FREQ") or 0)
    wanted = [name for name in ("KEEP_BEST", "EXPORT_HF") if knobs.get(name) == "true"]
    wanted += ["ON_SAVE"] if knobs.get("ON_SAVE") else []
    if wanted and save <= 0 and task == "rl":
        found.append(f"{wanted[0]} needs checkpoints: set SAVE_FREQ above 0")
    if "KEEP_BEST" in wanted and save > 0 and (test <= 0 or save % test):
        found.append(
            f"KEEP_BEST needs a validation of every checkpoint: TEST_FREQ={test} does not divide SAVE_FREQ={save}"
        )
    return found
