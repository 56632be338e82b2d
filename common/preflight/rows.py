"""The training data as verl will read it: files, columns, rows, lengths of prompts, the chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.preflight.finding import Finding, error, note, warning
from common.preflight.job import Job

SAMPLE = 1024
_SHORT_FOR_THINKING = 1024
_COLUMNS = {
    "rl": ("prompt", "data_source", "reward_model"),
    "sft": ("messages", "input_ids"),
    "preference": ("chosen", "rejected"),
}


@dataclass
class Rows:
    """What is known of the data.

    Attributes:
        train, val: rows that verl will see; None when not known.
        lengths: of training prompts in tokens: median, p95, longest, sampled, rows, over_prompt; {} when not known.
    """

    train: int | None = None
    val: int | None = None
    lengths: dict[str, Any] = field(default_factory=dict)


def look(job: Job) -> tuple[Rows, list[Finding]]:
    """Rows by the launcher's record where its files are the ones verl will read, else by the files themselves."""
    found: list[Finding] = []
    counts: dict[str, int | None] = {}
    for name in ("train", "val"):
        paths = job.get(f"data.{name}_files")
        listed = paths if isinstance(paths, list) else [] if paths is None else [paths]
        sizes = []
        for path in listed:
            size, problem = _rows_of(job, str(path), name)
            sizes.append(size)
            found += [problem] if problem else []
        counts[name] = None if not sizes or None in sizes else sum(size or 0 for size in sizes)
    rows = Rows(counts["train"], counts["val"])
    rows.lengths = _lengths(job)
    if job.rl and rows.train is not None:
        rows.train = _kept(job, rows)
    most = job.number("data.train_max_samples", -1)
    if rows.train is not None and most > 0:
        rows.train = min(rows.train, most)
    if job.rl and not job.get("data.val_files"):
        found.append(
            error(
                "data.val_files is empty: verl's RL trainers cannot start without; set VAL_DATA", "VAL_DATA"
            )
        )
    return rows, found


def check(job: Job, rows: Rows) -> Iterator[Finding]:
    """Lengths and template."""
    if job.rl:
        yield from _long_prompts(job, rows)
        yield from _validation(job, rows)
    text = template_text(job)
    if text == "":
        yield error(
            f"{job.name(f'{job.model_key}.path')}: the tokenizer has no chat template: use the instruct model or add a "
            "template to it (SFT: CHAT_TEMPLATE)",
            "MODEL_PATH",
        )
    elif text and job.rl:
        yield from _thinking_rl(job, text)
    elif text and job.command.task == "sft":
        yield from _thinking_sft(job, text)
    custom = job.get("data.custom_cls.path")
    if custom and not str(custom).startswith("pkg://") and not Path(str(custom)).is_file():
        yield error(f"data.custom_cls.path={custom} does not exist", "data.custom_cls.path")


def _rows_of(job: Job, path: str, name: str) -> tuple[int | None, Finding | None]:
    """Rows of one file by its own footer, and what is wrong with it."""
    key = f"data.{name}_files"
    file, knob = Path(path).expanduser(), job.name(key)
    if "://" in path:
        return None, None
    if not file.is_file():
        return None, error(f"{knob}: {path} does not exist", knob)
    if file.suffix in (".json", ".jsonl") and job.rl:
        return sum(1 for line in file.open("rb") if line.strip()), None
    if file.suffix != ".parquet":
        kinds = "Parquet, JSON or JSON Lines" if job.rl else "Parquet"
        return None, error(
            f"{knob}: {path} is no file that verl reads ({kinds}): give it as {key_knob(name)}, which converts",
            knob,
        )
    import pyarrow.parquet as pq

    try:
        meta = pq.read_metadata(file)
    except (OSError, ValueError) as problem:
        return None, error(f"{knob}: {path} is no Parquet file ({str(problem).splitlines()[0]})", knob)
    columns = set(meta.schema.to_arrow_schema().names)
    needed = _COLUMNS[job.command.task]
    if job.rl:
        needed = (str(job.get("data.prompt_key", "prompt")), *needed[1:])
    missing = [column for column in needed if column not in columns]
    lacking = len(missing) == len(needed) if job.command.task == "sft" else bool(missing)
    if lacking and not (job.get("data.custom_cls.path") and job.users("data.custom_cls")):
        return meta.num_rows, error(
            f"{knob}: {path} has no column {' or '.join(missing)} (found: {', '.join(sorted(columns))}): give it as "
            f"{key_knob(name)}, which converts",
            knob,
        )
    return meta.num_rows, None


def key_knob(name: str) -> str:
    """The knob of the training or the validation data."""
    return "TRAIN_DATA" if name == "train" else "VAL_DATA"


