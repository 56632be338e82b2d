"""SFT data as the trainer reads it: tokenized at launch, so that every bad or cut row is known before training."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.launcher import checks
from common.launcher.errors import UserError
from common.launcher.resolve import override_key

_DATASET = Path(__file__).resolve().parents[1] / "chat_tokens" / "dataset.py"
# verl's keys that upstream's dataset reads at every step, and what decides the same here.
_DECIDED_AT_LAUNCH = {
    "data.max_length": "--max_length",
    "data.truncation": "--truncation",
    "data.enable_thinking_default": "--enable_thinking",
    "data.apply_chat_template_kwargs": "--chat_template",
    "model.custom_chat_template": "--chat_template",
}


@dataclass
class TokenData:
    """Token files of a run and what became of its rows."""

    train: str
    val: str
    rows: int
    dataset: dict[str, str]
    counts: dict[str, Any]


def prepare(
    knobs: dict[str, str], data: Any, model: str, extra: list[str], sampled: bool = False
) -> TokenData:
    """Tokenize training and validation rows (cached); tell what was cut or left out.

    Rows with images, videos or audio go to upstream's dataset, which loads them.

    Args:
        data: ``common.data_utils.Prepared`` for the task "sft".
        model: folder or hub id whose tokenizer and chat template are used.
        sampled: of large files that were not tokenized yet a sample will do, as nothing is started.

    Raises:
        UserError: rows that cannot be learned or are too long, a line each.
    """
    from common.chat_tokens.store import Settings, tokenize
    from common.data_utils.errors import DataError
    from common.data_utils.lengths import stride

    if _has_media(Path(data.train)):
        if knobs["TRUNCATION"] == "drop":
            raise UserError("TRUNCATION=drop counts text tokens: rows with images need error or cut")
        return TokenData(data.train, data.val or "", data.train_rows, data.dataset_class or {}, {})
    for word in extra:
        knob = _DECIDED_AT_LAUNCH.get(override_key(word))
        if knob:
            raise UserError(f"{word}: rows are tokenized before verl starts, so use {knob}")
    settings = Settings(
        tokenizer=model,
        max_length=checks.number(knobs, "MAX_LENGTH"),
        truncation=knobs["TRUNCATION"],
        chat_template=read_template(knobs.get("CHAT_TEMPLATE", "")),
        thinking={"true": True, "false": False}.get(knobs.get("ENABLE_THINKING", "auto")),
    )
    files, counts = {}, {}
    train_rows = 0
    try:
        for name, path, rows in (
            ("TRAIN_DATA", data.train, data.train_rows),
            ("VAL_DATA", data.val, data.val_rows),
        ):
            if not path:
                continue
            made, counts[name] = tokenize(Path(path), settings, stride(rows) if sampled else 1)
            files[name], looked = made or path, counts[name]
            if made is None:
                print(f"note: {of_sample(name, looked.rows, rows)}", file=sys.stderr)
            if name == "TRAIN_DATA":
                train_rows = looked.samples if made else rows * looked.samples // looked.rows
    except DataError as error:
        raise UserError("\n".join(f"data: {line}" for line in str(error).splitlines())) from None
    for name, count in counts.items():
        for note in count.notes(name, settings):
            print(f"note: {note}", file=sys.stderr)
    if "VAL_DATA" in counts and not counts["VAL_DATA"].samples:
        raise UserError(f"VAL_DATA: no row fits into MAX_LENGTH={settings.max_length}")
    return TokenData(
        str(files["TRAIN_DATA"]),
        str(files.get("VAL_DATA", "")),
        train_rows,
        {"path": str(_DATASET), "name": "TokenDataset"},
        {name: {k: v for k, v in asdict(c).items() if k != "problems"} for name, c in counts.items()},
    )


def of_sample(name: str, looked: int, rows: int) -> str:
    """What is said where not all rows were looked at."""
    return (
        f"{name}: looked at {looked:,} of {rows:,} rows, evenly spread; a launch tokenizes all of them, once"
    )


def read_template(path: str) -> str:
    """Text of a Jinja chat template; "" for none.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return Path(path).expanduser().read_text(encoding="utf-8") if path else ""
    except (OSError, UnicodeError) as error:
        raise UserError(f"CHAT_TEMPLATE={path} cannot be read ({error}): give a Jinja file") from None


def _has_media(path: Path) -> bool:
    import pyarrow.parquet as pq

    from common.data_utils.targets import MEDIA

    return bool(set(pq.read_schema(path).names) & set(MEDIA))
