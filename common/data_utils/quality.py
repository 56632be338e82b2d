"""The quality report: one pass over the source files, every finding with the rows it concerns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from common.data_utils import checks
from common.data_utils.chunkwork import convert_items
from common.data_utils.duplicates import THRESHOLD
from common.data_utils.errors import DataError
from common.data_utils.findings import Finding, Histogram, Place, Report, histogram
from common.data_utils.pipeline import Progress, plan_source
from common.data_utils.readers import Bad, chunks, read_chunk
from common.data_utils.records import Options, Plan, Rejected, Row
from common.data_utils.sources import Resolved, resolve, split_list

TRUNCATION = ("error", "left", "right")
_ORDER = {"error": 0, "warning": 1, "info": 2}


def _rows(
    resolved: Resolved, plan: Plan, progress: Callable[[int], None]
) -> Iterator[tuple[Place, Row | None, Row | Rejected]]:
    """(place, source row if it could be read, training row or why there is none); `progress` gets bytes."""
    for source in resolved.files:
        base = 0
        size, done = source.path.stat().st_size, 0
        for chunk in chunks(source, plan.options.encoding, resolved.split):
            items, lines = read_chunk(chunk)
            for number, item in items:
                place = Place(source.label, base + number)
                raw = None if isinstance(item, Bad) else item
                rejected: list[Rejected] = []
                rows, _ = convert_items([(base + number, item)], plan, source.label, rejected)
                yield place, raw, rows[0] if rows else rejected[0]
            base += lines
            read = (chunk.span[1] - chunk.span[0]) if chunk.span else len(chunk.data or b"")
            progress(min(read, size - done))
            done += min(read, size - done)
        progress(size - done)


class TokenLengths:
    """Lengths under the run's tokenizer, the limits, and rows the chat template refuses."""

    def __init__(
        self, tokenizer: str, task: str, max_prompt: int | None, most: int | None, truncation: str
    ) -> None:
        from common.data_utils.lengths import load_tokenizer

        self.tokenizer, self.task = load_tokenizer(tokenizer), task
        self.limits = (max_prompt, most)
        self.waiting: list[tuple[Place, Row]] = []
        self.prompts: list[int] = []
        self.wholes: list[int] = []
        prompt_text = (
            f"prompt longer than MAX_PROMPT_LENGTH={max_prompt}; verl leaves such rows out of training"
        )
        self.over_prompt = Finding("over_prompt_length", "warning", prompt_text)
        if truncation == "error":
            text = f"longer than MAX_LENGTH={most}; verl stops there unless data.truncation says to cut"
            self.over = Finding("over_length", "error", text)
        else:
            text = f"longer than MAX_LENGTH={most}; verl cuts such rows (data.truncation={truncation})"
            self.over = Finding("over_length", "warning", text)
        text = "the chat template does not print tools of the row: the model will not see them"
        self.unseen = Finding("tools_unseen", "warning", text)
        self.refused = Finding("template_refused", "error", "the tokenizer's chat template refuses the row")

    def see(self, place: Place, source: Row, row: Row) -> None:
        """Rows are tokenized in batches."""
        self.waiting.append((place, row))
        if len(self.waiting) >= 256:
            self._flush()

    def _flush(self) -> None:
        from common.data_utils.lengths import count

        for (place, _), found in zip(
            self.waiting, count(self.tokenizer, [row for _, row in self.waiting], self.task), strict=True
        ):
            if isinstance(found, str):
                self.refused.add(place, f"row {place.row}: {found}")
                continue
            self.prompts.append(found.prompt)
            self.wholes.append(found.whole)
            if self.limits[0] is not None and found.prompt > self.limits[0]:
                self.over_prompt.add(place, f"row {place.row}: {found.prompt} tokens")
            if self.limits[1] is not None and found.whole > self.limits[1]:
                self.over.add(place, f"row {place.row}: {found.whole} tokens")
            if found.unseen:
                self.unseen.add(place, f"row {place.row}: {', '.join(found.unseen)}")
        self.waiting.clear()

    def finish(self, stats: dict[str, Any]) -> list[Finding]:
        """Findings and statistics."""
        self._flush()
        stats["tokens"] = sum(self.wholes)
        return [self.refused, self.unseen, self.over_prompt, self.over]

    def histograms(self) -> list[Histogram]:
        """Of prompts and, where rows have answers, of whole rows."""
        found = []
        if self.prompts:
            found.append(histogram("tokens per prompt", self.prompts, self.limits[0]))
        if self.wholes and self.task != "rl":
            found.append(histogram("tokens per row", self.wholes, self.limits[1]))
        return found


