"""Datasets named by their hub id, through the `datasets` library and its local cache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from common.data_utils.atomic import write_text
from common.data_utils.errors import DataError
from common.data_utils.sources import Resolved, Source, pick_split


def _memo_file(folder: Path | None, name: str, split: str, role: str) -> Path | None:
    key = hashlib.sha256(json.dumps([name, split, role]).encode()).hexdigest()[:16]
    return None if folder is None else folder / f"hub-{key}.json"


def download(name: str, split: str, role: str, memo: Path | None) -> Resolved:
    """Arrow files of `owner/name[:config][:split]`; remembered, so that later calls import no `datasets`.

    Raises:
        DataError: no such file or dataset, no network, or several splits and none that suits.
    """
    record = _memo_file(memo, name, split, role)
    if record is not None and record.is_file():
        kept = json.loads(record.read_text(encoding="utf-8"))
        files = [Path(path) for path in kept["files"]]
        if all(path.is_file() for path in files):
            return Resolved(name, _sources(files, name), tuple(kept["notes"]))
    ident, *rest = name.split(":")
    files, notes = _load(ident, rest, split, role, name)
    if record is not None:
        record.parent.mkdir(parents=True, exist_ok=True)
        write_text(record, json.dumps({"name": name, "files": [str(path) for path in files], "notes": notes}))
    return Resolved(name, _sources(files, name), tuple(notes))


def _sources(files: list[Path], name: str) -> tuple[Source, ...]:
    return tuple(Source(path, "arrow", False, f"{name} ({path.name})") for path in files)


def _reachable() -> bool:
    """Whether the hub answers at all; behind a proxy only the proxy can tell."""
    if any(os.environ.get(name) for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")):
        return True
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((host.hostname or "", host.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


@contextmanager
def _quietly() -> Iterator[None]:
    """Without a network, go straight to the local cache instead of retrying for half a minute; no log lines."""
    before = os.environ.get("HF_HUB_OFFLINE")
    if before is None and not _reachable():
        os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub when it is imported
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        if before is None:
            os.environ.pop("HF_HUB_OFFLINE", None)


def _load(ident: str, rest: list[str], split: str, role: str, name: str) -> tuple[list[Path], list[str]]:
    config = rest[0] if rest else None
    if len(rest) > 1:
        split = rest[1]
    try:
        with _quietly():
            import datasets

            found = datasets.load_dataset(ident, config)
    except Exception as problem:  # every network and hub failure ends here: one line, with its cause
        first = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise DataError(
            f"{name}: no such file or folder, and as a hub dataset it could not be loaded ({first[:200]}); "
            "on a machine without network, download it elsewhere and name the folder"
        ) from None
    chosen = pick_split({key: [] for key in found}, split, role, name)
    others = [key for key in found if key != chosen]
    notes = [f"split {chosen} is used; not used here: {', '.join(others)}"] if others else []
    return [Path(item["filename"]) for item in found[chosen].cache_files], notes
