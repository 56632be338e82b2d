"""The config that verl will see, composed from the same files and overrides, and Hydra's complaints in one line.

verl's own config folder is given to Hydra as a path: as ``pkg://verl.trainer.config`` it would import verl, which
takes seconds and changes nothing about the result.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.launcher.errors import UserError
from common.launcher.hydra_words import key_of
from common.preflight.command import Command

# verl's SFT trainer reads a word here where its default is a number; its RL trainers compare it with 0 and stop.
WORD_OR_NUMBER = {"trainer.save_freq": "after_each_epoch", "trainer.test_freq": "after_each_epoch"}


def verl_configs() -> Path:
    """Folder of verl's own YAML files."""
    spec = find_spec("verl")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("verl is not installed here: run ./setup_env.sh")
    return Path(spec.submodule_search_locations[0]) / "trainer" / "config"


def compose(command: Command) -> DictConfig:
    """The config of *command*.

    Raises:
        UserError: Hydra refuses it; one line per cause, with the nearest existing key.
    """
    words = command.overrides
    folder = command.config_dir
    if not (folder / f"{command.config_name}.yaml").is_file():
        raise UserError(f"--config-path {folder} holds no {command.config_name}.yaml")
    path = f"hydra.searchpath=[file://{verl_configs()}]"
    try:
        with initialize_config_dir(str(folder), version_base=None):
            config = hydra_compose(command.config_name, [path, *words])
        OmegaConf.to_container(config, resolve=True)  # an interpolation that leads nowhere
    except (HydraException, OmegaConfBaseException, ValueError) as problem:
        if not words:
            raise UserError(f"{folder / command.config_name}.yaml: {_first_line(problem)}") from None
        base = base_of(command)
        lines = [line for word in words for line in word_problem(word, base)]
        raise UserError("\n".join(lines or [_first_line(problem)])) from None
    return config


def base_of(command: Command) -> DictConfig:
    """The config without any override; not to be changed."""
    return _base(command.config_dir, command.config_name)


@cache
def _base(folder: Path, name: str) -> DictConfig:
    return compose(Command("", folder, name, []))


def word_problem(word: str, base: DictConfig) -> list[str]:
    """Why one override cannot be applied to *base*; [] when it can."""
    key = key_of(word)
    try:
        parsed = OverridesParser.create().parse_override(word)
    except (HydraException, ValueError) as problem:
        return [
            f"{word}: Hydra cannot read this value ({_first_line(problem)}): quote it, e.g. '{key}=\"...\"', "
            "or write a list as [a,b]"
        ]
    if parsed.is_sweep_override():
        return [
            f"{word}: several values at once are a sweep, which one run cannot do; a list is written [a,b]"
        ]
    known = exists(base, key)
    if parsed.is_force_add() or parsed.package or key.startswith("hydra"):
        return []
    if parsed.is_add():
        present = known and OmegaConf.select(base, key) is not None
        return [f"{word}: verl has this key already: write {word[1:]}"] if present else []
    if not known:
        return [f"{word}: verl 0.9.1 has no key '{key}'{did_you_mean(base, key)}"]
    return []


def exists(config: DictConfig, key: str) -> bool:
    """True when *config* has *key*, null or not."""
    node: Any = config
    for part in key.split("."):
        if isinstance(node, DictConfig) and part in node.keys():  # noqa: SIM118  (`in node` leaves ??? out)
            node = node._get_node(part)
        elif isinstance(node, ListConfig) and part.isdigit() and int(part) < len(node):
            node = node._get_node(int(part))
        else:
            return False
    return True


def keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """Every key of *config*, a.b.c, groups and values alike."""
    for name in map(str, config):
        key = f"{prefix}{name}"
        yield key
        node = config._get_node(name)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            yield from keys(node, f"{key}.")


def did_you_mean(config: DictConfig, key: str) -> str:
    """`; did you mean a.b?`: the same last part elsewhere, or the key that is spelled most like it."""
    known = [name for name in keys(config) if not name.endswith("_target_")]
    group, _, last = key.rpartition(".")
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.85)
    if not near:
        same = [name for name in known if name.rpartition(".")[2] == last]
        near = difflib.get_close_matches(key, same, n=1, cutoff=0.3)
    if not near:
        siblings = [n.rpartition(".")[2] for n in known if n.rpartition(".")[0] == group]
        near = [f"{group}.{name}" for name in difflib.get_close_matches(last, siblings, n=1, cutoff=0.6)]
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    return f"; did you mean {near[0]}?" if near else " (a new key is written +key=value)"


def added_keys(command: Command, base: DictConfig) -> list[str]:
    """Keys that overrides bring in and *base* has not."""
    return [
        key
        for key in dict.fromkeys(map(key_of, command.overrides))
        if "@" not in key and not exists(base, key)
    ]


def wrong_types(config: DictConfig, base: DictConfig, words: list[str]) -> list[str]:
    """Overrides whose value is of another kind than verl's default, a line each; Hydra takes them all.

    Args:
        config: composed with *words*.
        base: composed without.
    """
    found = []
    for key in dict.fromkeys(key_of(word) for word in words if "@" not in word):
        if not (exists(base, key) and exists(config, key)):
            continue
        before, after = (OmegaConf.select(c, key) for c in (base, config))
        what = _mismatch(before, after)
        word = None if "actor_rollout_ref" in base else WORD_OR_NUMBER.get(key)
        if what and (word is None or word != after):
            default = "" if isinstance(before, DictConfig) else f" (verl's default: {before})"
            found.append(f"{key}={after} must be {what}{default}")
    return found


def _mismatch(before: Any, after: Any) -> str:
    if isinstance(before, DictConfig) and before and not isinstance(after, DictConfig):
        return "a group of keys"
    if before is None or after is None:
        return ""
    if isinstance(before, bool):
        return "" if isinstance(after, bool) else "True or False"
    if isinstance(before, int) and before not in (0, 1):  # these stand for fractions too, as in top_p: 1
        return "" if isinstance(after, int) and not isinstance(after, bool) else "a whole number"
    if isinstance(before, int | float):
        return "" if isinstance(after, int | float) and not isinstance(after, bool) else "a number"
    if isinstance(before, ListConfig) and not isinstance(after, ListConfig | str):
        return "a list"
    return ""


def _first_line(problem: BaseException) -> str:
    text = str(problem).strip() or type(problem).__name__
    return re.sub(r"\s+", " ", text.splitlines()[0])
