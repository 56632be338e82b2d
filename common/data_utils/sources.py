"""What a user may name as data: a file, a folder of shards, a saved or plain HF dataset, a hub id."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from common.data_utils.errors import DataError

KINDS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".xlsx": "xlsx",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
TEXT_KINDS = ("json", "csv", "tsv")
_SIDECARS = {"dataset_info.json", "state.json", "dataset_dict.json", "dataset_infos.json", "metadata.json"}
_TRAIN = ("train", "training")
_EVAL = ("validation", "valid", "val", "dev", "eval", "test")
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")


@dataclass(frozen=True)
class Source:
    """One file to read. `label` names it in messages; `packed` means gzip."""

    path: Path
    kind: str
    packed: bool
    label: str


@dataclass(frozen=True)
class Resolved:
    """The files behind what the user named, and what to tell about the choice.

    `split` is the list to read inside a JSON file that holds one per split.
    """

    name: str
    files: tuple[Source, ...]
    notes: tuple[str, ...] = ()
    split: str = ""


def file_source(path: Path, label: str | None = None) -> Source | None:
    """The file as a source; None when its name tells of no supported type."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = bool(suffixes) and suffixes[-1] == ".gz"
    kind = KINDS.get(
        (suffixes[-2] if len(suffixes) > 1 else "") if packed else (suffixes[-1] if suffixes else "")
    )
    if kind is None or (packed and kind not in TEXT_KINDS):
        return None
    return Source(path, kind, packed, label or str(path))


def split_list(text: str) -> list[str]:
    """`A,B,C` as three sources, unless a path really has that name."""
    text = text.strip()
    if not text or Path(text).expanduser().exists():
        return [text] if text else []
    return [part.strip() for part in text.split(",") if part.strip()]


def resolve(name: str, split: str = "", role: str = "train", hub_memo: Path | None = None) -> Resolved:
    """Find the files behind a name.

    Args:
        name: a path, `PATH:SPLIT`, or a hub id `owner/name[:config][:split]`.
        split: which split of a folder or hub dataset; "" chooses by `role`.
        role: "train" or "val".
        hub_memo: folder that remembers where hub datasets were downloaded to.

    Raises:
        DataError: nothing there, an unsupported file type, or a hub that cannot be reached.
    """
    if not name:
        raise DataError("no data named: give a file, a folder or a hub id")
    path = Path(name).expanduser()
    if not path.exists() and ":" in name:
        head, _, tail = name.rpartition(":")
        if Path(head).expanduser().exists():
            path, split = Path(head).expanduser(), tail
            if path.is_file() and (file_source(path) or Source(path, "", False, "")).kind != "json":
                raise DataError(f"{name}: only folders, hub datasets and JSON files have splits")
    if path.is_dir():
        return _folder(path, split, role)
    if path.exists():
        source = file_source(path, name)
        if source is None:
            raise DataError(
                f"{name}: unsupported file type; supported: {', '.join(KINDS)}, .gz of json, jsonl, csv, tsv"
            )
        if not os.access(path, os.R_OK):
            raise DataError(f"{name}: no permission to read it")
        return Resolved(name, (source,), split=split)
    if (
        _HUB_ID.match(name.split(":")[0])
        and file_source(path) is None
        and not name.startswith((".", "/", "~"))
    ):
        from common.data_utils.hub import download

        return download(name, split, role, hub_memo)
    raise DataError(f"{name}: no such file or folder")


def _folder(folder: Path, split: str, role: str) -> Resolved:
    if (folder / "dataset_dict.json").is_file():
        names = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8")).get("splits", [])
        chosen = pick_split({str(name): [] for name in names}, split, role, str(folder))
        note = _unused(list(names), chosen)
        return Resolved(str(folder), _saved(folder / chosen, folder), note)
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return Resolved(str(folder), _saved(folder, folder))
    groups: dict[str, list[Source]] = {}
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
        source = None if hidden or path.name in _SIDECARS or not path.is_file() else file_source(path)
        if source is not None and not path.name.endswith(".rejected.jsonl"):
            groups.setdefault(_split_of(path.relative_to(folder)), []).append(source)
    if not groups:
        raise DataError(f"{folder}: holds no data files; supported: {', '.join(KINDS)} and .gz")
    chosen = pick_split(groups, split, role, str(folder))
    return Resolved(str(folder), tuple(groups[chosen]), _unused(list(groups), chosen))


def _saved(folder: Path, root: Path) -> tuple[Source, ...]:
    """Files of a folder made by `Dataset.save_to_disk`, in the order its state file gives."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        names = [item["filename"] for item in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{folder}: is not a complete saved dataset (state.json); save it again") from None
    if state.get("_indices_data_files"):
        raise DataError(
            f"{folder}: was saved with an index mapping; call flatten_indices() before save_to_disk()"
        )
    return tuple(Source(folder / name, "arrow", False, str(folder / name)) for name in names)


def _split_of(path: Path) -> str:
    """train/validation/test as said by the file name (train-00000-of-00002.parquet) or its folders."""
    for part in (path.name.split(".")[0], *reversed(path.parts[:-1])):
        word = re.split(r"[-_.]", part.lower())
        for name in (*_TRAIN, *_EVAL):
            if name in (word[0], word[-1]):
                return name
    return ""


def pick_split(groups: dict[str, list[Source]], split: str, role: str, label: str) -> str:
    """The split to read.

    Raises:
        DataError: a split that is not there, or several and none that suits the role.
    """
    names = list(groups)
    if split:
        if split not in names:
            raise DataError(
                f"{label}: has no split {split!r}; it has: {', '.join(name or '(all)' for name in names)}"
            )
        return split
    if len(names) == 1:
        return names[0]
    for name in _TRAIN if role == "train" else _EVAL:
        if name in names:
            return name
    listed = ", ".join(name or "(unnamed)" for name in names)
    raise DataError(f"{label}: has the splits {listed}; choose one as {label}:SPLIT")


def _unused(names: list[str], chosen: str) -> tuple[str, ...]:
    rest = [name or "(unnamed)" for name in names if name != chosen]
    return (f"split {chosen or '(unnamed)'} is used; not used here: {', '.join(rest)}",) if rest else ()
