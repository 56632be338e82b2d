"""verl's own opinion of a config, in a process of its own: importing verl takes seconds, and other work goes on.

    python -m common.preflight.verl_check SOCKET PARENT

The launcher starts it before it looks at the data. It listens on SOCKET, imports what verl needs, answers one
question of the preflight and ends; it ends with its parent, whose process id is PARENT, too.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from common.preflight.names import suggest
from common.system import end_well, end_with_parent

SECONDS = 120.0
# What verl imports and what does not read the environment that is still to come.
_HEAVY = ("torch", "tensordict", "transformers", "ray")
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
    """One question to a process that imports verl meanwhile. A context manager that ends what it started.

    Args:
        path: socket of a process that the launcher started; None starts one.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if path is None:
            self._folder = tempfile.TemporaryDirectory(prefix="verl_training-")
            path = Path(self._folder.name) / "verl"
            self._process = subprocess.Popen(
                [sys.executable, "-m", "common.preflight.verl_check", str(path), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self._path, self._line = path, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def __enter__(self) -> Asked:
        return self

    def __exit__(self, *_: object) -> None:
        self._line.close()
        if self._process:
            self._process.kill()
            self._process.wait()
        if self._folder:
            self._folder.cleanup()

    def send(self, config: DictConfig, added: list[str], environment: Mapping[str, str]) -> None:
        """Hand over the config, the keys that are new in it, and the variables that the run will see."""
        question = pickle.dumps((config, added, dict(environment)))
        end = time.monotonic() + 10
        while True:  # it begins to listen in its first tenth of a second
            try:
                self._line.connect(str(self._path))
                break
            except OSError:
                if time.monotonic() > end:
                    return  # `answer` tells
                time.sleep(0.02)
        self._line.sendall(question)
        self._line.shutdown(socket.SHUT_WR)

    def answer(self) -> Opinion:
        """What verl said; `failed` tells when it could not be asked."""
        self._line.settimeout(SECONDS)
        try:
            return Opinion(**json.loads(read_all(self._line)))
        except TimeoutError:
            return Opinion(failed=f"no answer within {SECONDS:g} s")
        except (OSError, ValueError) as problem:
            return Opinion(failed=f"its process ended ({problem})")


def read_all(line: socket.socket) -> bytes:
    """Everything that the other side sends."""
    return b"".join(iter(lambda: line.recv(65536), b""))


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


def serve(path: Path) -> None:
    """Listen, import, answer one question."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.bind(str(path))
        door.listen(1)
        try:
            for name in _HEAVY:
                import_module(name)
            line, _ = door.accept()
            with line:
                config, added, environment = pickle.loads(read_all(line))
                os.environ.update(environment)
                sys.path[:0] = [
                    p for p in environment.get("PYTHONPATH", "").split(os.pathsep) if p not in sys.path
                ]
                try:
                    opinion = ask_here(config, added)
                except Exception as problem:  # an import that fails is news, not an end without a word
                    opinion = Opinion(failed=f"{type(problem).__name__}: {root_message(problem)}")
                line.sendall(json.dumps(vars(opinion)).encode())
        finally:
            path.unlink(missing_ok=True)


def main() -> None:
    """Entry point; ends with the process that started it."""
    end_with_parent(int(sys.argv[2]))
    gc.disable()  # what is imported stays: looking it through takes a fifth of the time
    serve(Path(sys.argv[1]))
    end_well()


if __name__ == "__main__":
    main()
