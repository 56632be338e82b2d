"""The command line: python -m common.data_utils convert|validate|stats|show|split|prepare|export|formats."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from common.data_utils.errors import DataError, no_traceback
from common.data_utils.records import POLICIES, TASKS, Options

USER_ERROR = 2
FINDINGS = 1
Command = Callable[[argparse.Namespace], int]


def _options(group: Any) -> None:
    add = group.add_argument
    add("--format", default="auto", help="source format; auto detects it (list: formats)")
    add("--columns", default="", metavar="JSON", help='your column names, e.g. \'{"question": "q"}\'')
    add("--system-prompt", default="", metavar="TEXT", help="put before rows without a system message")
    add("--prompt-template", default="", metavar="TEXT", help="rl: wraps the question; contains {question}")
    add("--data-source", default="", metavar="NAME", help="rl: data_source of rows without one")
    add("--ability", default="", metavar="NAME", help="rl: ability of rows without one")
    add("--agent-name", default="", metavar="NAME", help="rl: verl agent loop, e.g. tool_agent")
    add(
        "--answer-style",
        default="auto",
        choices=("auto", "extract", "plain"),
        help="rl: ground truth from '#### x' and \\boxed{x}, or the whole answer",
    )
    add(
        "--ground-truth",
        default="required",
        choices=("required", "optional"),
        help="rl: optional lets rows without one through",
    )
    add("--encoding", default="", metavar="NAME", help="of text files; detected by default")
    add("--split", default="", metavar="NAME", help="which split of a folder or hub dataset")


def _bad_rows(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bad-rows",
        default="error",
        choices=POLICIES,
        help="error: write nothing; quarantine: set them aside in <name>.rejected.jsonl",
    )


def _json_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON line for machines")


def options_of(args: argparse.Namespace) -> Options:
    """The conversion options of a command line.

    Raises:
        DataError: --columns is not a JSON object of texts.
    """
    columns: Any = {}
    if args.columns:
        try:
            columns = json.loads(args.columns)
        except ValueError as problem:
            raise DataError(
                f'--columns is not valid JSON ({problem}); write it as \'{{"question": "your_column"}}\''
            ) from None
        if not isinstance(columns, dict) or not all(isinstance(name, str) for name in columns.values()):
            raise DataError('--columns must be an object of names, e.g. \'{"question": "your_column"}\'')
    return Options(
        format=args.format,
        columns=columns,
        system_prompt=args.system_prompt,
        prompt_template=args.prompt_template,
        data_source=args.data_source,
        ability=args.ability,
        agent_name=args.agent_name,
        answer_style=args.answer_style,
        ground_truth=args.ground_truth,
        encoding=args.encoding,
        split=args.split,
    )


def _progress(enabled: bool) -> Callable[[int, int], None] | None:
    """A bar on a terminal; nothing elsewhere, so that logs stay readable."""
    if not enabled or not sys.stderr.isatty():
        return None
    from common.data_utils.terminal import Bar

    return Bar().update


def _convert(args: argparse.Namespace) -> int:
    from pathlib import Path

    from common.data_utils.pipeline import convert_sources
    from common.data_utils.sources import resolve, split_list

    options = options_of(args)
    sources = [resolve(name, options.split) for name in split_list(args.src)]
    if not sources:
        raise DataError("no data named: give a file, a folder or a hub id")
    summary = convert_sources(
        sources,
        Path(args.dst).expanduser().resolve(),
        args.task,
        options,
        bad_rows=args.bad_rows,
        workers=args.workers,
        progress=_progress(not args.json),
    )
    if args.json:
        print(json.dumps(summary.as_dict(), ensure_ascii=False))
        return 0
    for part in summary.sources:
        counts = f"{part.rows_in} rows in, {part.rows_out} out, {part.rejected} rejected"
        print(f"{part.name}: {part.reason}; {counts}")
        for note in part.notes:
            print(f"  note: {note}")
    print(f"{summary.output}: {summary.rows_out} {summary.task} rows in {summary.seconds:.1f} s")
    if summary.rejected_file:
        print(f"{summary.rejected_file}: {summary.rejected} rejected rows with their reasons")
    return 0


def _prepare(args: argparse.Namespace) -> int:
    from common.data_utils.prep import prepare

    found = prepare(
        args.train,
        args.task,
        args.cache,
        val=args.val,
        val_size=args.val_size,
        seed=args.seed,
        bad_rows=args.bad_rows,
        options=options_of(args),
        tokenizer=args.tokenizer,
        max_prompt_length=args.max_prompt_length,
        max_length=args.max_length,
        progress=_progress(not args.json),
    )
    if args.json:
        print(json.dumps(found.as_dict(), ensure_ascii=False))
        return 0
    print(f"train: {found.train_rows} rows, {found.train}")
    print(f"val:   {found.val_rows} rows, {found.val or 'none'} ({found.val_from})")
    print(f"format: {found.reason}")
    print(f"rejected: {found.rejected}" + (f", see {found.rejected_file}" if found.rejected_file else ""))
    for note in found.notes:
        print(f"note: {note}")
    print("from the cache" if found.cached else f"converted in {found.seconds:.1f} s")
    return 0


def validate_command(args: argparse.Namespace) -> int:
    """`validate`, `stats` and `common/check_data.py`."""
    from pathlib import Path

    from common.data_utils.quality import check
    from common.data_utils.report import write_html
    from common.data_utils.terminal import lines_of

    report = check(
        args.src,
        args.task,
        options_of(args),
        val=args.val,
        tokenizer=args.tokenizer,
        max_prompt_length=args.max_prompt_length,
        max_length=args.max_length,
        truncation=args.truncation,
        reward=args.reward,
        near=not args.no_near,
        threshold=args.threshold,
        progress=_progress(not args.json),
    )
    if args.html:
        write_html(report, Path(args.html).expanduser())
    if args.json:
        print(json.dumps(report.as_dict(), ensure_ascii=False))
    else:
        print("\n".join(lines_of(report, sys.stdout.isatty())))
        if args.html:
            print(f"report: {args.html}")
    return 0 if report.ok or args.command == "stats" else FINDINGS


def _show(args: argparse.Namespace) -> int:
    from common.data_utils.show import show

    colour = args.color == "always" or (args.color == "auto" and sys.stdout.isatty())
    values, text = show(
        args.src,
        args.task,
        args.tokenizer,
        options_of(args),
        row=args.row,
        tokens=args.tokens,
        colour=colour,
        ignore_mismatch=args.ignore_mismatch,
    )
    print(json.dumps(values, ensure_ascii=False) if args.json else text)
    return 0


def _split(args: argparse.Namespace) -> int:
    from common.data_utils.split import split_train_val

    result = split_train_val(args.src, args.train, args.val, args.val_size, args.seed)
    print(
        json.dumps(result)
        if args.json
        else f"{result['train_rows']} rows to {args.train}, {result['val_rows']} to {args.val}"
    )
    return 0


def _export(args: argparse.Namespace) -> int:
    from common.data_utils.api import parquet_to_json

    rows = parquet_to_json(args.src, args.dst)
    print(json.dumps({"rows": rows, "output": args.dst}) if args.json else f"{args.dst}: {rows} rows")
    return 0


def _formats(args: argparse.Namespace) -> int:
    from common.data_utils.formats import FORMATS

    if args.json:
        print(
            json.dumps(
                {
                    name: {"required": item.required, "tasks": item.tasks, "example": item.example}
                    for name, item in FORMATS.items()
                }
            )
        )
        return 0
    for name, item in FORMATS.items():
        print(f"{name:16} -> {', '.join(item.tasks):22} {item.example}")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="python -m common.data_utils",
        description="Any common data format in, verl's Parquet schema out.",
        epilog="Exit codes: 0 fine, 1 findings forbid training, 2 wrong request or data.",
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, run: Command, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    sub = add("convert", _convert, "convert data into verl's Parquet schema")
    sub.add_argument("src", help="file, folder, hub id, or several joined by commas")
    sub.add_argument("dst", help="Parquet file to write")
    sub.add_argument("--task", required=True, choices=TASKS)
    sub.add_argument("--workers", type=int, default=0, help="processes; 0 chooses")
    _bad_rows(sub)
    _options(sub.add_argument_group("conversion"))
    _json_flag(sub)

    for name, text in (
        ("validate", "quality report; exit code 1 when training must not start"),
        ("stats", "the same report; exit code 0 whatever it finds"),
    ):
        add_report_flags(add(name, validate_command, text))

    sub = add("show", _show, "one row as the model will see it: template applied, tokens, loss mask")
    sub.add_argument("src")
    sub.add_argument("--task", required=True, choices=TASKS)
    sub.add_argument("--tokenizer", required=True, metavar="PATH", help="folder, hub id, or smollm2")
    sub.add_argument("--row", type=int, metavar="N", help="row number of the source; default: the first")
    sub.add_argument("--tokens", action="store_true", help="one line per token")
    sub.add_argument("--color", default="auto", choices=("auto", "always", "never"))
    sub.add_argument(
        "--ignore-mismatch", action="store_true", help="as data.ignore_input_ids_mismatch=True of verl"
    )
    _options(sub.add_argument_group("conversion"))
    _json_flag(sub)

    sub = add(
        "split", _split, "split a converted Parquet file into train and validation, equal prompts on one side"
    )
    sub.add_argument("src")
    sub.add_argument("train", help="Parquet file to write")
    sub.add_argument("val", help="Parquet file to write")
    _split_flags(sub)
    _json_flag(sub)

    sub = add("prepare", _prepare, "what the launchers call: convert, split and cache the data of a run")
    sub.add_argument("--task", required=True, choices=TASKS)
    sub.add_argument("--train", required=True, metavar="SRC[,SRC...]")
    sub.add_argument("--val", default="", metavar="SRC", help="empty: split from train")
    sub.add_argument("--cache", required=True, metavar="DIR")
    _split_flags(sub)
    _bad_rows(sub)
    _options(sub.add_argument_group("conversion"))
    sub.add_argument("--tokenizer", default="", metavar="PATH", help="count rows over the length limits")
    sub.add_argument("--max-prompt-length", type=int, metavar="N")
    sub.add_argument("--max-length", type=int, metavar="N")
    _json_flag(sub)

    sub = add("export", _export, "write a Parquet file as JSON Lines (.jsonl) or one array (.json)")
    sub.add_argument("src")
    sub.add_argument("dst")
    _json_flag(sub)

    _json_flag(add("formats", _formats, "list the source formats with an example of each"))
    return parser


def add_report_flags(parser: argparse.ArgumentParser) -> None:
    """Arguments of `validate` and `stats`, which `common/check_data.py` shares."""
    parser.add_argument("src", help="file, folder, hub id, or several joined by commas")
    parser.add_argument("--task", required=True, choices=TASKS)
    parser.add_argument(
        "--val", default="", metavar="SRC", help="validation data: checked too, and for leaks"
    )
    parser.add_argument(
        "--tokenizer", default="", metavar="PATH", help="folder, hub id, or smollm2: token lengths"
    )
    parser.add_argument("--max-prompt-length", type=int, metavar="N", help="tokens")
    parser.add_argument("--max-length", type=int, metavar="N", help="tokens")
    parser.add_argument(
        "--truncation", default="error", choices=("error", "left", "right"), help="the run's data.truncation"
    )
    parser.add_argument(
        "--reward", default="", metavar="NAME|FILE[:FUNC]", help="rl: try each ground truth on this reward"
    )
    parser.add_argument("--no-near", action="store_true", help="skip the search for near duplicates")
    parser.add_argument("--threshold", type=float, default=0.8, help="similarity of near duplicates, 0 to 1")
    parser.add_argument("--html", default="", metavar="FILE", help="write the report as one HTML page")
    _options(parser.add_argument_group("conversion"))
    _json_flag(parser)


def _split_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--val-size",
        default="",
        metavar="N",
        help="validation rows: a share below 1 or a count; default min(5%%, 500), 0: none",
    )
    parser.add_argument("--seed", type=int, default=0)


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    return run(build_parser().parse_args(argv))


def run(args: argparse.Namespace) -> int:
    """Run a parsed command; user errors become lines on stderr and exit code 2."""
    signal.signal(signal.SIGTERM, _stop)  # a terminated conversion tidies up as an interrupted one does
    try:
        with no_traceback("system"):
            return int(args.run(args))
    except DataError as problem:
        for line in problem.problems:
            print(line, file=sys.stderr)
        return USER_ERROR
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130
