"""Try a judge by hand.

    python -m common.judge check --config ppo/api_reward_config.yaml
    python -m common.judge score --config FILE --question "..." --answer "..." [--reference "..."]
    python -m common.judge presets [NAME]
    python -m common.judge usage RUN_FOLDER

`--set key=value` (YAML) changes a key of the file, e.g. --set model=gpt-4o --set 'score_range=[1, 5]'.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.judge.check import check_config
from common.judge.failures import CallFailed, JudgeError
from common.judge.metrics import FILE, totals
from common.judge.service import Service
from common.judge.settings import load_settings
from common.judge.templates import presets
from common.launcher.errors import exit_with
from common.reward_functions.registry import nearest


def _changes(items: list[str]) -> dict[str, Any]:
    import yaml

    changes = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            raise JudgeError(f"--set {item}: write key=value")
        try:
            changes[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise JudgeError(f"--set {item}: the value is not valid YAML") from None
    return changes


def _check(args: argparse.Namespace) -> None:
    print(check_config(args.config, _changes(args.set)))


def _score(args: argparse.Namespace) -> None:
    service = Service(load_settings(args.config, _changes(args.set)))
    try:
        verdict = service.submit(service.judge.score(args.question, args.answer, args.reference)).result()
    except CallFailed as failure:
        raise JudgeError(f"judge {service.settings.model}: {failure}") from None
    finally:
        total = dict(service.judge.metrics.total)
        service.close()
    if args.json:
        print(json.dumps({**asdict(verdict), "counts": total}, ensure_ascii=False))
        return
    low, high = service.settings.score_range
    print(f"score   {verdict.score:g} of {low:g} to {high:g}{'  (from the cache)' if verdict.cached else ''}")
    print(f"reward  {verdict.reward:.6g}")
    print(f"reason  {verdict.reason or '(none)'}")
    print(f"tokens  {total.get('tokens_in', 0):g} in, {total.get('tokens_out', 0):g} out")


def _presets(args: argparse.Namespace) -> None:
    known = presets()
    if args.name and args.name not in known:
        raise JudgeError(
            f"preset '{args.name}' does not exist{nearest(args.name, list(known))}; "
            f"the presets: {', '.join(known)}"
        )
    print(
        known[args.name]
        if args.name
        else "\n".join(f"{name}: {known[name].split('.')[0]}." for name in known)
    )


def _usage(args: argparse.Namespace) -> None:
    folder = Path(args.folder)
    if not (folder / FILE).is_file():
        raise JudgeError(f"{folder} holds no {FILE}: no judge was called in that run")
    print(json.dumps(totals(folder), indent=1))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m common.judge", description="A language model as a judge."
    )
    commands = parser.add_subparsers(required=True)
    for name, run, words in (
        ("check", _check, "one test call; exit 2 with one line that says what is wrong"),
        ("score", _score, "judge one answer"),
    ):
        sub = commands.add_parser(name, help=words, description=words)
        sub.set_defaults(run=run)
        sub.add_argument("--config", required=True, help="the judge's YAML file")
        sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of it")
    sub.add_argument("--question", required=True)
    sub.add_argument("--answer", required=True)
    sub.add_argument("--reference", default="")
    sub.add_argument("--json", action="store_true")
    sub = commands.add_parser("presets", help="list the presets, or print one")
    sub.set_defaults(run=_presets)
    sub.add_argument("name", nargs="?")
    sub = commands.add_parser("usage", help="what the judge of a run did and cost")
    sub.set_defaults(run=_usage)
    sub.add_argument("folder")
    return parser


def main() -> None:
    """Entry point of ``python -m common.judge``."""
    args = _parser().parse_args()
    args.run(args)


if __name__ == "__main__":
    exit_with(main)