def check(
    src: str,
    task: str,
    options: Options,
    *,
    val: str = "",
    tokenizer: str = "",
    max_prompt_length: int | None = None,
    max_length: int | None = None,
    truncation: str = "error",
    reward: str = "",
    near: bool = True,
    threshold: float = THRESHOLD,
    progress: Progress | None = None,
) -> Report:
    """Examine a source as training would use it.

    Args:
        src, val: sources; with `val`, overlap between the two is searched too.
        tokenizer: folder, hub id or "smollm2"; switches token lengths on.
        max_prompt_length, max_length: the run's limits, in tokens.
        truncation: the run's data.truncation; "error" makes rows over `max_length` an error (sft).
        reward: name or FILE[:function]; each ground truth is given to it as the answer (rl).
        near, threshold: near-duplicate search and its similarity.
        progress: called with (bytes done, bytes in all).

    Raises:
        DataError: a source cannot be read or recognised, a tokenizer or reward cannot be loaded.
    """
    started = time.perf_counter()
    if reward and task != "rl":
        raise DataError("--reward applies to --task rl only")
    if truncation not in TRUNCATION:
        raise DataError(f"unknown truncation {truncation!r}; known: {', '.join(TRUNCATION)}")
    trains = [resolve(name, options.split, "train") for name in split_list(src)]
    vals = [resolve(name, options.split, "val") for name in split_list(val)]
    if not trains:
        raise DataError("no data named: give a file, a folder or a hub id")
    bad, schema, texts = checks.BadRows(), checks.Schema(), checks.Texts()
    nearest = checks.NearDuplicatePrompts(threshold) if near else None
    leak = checks.Leak(nearest)
    active: list[checks.Check] = [checks.Roles(), checks.Duplicates(), texts]
    active += [nearest] if nearest is not None else []
    active += [leak] if vals else []
    lengths = TokenLengths(tokenizer, task, max_prompt_length, max_length, truncation) if tokenizer else None
    active += [lengths] if lengths is not None else []
    active += [checks.RewardCheck(reward)] if reward else []

    total = sum(item.path.stat().st_size for resolved in trains + vals for item in resolved.files)
    done = 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        if progress is not None:
            progress(done, total)

    sources: list[dict[str, Any]] = []
    rows_in = rows_ok = 0
    for resolved, role in [(item, "train") for item in trains] + [(item, "val") for item in vals]:
        plan = plan_source(resolved, task, options, role)
        about = {"name": resolved.name, "role": role, "format": plan.format, "reason": plan.reason}
        counts = {"rows_in": 0, "rows_ok": 0}
        for place, raw, outcome in _rows(resolved, plan, advance):
            counts["rows_in"] += 1
            if raw is not None and role == "train":
                schema.see(place, raw, None)
            if isinstance(outcome, Rejected):
                bad.add(outcome)
                continue
            counts["rows_ok"] += 1
            if role == "val":
                leak.see_val(place, outcome)
                continue
            for item in active:
                item.see(place, raw or {}, outcome)
        sources.append({**about, **counts, "columns": plan.columns, "notes": list(plan.notes)})
        rows_in += counts["rows_in"]
        rows_ok += counts["rows_ok"]

    stats: dict[str, Any] = {}
    findings = bad.finish(stats) + schema.finish(stats)
    for item in active:
        findings += item.finish(stats)
    if not rows_ok:
        findings.insert(0, Finding("no_rows", "error", "no row can be used", count=rows_in))
    found = sorted((item for item in findings if item.count), key=lambda item: _ORDER[item.severity])
    plots = (lengths.histograms() if lengths is not None else []) + texts.histograms()
    seconds = round(time.perf_counter() - started, 2)
    return Report(task, sources, rows_in, rows_ok, found, stats, plots, seconds)
