"""`python -m common.reward_functions`: see what a reward does before a run depends on it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.reward_functions import registry
from common.reward_functions.calling import BoundReward
from common.reward_functions.errors import RewardError
from common.reward_functions.loading import load_reward

USER_MISTAKE = 2


def _reward(args: argparse.Namespace) -> BoundReward:
    kwargs = _json(args.kwargs, "--kwargs") if args.kwargs else {}
    if not isinstance(kwargs, Mapping):
        raise RewardError(f"--kwargs must be a JSON object, not {args.kwargs}")
    if getattr(args, "reward", None) is None:
        return load_reward(args.path, args.name, kwargs)
    path, _, name = args.reward.partition(".py:")
    if name:
        return load_reward(path + ".py", name, kwargs)
    if args.reward.endswith(".py"):
        return load_reward(args.reward, "compute_score", kwargs)
    return load_reward(None, args.reward, kwargs)


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RewardError(f"{what} is not valid JSON: {error.msg} at character {error.pos}") from None


def _check(args: argparse.Namespace) -> int:
    print(f"{_reward(args).label}: ok")
    return 0


def _list(args: argparse.Namespace) -> int:
    for name in registry.names():
        spec = registry.get(name)
        print(f"{name:22} [{spec.low:g}, {spec.high:g}]  {spec.summary}")
    return 0


def _explain(args: argparse.Namespace) -> int:
    spec = registry.get(args.name)
    print(f"common:{spec.name}   scores {spec.low:g} to {spec.high:g} at the default knobs")
    print(f"source: {spec.source}\n")
    print((spec.function.__doc__ or "").strip())
    print("\nexamples (answer | ground truth | score):")
    for case in spec.examples:
        knobs = f"   with {json.dumps(case.kwargs, ensure_ascii=False)}" if case.kwargs else ""
        print(f"  {case.answer!r} | {case.truth!r} | {case.score:g}{knobs}")
    return 0


def _score(args: argparse.Namespace) -> int:
    from common.reward_functions.trial import Row, call

    reward = _reward(args)
    answer = sys.stdin.read() if args.answer == "-" else args.answer
    truth = _json(args.truth_json, "--truth-json") if args.truth_json else args.truth
    if truth is None:
        raise RewardError("give the ground truth with --truth TEXT or --truth-json JSON")
    extra = _json(args.extra, "--extra") if args.extra else {}
    parts = call(reward, answer, Row(args.data_source, truth, extra))
    if args.json:
        print(json.dumps(parts, ensure_ascii=False, default=repr))
        return 0
    for key, value in parts.items():
        print(f"{key:16} {value}")
    return 0


def _dry_run(args: argparse.Namespace) -> int:
    from common.reward_functions.trial import KINDS, dry_run, read_rows

    if args.rows < 1:
        raise RewardError(f"--rows must be at least 1, not {args.rows}")
    report = dry_run(_reward(args), read_rows(Path(args.data), args.rows), args.seed)
    if args.json:
        print(json.dumps({"ok": not report.problems, **dataclasses.asdict(report)}, ensure_ascii=False))
        return int(bool(report.problems))
    print(f"{report.reward} on {report.rows} rows; gold answers written as: {report.gold_form}")
    print(f"{'answers':14} {'mean':>8}   scores from {report.low:g} to {report.high:g}")
    for kind in KINDS:
        print(f"{kind:14} {report.means[kind]:8.3f}   {_bars(report.histogram[kind])}")
    print(
        f"time per call   {report.seconds_per_call * 1e3:.3g} ms, slowest {report.slowest_call * 1e3:.3g} ms"
    )
    print(f"gold not above junk in {report.gold_not_above_junk:.1%} of rows, errors {report.errors}")
    for problem in report.problems:
        print(f"PROBLEM: {problem}")
    return int(bool(report.problems))


def _bars(counts: list[int]) -> str:
    marks = " ▁▂▃▄▅▆▇█"
    top = max(counts) or 1
    return "|" + "".join(marks[0 if not c else max(1, round(c / top * 8))] for c in counts) + "|"


def _parts(args: argparse.Namespace) -> int:
    from common.reward_functions.records import summarise

    folder = Path(args.folder)
    if not folder.is_dir():
        raise RewardError(f"{folder} is not a folder")
    for row in summarise(folder):
        print(json.dumps(row, ensure_ascii=False))
    return 0


def _sandbox_status(args: argparse.Namespace) -> int:
    from common.reward_functions.sandbox import status

    guards = status()
    if args.json:
        print(json.dumps(guards))
    else:
        for name, state in guards.items():
            print(f"{name:18} {state}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m common.reward_functions", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    def which(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--reward", required=True, help="registered name, FILE.py or FILE.py:function")
        sub.add_argument("--kwargs", default="", help="the reward's knobs as a JSON object")

    command("list", _list, "every registered reward with its range")
    command("explain", _explain, "what a registered reward measures").add_argument("name")
    sub = command("check", _check, "load a reward and check its signature")
    sub.add_argument("--path", default="", help="the user's Python file; leave out for a registered reward")
    sub.add_argument("--name", required=True)
    sub.add_argument("--kwargs", default="")
    sub = command("score", _score, "score one answer with its parts and the reason")
    which(sub)
    sub.add_argument("--answer", required=True, help="the model's answer; - reads standard input")
    sub.add_argument("--truth", help="ground truth as text")
    sub.add_argument("--truth-json", help="ground truth as JSON")
    sub.add_argument("--extra", default="", help="extra_info as JSON")
    sub.add_argument("--data-source", default="trial")
    sub.add_argument("--json", action="store_true")
    sub = command(
        "dry-run", _dry_run, "score gold answers and junk of a data file; exit 1 if they look alike"
    )
    which(sub)
    sub.add_argument("--data", required=True, help="parquet, JSON or JSONL in verl's schema")
    sub.add_argument("--rows", type=int, default=200)
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--json", action="store_true")
    command("parts", _parts, "means of the reward parts a run wrote, per step").add_argument("folder")
    sub = command("sandbox-status", _sandbox_status, "which guards hold on this machine")
    sub.add_argument("--json", action="store_true")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; a user's mistake is one line on stderr and exit code 2."""
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except RewardError as error:
        print(f"reward error: {error}", file=sys.stderr)
        return USER_MISTAKE
    except BrokenPipeError:
        return 0


if __name__ == "__main__":
    sys.exit(main())
