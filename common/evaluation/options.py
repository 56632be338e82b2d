"""The flags of test.sh: defaults < --config FILE < flags. `-` and `_` are the same."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from common.launcher.errors import UserError

TRUE_FLAGS = (
    "single",
    "batch",
    "use_vllm",
    "rescore",
    "export_only",
    "overwrite",
    "show_prompt",
    "enforce_eager",
)
DESCRIPTION = """Evaluate a model or checkpoint: chat with it, or score it on a file.

  ./test.sh --model_path last:grpo --single
  ./test.sh --model_path last:grpo --batch --input_file test.json --output_file results.xlsx
  ./test.sh --compare smollm2 last:grpo --batch --input_file grpo/data/val.jsonl --temperature 0
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            word = message.split(": ", 1)[1].split()[0]
            message = (
                f"unknown flag {word}{_near(word.lstrip('-'), _names(self))} (./test.sh --help lists all)"
            )
        raise UserError(message)


def _names(parser: argparse.ArgumentParser) -> list[str]:
    return [action.dest for action in parser._actions if action.dest != "help"]


def _near(word: str, names: Sequence[str], dash: str = "--") -> str:
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"; did you mean {dash}{near[0]}?" if near else ""


def make_parser() -> argparse.ArgumentParser:
    """Every flag with its default and meaning."""
    parser = _Parser(
        prog="./test.sh",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--model_path",
        default="",
        help="HF id or folder, LoRA adapter, verl checkpoint, last, last:grpo, best, a run",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--single", action="store_true", help="chat in the terminal (the default)")
    mode.add_argument("--batch", action="store_true", help="answer and score every row of --input_file")
    add("--config", type=Path, help="YAML file of these flags; a flag wins over it")
    add("--use_vllm", action="store_true", help="vLLM instead of transformers")

    data = parser.add_argument_group("data")
    data.add_argument("--input_file", default="", help="JSON, JSONL, CSV, XLSX or Parquet")
    data.add_argument(
        "--output_file",
        type=Path,
        help=".xlsx, .json, .jsonl or .csv; default: named by model, data, settings",
    )
    data.add_argument("--limit", type=int, default=0, help="only the first rows; 0 = all")
    data.add_argument("--prompt_field", default="", help="column with the prompt")
    data.add_argument("--answer_field", default="", help="column with the ground truth")
    data.add_argument("--group_by", default="", help="columns to group scores by; default: the usual ones")
    data.add_argument(
        "--output_dir", type=Path, help="the launchers' OUTPUT_DIR, searched for runs [outputs]"
    )

    text = parser.add_argument_group("template and sampling")
    text.add_argument(
        "--template",
        default="default",
        help="default (the tokenizer's), chatml, llama, llama2, llama3, none, FILE.jinja",
    )
    text.add_argument("--chat_template_kwargs", default="", help="JSON object for the tokenizer's template")
    text.add_argument("--system_prompt", default="", help="for rows without a system message")
    text.add_argument(
        "--sampling", choices=["custom", "train", "val"], default="custom", help="take the run's values"
    )
    text.add_argument("--temperature", type=float, default=0.7, help="0 = greedy")
    text.add_argument("--top_p", type=float, default=1.0)
    text.add_argument("--top_k", type=int, default=0, help="0 = all")
    text.add_argument("--repetition_penalty", type=float, default=1.0)
    text.add_argument("--max_new_tokens", type=int, default=512)
    text.add_argument("--n", type=int, default=1, help="answers per prompt, for avg@n, pass@k, maj@k")
    text.add_argument("--seed", type=int, default=0)
    text.add_argument(
        "--show_prompt", action="store_true", help="print the first prompt as the model sees it"
    )

    score = parser.add_argument_group("scores")
    score.add_argument(
        "--reward",
        default="",
        help="FILE.py[:function], common:math, judge:CONFIG.yaml, none; default: the run's",
    )
    score.add_argument("--reward_kwargs", default="", help="JSON object of its keyword arguments")
    score.add_argument("--reward_timeout", type=float, default=120.0, help="seconds for one score")
    score.add_argument(
        "--threshold", type=float, default=0.5, help="right = `acc`, else the score, at or above this"
    )
    score.add_argument(
        "--rescore", action="store_true", help="score --output_file's answers again, generate nothing"
    )
    score.add_argument("--export_only", action="store_true", help="write --output_file from its record again")
    score.add_argument("--overwrite", action="store_true", help="start over instead of going on")
    score.add_argument(
        "--compare", nargs="+", default=[], metavar="X", help="two or more models or result files"
    )
    score.add_argument(
        "--sweep", default="", metavar="RUN", help="every step of a run: its name or checkpoint folder"
    )

    hardware = parser.add_argument_group("model and hardware")
    hardware.add_argument("--step", type=int, help="of a run; default: the newest (best: the best)")
    hardware.add_argument("--base_model", default="", help="base of a LoRA adapter that does not name it")
    hardware.add_argument("--lora_alpha", type=float, help="instead of the recorded one")
    hardware.add_argument(
        "--dtype", default="auto", help="bfloat16, float16, float32; auto = the run's precision"
    )
    hardware.add_argument("--batch_size", type=int, default=0, help="prompts at once; 0 = 64, vLLM: 256")
    hardware.add_argument("--tp", type=int, default=1, help="vLLM: GPUs that share the model")
    hardware.add_argument("--gpu_memory_utilization", type=float, default=0.9, help="vLLM")
    hardware.add_argument("--max_model_len", type=int, default=0, help="context; 0 = what the data needs")
    hardware.add_argument("--enforce_eager", action="store_true", help="vLLM: no CUDA graphs, starts faster")
    return parser


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line.

    Raises:
        UserError: an unknown flag or key, a wrong type or value, or flags that do not go together.
    """
    parser = make_parser()
    words = [_with_underscores(word) for word in arguments]
    first = _Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    own, _rest = first.parse_known_args(words)
    given = _config(own.config, parser) if own.config else []
    options = parser.parse_args([*given, *words])
    options.argv = list(arguments)
    options.given = {word[2:].partition("=")[0] for word in [*given, *words] if word.startswith("--")}
    check(options)
    return options


def _with_underscores(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _config(path: Path, parser: argparse.ArgumentParser) -> list[str]:
    """The flags of a YAML file, as words before the command line's own."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise UserError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"--config {path} must hold one `flag: value` per line")
    names, words = _names(parser), []
    for key, value in content.items():
        name = str(key).lstrip("-").replace("-", "_")
        if name not in names or name == "config":
            raise UserError(f"--config {path}: unknown key {key}{_near(name, names, '')}")
        if name in TRUE_FLAGS:
            if not isinstance(value, bool):
                raise UserError(f"--config {path}: {key} must be true or false")
            words += [f"--{name}"] if value else []
        elif name == "compare":
            words += ["--compare", *map(str, value if isinstance(value, list) else [value])]
        elif value is not None:
            words.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return words


def check(options: argparse.Namespace) -> None:
    """Refuse values and combinations that cannot mean anything.

    Raises:
        UserError: one line each.
    """
    from common.evaluation.output import SUFFIXES

    problems = []
    bounds: dict[str, tuple[float, float]] = {
        "temperature": (0, 100),
        "top_p": (1e-6, 1),
        "top_k": (0, 10**9),
        "repetition_penalty": (1e-6, 100),
        "max_new_tokens": (1, 10**9),
        "n": (1, 10**6),
        "limit": (0, 10**12),
        "batch_size": (0, 10**6),
        "tp": (1, 10**4),
        "gpu_memory_utilization": (0.01, 1),
        "reward_timeout": (0.001, 10**6),
    }
    for name, (low, high) in bounds.items():
        if not low <= getattr(options, name) <= high:
            problems.append(f"--{name} {getattr(options, name):g} must be between {low:g} and {high:g}")
    if options.temperature == 0 and options.n > 1 and options.sampling == "custom":
        problems.append(
            f"--n {options.n} with --temperature 0 gives {options.n} times the same answer: set --temperature 0.7"
        )
    for name in ("chat_template_kwargs", "reward_kwargs"):
        setattr(options, name, _json_object(name, getattr(options, name), problems))
    reads = options.rescore or options.export_only
    if options.output_file and options.output_file.suffix.lower() not in SUFFIXES:
        problems.append(
            f"--output_file {options.output_file}: the ending must be one of {', '.join(SUFFIXES)}"
        )
    if reads and not options.output_file:
        problems.append("--rescore and --export_only need --output_file: the results to read")
    several = bool(options.compare) + bool(options.sweep)
    if several > 1 or (several and reads):
        problems.append("--compare, --sweep, --rescore and --export_only are different tasks: give one")
    if len(options.compare) == 1:
        problems.append("--compare needs two or more models or result files")
    if several or reads:
        options.batch = True
    elif not options.model_path:
        problems.append("--model_path is missing: a folder, a hub id, last, best, a run's name, or smollm2")
    if (
        options.batch
        and not options.input_file
        and not reads
        and not all(map(is_result, options.compare or [""]))
    ):
        problems.append("--batch needs --input_file: JSON, JSONL, CSV, XLSX or Parquet")
    if options.single and not options.batch and (options.input_file or options.output_file):
        problems.append("--single is the chat; --input_file and --output_file belong to --batch")
    elif options.input_file and not options.batch:
        problems.append("--input_file needs --batch (without it test.sh is a chat)")
    if problems:
        raise UserError("\n".join(problems))


def is_result(name: str) -> bool:
    """Whether *name* is a result file of an earlier evaluation rather than a model."""
    from common.evaluation.output import SUFFIXES

    return Path(name).suffix.lower() in SUFFIXES and Path(name).is_file()


def _json_object(name: str, text: str | dict[str, Any], problems: list[str]) -> dict[str, Any]:
    if isinstance(text, dict) or not text:
        return dict(text or {})
    try:
        value = json.loads(text)
    except ValueError as error:
        problems.append(f"--{name} is not JSON: {error}")
        return {}
    if not isinstance(value, dict):
        problems.append(f"--{name} must be a JSON object like '{{\"key\": 1}}'")
        return {}
    return value
