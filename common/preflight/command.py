"""verl's command as ``launch::hand_over`` has it, or as ``--dry-run`` printed it, taken apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from common.launcher.errors import UserError
from common.launcher.hydra_words import key_of, value_of

MODULES = {"verl.trainer.main_ppo": "rl", "verl.trainer.sft_trainer": "sft", "dpo.dpo_trainer": "preference"}


@dataclass(frozen=True)
class Command:
    """A training command.

    Attributes:
        task: "rl", "sft" or "preference".
        method: name of the folder that holds its config.yaml.
        config_dir, config_name: as verl is given them.
        overrides: Hydra overrides, in order.
        environment: variables that the command sets with ``env NAME=VALUE``.
        options: torchrun's options, "nproc_per_node" -> "2"; {} where there is no torchrun.
    """

    task: str
    config_dir: Path
    config_name: str
    overrides: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)

    @property
    def method(self) -> str:
        return self.config_dir.name

    def given(self, key: str) -> bool:
        """True when an override is about *key* or something below it."""
        return any(key_of(word) == key or key_of(word).startswith(f"{key}.") for word in self.overrides)

    def raw(self, key: str, default: str = "") -> str:
        """The text that the last override gives to *key*."""
        return value_of(self.overrides, key, default)


def parse(words: list[str]) -> Command:
    """Take a command apart: ``[cd DIR && env A=B ...] [RUNNER ...] PYTHON -m MODULE --config-path ... OVERRIDE ...``.

    Raises:
        UserError: it starts none of the trainers, or names no config.
    """
    found = [i for i in range(1, len(words)) if words[i - 1] == "-m" and words[i] in MODULES]
    if not found or "--config-path" not in words or "--config-name" not in words:
        raise UserError(
            "this is no training command: give one that ./train.sh --dry-run prints, after --"
            f" (a call of {', '.join(MODULES)} with --config-path and --config-name)"
        )
    at = found[-1]
    path, name = (words.index(flag) + 1 for flag in ("--config-path", "--config-name"))
    environment: dict[str, str] = {}
    if "env" in words[:at]:
        for word in words[words.index("env") + 1 :]:
            key, equals, value = word.partition("=")
            if not equals:
                break
            environment[key] = value
    return Command(
        task=MODULES[words[at]],
        config_dir=Path(words[path]),
        config_name=words[name],
        overrides=words[max(path, name) + 1 :],
        environment=environment,
        options=_torchrun(words[:at]),
    )


def _torchrun(words: list[str]) -> dict[str, str]:
    if "torch.distributed.run" not in words:
        return {}
    rest = words[words.index("torch.distributed.run") + 1 :]
    pairs = zip(rest, [*rest[1:], ""], strict=True)
    return {
        a.lstrip("-").replace("-", "_"): b for a, b in pairs if a.startswith("--") and not b.startswith("-")
    }