def _lengths(job: Job) -> dict[str, Any]:
    """Prompt lengths as the launcher counted them, or of a sample of the file that verl will read."""
    data = job.record.get("data") or {}
    if data.get("overlong") and not job.users("data.train_files"):
        return dict(data["overlong"].get("train") or {})
    path = job.get("data.train_files")
    if not job.rl or not isinstance(path, str) or not path.endswith(".parquet") or not Path(path).is_file():
        return {}
    if not Path(job.model).is_dir():
        return {}
    import pyarrow.parquet as pq

    from common.data_utils.errors import DataError
    from common.data_utils.lengths import load_tokenizer, prompt_lengths

    try:
        meta = pq.read_metadata(path)
        if "prompt" not in meta.schema.to_arrow_schema().names:
            return {}
        every = max(1, meta.num_rows // SAMPLE)
        return dict(
            prompt_lengths(Path(path), load_tokenizer(job.model), job.number("data.max_prompt_length"), every)
        )
    except (DataError, KeyError, OSError, ValueError):
        return {}  # said by the checks of the file and of the template


def _kept(job: Job, rows: Rows) -> int | None:
    """Rows that stay when long prompts are left out; a sample gives a share."""
    over, counted = rows.lengths.get("over_prompt", 0), rows.lengths.get("rows", 0)
    if rows.train is None or not job.get("data.filter_overlong_prompts") or not over or not counted:
        return rows.train
    return rows.train - (over if counted == rows.train else rows.train * over // counted)


def _long_prompts(job: Job, rows: Rows) -> Iterator[Finding]:
    over, counted, longest = (rows.lengths.get(name, 0) for name in ("over_prompt", "rows", "longest_prompt"))
    limit = job.number("data.max_prompt_length", 0)
    if not over or not counted:
        return
    share = f"{over} of {counted} prompts ({over / counted:.0%}) are over {job.name('data.max_prompt_length')}={limit}"
    if not job.get("data.filter_overlong_prompts"):
        yield error(
            f"{share}, and with data.filter_overlong_prompts=False verl shrinks the room for their answers down to one "
            f"token: leave the key out, or use a limit of {longest}",
            "MAX_PROMPT_LENGTH",
        )
    elif over * 10 > counted:
        yield warning(
            f"{share} tokens and are left out (longest: {longest}): is that meant?", "MAX_PROMPT_LENGTH"
        )


def _validation(job: Job, rows: Rows) -> Iterator[Finding]:
    """verl asserts that a validation batch is left."""
    if rows.val == 0:
        yield error(f"{job.name('data.val_files')} has no rows: verl cannot start without", "VAL_DATA")
    found = ((job.record.get("data") or {}).get("overlong") or {}).get("val") or {}
    over, counted = found.get("over_prompt", 0), found.get("rows", 0)
    own = job.users("data.val_files") or not job.get("data.filter_overlong_prompts")
    if 0 < counted <= over and not own:
        longest = found.get("longest_prompt", 0)
        yield error(
            f"all {counted} validation prompts are over {job.name('data.max_prompt_length')}="
            f"{job.number('data.max_prompt_length', 0)} tokens and are left out: verl cannot start without"
            + (f"; {longest} fits the longest" if longest else ""),
            "MAX_PROMPT_LENGTH",
        )


def template_text(job: Job) -> str | None:
    """The chat template of the model's folder, "" where it has none, None where that cannot be told."""
    custom = job.get(f"{job.model_key}.custom_chat_template")
    if custom:
        return str(custom)
    folder = Path(str(job.get(f"{job.model_key}.tokenizer_path") or job.model)).expanduser()
    if not (folder / "config.json").is_file():
        return None
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8", errors="replace")
    if list(folder.glob("additional_chat_templates/*.jinja")) or (folder / "chat_template.json").is_file():
        return None
    try:
        found = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get(
            "chat_template"
        )
    except (OSError, ValueError):
        return None
    return found if isinstance(found, str) else "" if found is None else None


def _thinking_rl(job: Job, text: str) -> Iterator[Finding]:
    arguments = job.get("data.apply_chat_template_kwargs", {})
    room = job.number("data.max_response_length", 0)
    thinks = "enable_thinking" in text and arguments.get("enable_thinking", True)
    if thinks and room < _SHORT_FOR_THINKING:
        yield warning(
            f"the model's template thinks before it answers, and {job.name('data.max_response_length')}={room} tokens "
            "seldom hold both: use 4096 or more, or +data.apply_chat_template_kwargs.enable_thinking=False",
            "MAX_RESPONSE_LENGTH",
        )
    if "enable_thinking" in arguments and "enable_thinking" not in text:
        yield error(
            "data.apply_chat_template_kwargs.enable_thinking has no effect: the model's template does not know it",
            "data.apply_chat_template_kwargs",
        )


def _thinking_sft(job: Job, text: str) -> Iterator[Finding]:
    rows = _assistant_texts(Path(str((job.record.get("data") or {}).get("train", ""))))
    if not rows:
        return
    thinking = sum("<think>" in answer for answer in rows)
    sample = f"{thinking} of {len(rows)} sampled answers"
    chosen = job.get("data.enable_thinking_default")
    if "enable_thinking" in text and thinking == 0 and chosen is not False:
        yield warning(
            f"the template thinks by default, but {sample} hold a <think> block: it would learn to skip what its "
            "template announces; use ENABLE_THINKING=false",
            "ENABLE_THINKING",
        )
    elif thinking and "think" not in text:
        yield note(
            f"{sample} hold a <think> block, which the model's template does not know: it is learned as plain text"
        )


def _assistant_texts(file: Path) -> list[str]:
    """Assistant turns of the first rows of a converted SFT file."""
    import pyarrow.parquet as pq

    if not file.is_file():
        return []
    with pq.ParquetFile(file) as parquet:
        if "messages" not in parquet.schema_arrow.names:
            return []
        batch = next(parquet.iter_batches(batch_size=SAMPLE, columns=["messages"]), None)
    rows = batch.to_pylist() if batch is not None else []
    turns = [turn for row in rows for turn in row["messages"] or []]
    return [str(turn.get("content") or "") for turn in turns if turn.get("role") == "assistant"]
