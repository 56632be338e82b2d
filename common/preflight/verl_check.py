"""verl's own opinion of a config, in a process of its own: importing verl takes seconds, so the rest goes on beside it.

python -m common.preflight.verl_check < pickled (config, added keys)      one line of JSON on stdout
"""

from __future__ import annotations

import contextlib
import json
import pickle
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from importlib import import_module
from typing import Any

from omegaconf import DictConfig, OmegaConf

from common.preflight.names import suggest

_MARK = "VERL_CHECK "
# Groups whose dataclasses the workers build; the others are read key by key.
BUILT = (
    "actor_rollout_ref.actor",
    "actor_rollout_ref.rollout",
    "actor_rollout_ref.model",
    "critic",
    "model",
    "engine",
    "optim",
)


@dataclass
class Opinion:
    """What verl said: one line per problem, and the names that external modules registered."""

    problems: list[str] = field(default_factory=list)
    estimators: list[str] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)
    failed: str = ""


class Asked:
    """The question on its way; `answer` waits for it. A context manager that ends the process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "common.preflight.verl_check"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def send(self, config: DictConfig, added: list[str]) -> None:
        """Hand over the config and the keys that are new in it; verl is being imported meanwhile."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died; `answer` tells
            self._process.stdin.write(pickle.dumps((config, added)))
            self._process.stdin.close()
        self._process.stdin = None

    def answer(self, seconds: float = 120.0) -> Opinion:
        """What verl said; `failed` tells when it could not be asked."""
        try:
            out, err = self._process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return Opinion(failed=f"verl could not be imported within {seconds:g} s")
        for line in out.decode(errors="replace").splitlines():
            if line.startswith(_MARK):
                return Opinion(**json.loads(line[len(_MARK) :]))
        last = [line for line in err.decode(errors="replace").splitlines() if line.strip()]
        return Opinion(failed=last[-1].strip()[:300] if last else f"exit code {self._process.returncode}")

    def __enter__(self) -> Asked:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def ask_here(config: DictConfig, added: Iterable[str] = ()) -> Opinion:
    """Ask verl in this process; see `unknown_fields` for *added*."""
    import verl  # noqa: F401  (imports VERL_USE_EXTERNAL_MODULES too)

    opinion = Opinion(problems=list(unknown_fields(config, added)))
    if "actor_rollout_ref" in config:
        from verl.trainer.ppo import core_algos

        opinion.estimators = [str(getattr(name, "value", name)) for name in core_algos.ADV_ESTIMATOR_REGISTRY]
        opinion.losses = list(core_algos.POLICY_LOSS_REGISTRY)
        # A wrong key would be said again, in Hydra's many words.
        opinion.problems += [] if opinion.problems else list(_validate(config))
    else:
        opinion.problems += (
            [] if opinion.problems else list(_construct(config, ("engine", "optim", "checkpoint")))
        )
        opinion.problems += list(_preference(config))
    return opinion


def _validate(config: DictConfig) -> Iterator[str]:
    """``validate_config`` as ``main_ppo`` calls it, then the dataclasses that only the workers build."""
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    # The rank's limit would import vLLM, for longer than all the rest takes; the launcher has checked it.
    config = config.copy()
    for key in ("lora_rank", "lora.rank"):
        if OmegaConf.select(config.actor_rollout_ref.model, key):
            OmegaConf.update(config.actor_rollout_ref.model, key, 0)
    try:
        validate_config(config, need_reference_policy(config), need_critic(config))
    except Exception as problem:  # verl raises AssertionError, ValueError, Hydra's and its own errors
        yield f"verl refuses the config: {root_message(problem)}"
        return
    yield from _construct(config, ("actor_rollout_ref.rollout",))


def _construct(config: DictConfig, groups: tuple[str, ...]) -> Iterator[str]:
    """Build the dataclasses as verl's workers do; their ``__post_init__`` checks values."""
    from verl.utils.config import omega_conf_to_dataclass

    for group in groups:
        node = OmegaConf.select(config, group)
        try:
            omega_conf_to_dataclass(node)
        except Exception as problem:
            yield f"{group}: verl refuses it: {root_message(problem)}"


def _preference(config: DictConfig) -> Iterator[str]:
    if "dpo" in config:
        from dpo.losses import problems, settings_of

        yield from problems(settings_of(config.dpo))


def unknown_fields(config: DictConfig, added: Iterable[str]) -> Iterator[str]:
    """Of the keys that ``+key=...`` brought in, those that a dataclass of verl's has no field for: it would stop.

    Args:
        added: keys that the config had not before.
    """
    for key in added:
        group, _, name = key.rpartition(".")
        node = OmegaConf.select(config, group) if group.startswith(BUILT) else None
        target = node.get("_target_") if isinstance(node, DictConfig) else None
        if not isinstance(target, str):
            continue
        module, _, cls = target.rpartition(".")
        kind: Any = getattr(import_module(module), cls, None)
        known = {item.name for item in fields(kind)} if is_dataclass(kind) else {name}
        if name not in known:
            yield f"+{key}: verl 0.9.1 has no such field in {cls}{suggest(name, known)}"


def root_message(problem: BaseException) -> str:
    """The first cause's own words, on one line."""
    while problem.__cause__ is not None:
        problem = problem.__cause__
    words = " ".join(str(problem).split()) or type(problem).__name__
    return words if len(words) <= 400 else f"{words[:400]} ..."


def main() -> None:
    """Read a config from stdin, answer on stdout; what verl prints goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr):
        import verl  # noqa: F401  (before the config is there)

        opinion = ask_here(*pickle.loads(sys.stdin.buffer.read()))
    print(_MARK + json.dumps(vars(opinion)))


if __name__ == "__main__":
    main()
