"""From the config block, the environment and the command line to one value per knob.

Precedence, lowest first: config block < (a resumed run's own values) < environment < ``--flag``.
``key=value`` arguments are collected for verl. Values for a CPU or ``--smoke`` run fill in only where
nobody chose one.

Called by ``common/launch.sh``; answers with NUL-separated ``NAME=VALUE`` items, ``@extra=key=value`` for
verl's overrides, ``@mode=...`` for control flags and ``@help=...`` for the text of ``--help``.

Standard library only: it runs before the environment is made.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.launcher import device, runs
from common.launcher.block import Knob, read_block
from common.launcher.errors import UserError, exit_with

MODES = {
    "DRY_RUN": "check everything, print the exact command, start nothing",
    "COMPOSE": "print the command for any machine, check nothing but the knobs; DEVICE=auto means GPUs",
    "PREFLIGHT_ONLY": "check everything, show what would run, start nothing; exit code 2 where something is wrong",
    "JSON": "with --preflight-only: the report as JSON",
    "NO_PREFLIGHT": "start without the preflight: neither config, machine nor reward are tried first",
    "FORCE": "go on although the preflight found something wrong",
    "SMOKE": "a few steps on a few rows, to see that everything works",
    "HELP": "this text",
}
ALIASES = {
    "MODEL": "MODEL_PATH",
    "LR": "LEARNING_RATE",
    "EPOCHS": "TOTAL_EPOCHS",
    "STEPS": "TOTAL_STEPS",
    "N": "ROLLOUT_N",
    "BATCH_SIZE": "TRAIN_BATCH_SIZE",
    "DATA": "TRAIN_DATA",
    "NAME": "EXPERIMENT_NAME",
    "OUTPUT": "OUTPUT_DIR",
    "GPUS": "N_GPUS",
    "NODES": "NNODES",
    "TP": "ROLLOUT_TP_SIZE",
    "TEMPERATURE": "ROLLOUT_TEMPERATURE",
    "LORA": "USE_LORA",
    "WANDB": "USE_WANDB",
}
PATHS = (
    *("MODEL_PATH", "TRAIN_DATA", "VAL_DATA", "REWARD_FUNC_PATH", "CHAT_TEMPLATE"),
    *("CRITIC_MODEL_PATH", "REWARD_MODEL_PATH", "REWARD_MODEL_CONFIG", "API_REWARD_CONFIG"),
)
# Where MINI_BATCH_SIZE=0 is not one update: GSPO's clipping needs several (arXiv 2507.18071 takes four).
UPDATES_PER_ROLLOUT = {"gspo": 4}
_OVERRIDE = re.compile(r"^(?:[+]{0,2}[A-Za-z_][\w./@-]*=.*|~[A-Za-z_][\w./@=-]*)$", re.DOTALL)


@dataclass
class Resolved:
    """One value per knob, where it came from, and what goes on to verl."""

    values: dict[str, str]
    origin: dict[str, str]
    extra: list[str] = field(default_factory=list)
    modes: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def fill(self, items: Iterable[str], origin: str, why: str) -> None:
        """Set ``NAME=value`` or cap ``NAME<=value`` items where the user chose nothing; note each change."""
        changed = []
        for item in items:
            name, operator, value = re.split(r"(<=|=)", item, maxsplit=1)
            if name not in self.values or self.origin[name] not in ("block", "cpu"):
                continue
            old = self.values[name]
            if operator == "<=" and old.lstrip("-").isdigit() and 0 < int(old) <= int(value):
                continue
            if old != value:
                self.values[name], self.origin[name] = value, origin
                changed.append(f"{name} {old or '(empty)'} -> {value}")
        if changed:
            self.notes.append(f"{why}: " + ", ".join(changed))


def parse_arguments(
    arguments: list[str], knobs: dict[str, Knob]
) -> tuple[dict[str, str], set[str], list[str]]:
    """Split the command line into knob values, modes and verl overrides.

    Raises:
        UserError: unknown flag, missing value, or something that is neither flag nor ``key=value``.
    """
    values: dict[str, str] = {}
    modes: set[str] = set()
    extra: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word in ("-h", "--help"):
            modes.add("HELP")
        elif word.startswith("--"):
            flag, has_value, value = word[2:].partition("=")
            name = flag.replace("-", "_").upper()
            if name in MODES and not has_value:
                modes.add(name)
                continue
            name = ALIASES.get(name, name) if name not in knobs else name
            if name not in knobs:
                raise UserError(_unknown(word.partition("=")[0], name, knobs))
            if not has_value:
                value = _next_value(name, knobs[name], rest)
            values[name] = value
        elif _OVERRIDE.match(word):
            extra.append(word)
        else:
            raise UserError(
                f"'{word}' is neither a --flag nor a key=value for verl; ./train.sh --help lists the flags"
            )
    return values, modes, extra


def override_key(word: str) -> str:
    """The Hydra key of an override: ``++a.b=1`` and ``~a.b`` are about ``a.b``."""
    return word.partition("=")[0].lstrip("+~")


def _next_value(name: str, knob: Knob, rest: list[str]) -> str:
    following = rest[0] if rest else None
    if knob.kind == "bool":
        return rest.pop(0).lower() if following and following.lower() in ("true", "false") else "true"
    if name == "RESUME":
        takes = following is not None and not following.startswith("--") and "=" not in following
        return rest.pop(0) if takes else "last"
    if following is None or (following.startswith("--") and len(following) > 2):
        raise UserError(f"--{name.lower()} needs a value ({knob.help or 'see --help'})")
    return rest.pop(0)


def _unknown(flag: str, name: str, knobs: dict[str, Knob]) -> str:
    known = [*knobs, *ALIASES, *MODES]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6) or [k for k in knobs if name in k][:1]
    hint = (
        f"; did you mean --{near[0].lower().replace('_', '-') if near[0] in MODES else near[0].lower()}?"
        if near
        else ""
    )
    return f"unknown flag {flag}{hint} (./train.sh --help lists all)"


def check_values(values: dict[str, str], knobs: dict[str, Knob]) -> None:
    """Refuse a value of the wrong type or outside a knob's list.

    Raises:
        UserError: naming the knob, the value and what is allowed.
    """
    patterns = {"int": r"-?\d+", "ints": r"\d+(,\d+)*", "float": r"-?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"}
    for name, knob in knobs.items():
        value = values[name]
        if knob.choices and value not in knob.choices:
            near = difflib.get_close_matches(value, knob.choices, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{name}='{value}' must be one of {', '.join(knob.choices)}{hint}")
        if knob.kind == "bool" and value not in ("true", "false"):
            raise UserError(f"{name}='{value}' must be true or false")
        if knob.kind in patterns and not re.fullmatch(patterns[knob.kind], value):
            what = {"int": "a whole number", "ints": "one or more whole numbers"}.get(knob.kind, "a number")
            raise UserError(f"{name}='{value}' is not {what}: {knob.help}")


def check_modes(modes: set[str]) -> None:
    """Refuse modes that contradict each other.

    Raises:
        UserError: naming both.
    """
    if "PREFLIGHT_ONLY" in modes and "NO_PREFLIGHT" in modes:
        raise UserError("--preflight-only and --no-preflight contradict each other: leave one of them out")
    if "JSON" in modes and "PREFLIGHT_ONLY" not in modes:
        raise UserError("--json is the form of the report of --preflight-only: give both")


def absolute_paths(values: dict[str, str], origin: dict[str, str], caller: Path, script: Path) -> None:
    """Let a relative path mean what the user sees: from where they stand, beside train.sh, or in the repository.

    The launcher itself works in the repository, so a name that exists in none of the three stays as it is.
    """
    root = script.parents[1]
    for name in PATHS:
        parts = values.get(name, "").split(",")
        for number, part in enumerate(parts):
            found = next(
                (f / part for f in (caller, script.parent, root) if part and (f / part).exists()), None
            )
            if found is not None and not Path(part).is_absolute():
                parts[number] = str(found.resolve())
        if name in values:
            values[name] = ",".join(parts)
    if values.get("OUTPUT_DIR"):
        base = caller if origin["OUTPUT_DIR"] in ("flag", "env") else root
        values["OUTPUT_DIR"] = str((base / Path(values["OUTPUT_DIR"]).expanduser()).resolve())


def help_text(script: Path, knobs: list[Knob]) -> str:
    """The text of ``--help``: every knob with its default and meaning, by section."""
    lines = [f"usage: {script.parent.name}/{script.name} [--knob value ...] [verl.key=value ...]", ""]
    header = script.read_text(encoding="utf-8").splitlines()[1:]
    for line in header:
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").rstrip())
    lines += ["", "Every knob can be set in the config block, in the environment or as a flag (case and -/_"]
    lines += ["do not matter); a later one wins: config.yaml < block < environment < --flag < key=value."]
    section = None
    for knob in knobs:
        if knob.section != section:
            section = knob.section
            lines += ["", f"{section}:"]
        lines.append(f"  --{knob.name.lower():<26} {knob.help}  [{knob.default}]")
    lines += ["", "Modes:"]
    lines += [f"  --{name.lower().replace('_', '-'):<26} {text}" for name, text in MODES.items()]
    short = ", ".join(f"--{a.lower()}" for a, n in ALIASES.items() if any(k.name == n for k in knobs))
    lines += ["", f"Short names: {short}"]
    return "\n".join(lines)


def resolve(
    knob_list: list[Knob],
    block_values: dict[str, str],
    exported: set[str],
    arguments: list[str],
    script: Path,
    method: str,
    caller: Path,
    cpu_values: list[str],
    smoke_values: list[str],
) -> Resolved:
    """Apply every layer in the order of precedence.

    Raises:
        UserError: anything the user has to mend.
    """
    knobs = {knob.name: knob for knob in knob_list}
    flags, modes, extra = parse_arguments(arguments, knobs)
    values = dict(block_values)
    origin = {name: "env" if name in exported else "block" for name in values}
    result = Resolved(values, origin, extra, modes)
    if "HELP" in modes:
        return result
    check_modes(modes)
    for name, value in flags.items():
        values[name], origin[name] = value, "flag"
    absolute_paths(values, origin, caller, script)

    if values.get("RESUME"):
        record = runs.find_resumable(Path(values["OUTPUT_DIR"]), method, values["RESUME"])
        values["RESUME"] = record.name
        for name, value in record.knobs.items():
            if name in values and origin[name] == "block" and name not in ("RESUME", "OUTPUT_DIR"):
                values[name], origin[name] = value, "run"
        again = {override_key(word) for word in extra}
        result.extra = [*(word for word in record.extra if override_key(word) not in again), *extra]
        values["EXPERIMENT_NAME"], origin["EXPERIMENT_NAME"] = record.name, "run"

    check_values(values, knobs)
    chosen = device.assumed(values["DEVICE"]) if "COMPOSE" in modes else device.choose(values["DEVICE"])
    result.notes += chosen.notes
    values["DEVICE"] = chosen.kind
    if chosen.kind == "cpu":
        result.fill(cpu_values, "cpu", f"{chosen.reason}; values made smaller for the CPU")
    if "SMOKE" in modes:
        result.fill(smoke_values, "smoke", "--smoke")
    if values.get("MINI_BATCH_SIZE") == "0":
        values["MINI_BATCH_SIZE"] = mini_batch(values["TRAIN_BATCH_SIZE"], method)
    if values.get("N_GPUS") == "auto":
        values["N_GPUS"] = str(max(1, chosen.count))
    if "COMPOSE" in modes:
        modes.add("DRY_RUN")
        device.check_number(values)
    else:
        device.check_count(values, chosen)
    return result


def mini_batch(batch: str, method: str) -> str:
    """What MINI_BATCH_SIZE=0 stands for: the largest divisor of *batch* that gives the method's updates per rollout."""
    if not batch.isdigit():
        return batch
    most = max(1, int(batch) // UPDATES_PER_ROLLOUT.get(method, 1))
    return str(next(size for size in range(most, 0, -1) if int(batch) % size == 0))


def main() -> None:
    """Read knobs from stdin (``E|B``, name, ``=``, value, NUL-separated), write the answer to stdout."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--script", type=Path, required=True)
    parser.add_argument("--method", required=True)
    parser.add_argument("--caller", type=Path, required=True, help="the folder train.sh was called from")
    parser.add_argument("--cpu-value", action="append", default=[])
    parser.add_argument("--smoke-value", action="append", default=[])
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    own = parser.parse_args()
    knobs = read_block(own.script)
    block_values: dict[str, str] = {}
    exported: set[str] = set()
    for item in sys.stdin.buffer.read().decode("utf-8", "surrogateescape").split("\0"):
        if item:
            name, _, value = item[1:].partition("=")
            block_values[name] = value
            if item[0] == "E":
                exported.add(name)
    result = resolve(
        knobs,
        block_values,
        exported,
        own.arguments[1:],
        own.script,
        own.method,
        own.caller,
        own.cpu_value,
        own.smoke_value,
    )
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    items = [f"{name}={value}" for name, value in result.values.items()]
    items += [f"@extra={word}" for word in result.extra]
    items += [f"@mode={mode}" for mode in sorted(result.modes)]
    if "HELP" in result.modes:
        items.append(f"@help={help_text(own.script, knobs)}")
    sys.stdout.buffer.write(b"".join(os.fsencode(item) + b"\0" for item in items))


if __name__ == "__main__":
    exit_with(main)
