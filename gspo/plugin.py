"""Makes the estimator ``preference`` known to verl: loaded by verl itself through ``VERL_USE_EXTERNAL_MODULES``.

Imported by ``verl/__init__`` in every process of a run, among them Ray's TaskRunner, where verl computes
advantages. It waits for ``core_algos``, which cannot be imported as early as that.
"""

from __future__ import annotations

from typing import Any

import wrapt


def register(core_algos: Any) -> None:
    """Register with verl's own decorator.

    Args:
        core_algos: the imported module ``verl.trainer.ppo.core_algos``.
    """
    from gspo.preference import NAME, preference_advantage

    core_algos.register_adv_est(NAME)(preference_advantage)


wrapt.register_post_import_hook(register, "verl.trainer.ppo.core_algos")
