"""The last lines of a launch: what came out, where it is, what to do next."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from pathlib import Path
from typing import Any

from common.launcher import runs

ROOT = Path(__file__).resolve().parents[2]
# The first that a run has is its validation, as `validation` of monitor/config.yaml: of several answers their mean,
# not the best of them; of the dozens that DPO logs the share of pairs told right.
_VALIDATION = tuple(
    map(
        re.compile,
        (
            "^val-core/.*/acc/mean@",
            "^val-core/.*/reward/mean@",
            "^val-core/.*/mean@",
            "^val-core/",
            "^val/(rewards/accuracies|accuracy)$",
            "^val/loss$",
            "^val/",
        ),
    )
)
REWARD_KEYS = ("critic/score/mean", "train/loss")


def read_metrics(folder: Path, record: dict[str, Any]) -> list[tuple[int, dict[str, float]]]:
    """(step, metrics) of all attempts in order; a step that was repeated after a resume counts once."""
    steps: dict[int, dict[str, float]] = {}
    for attempt in record.get("attempts", []):
        path = folder / attempt["metrics"]
        if not path.is_file():
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
                steps.setdefault(int(entry["step"]), {}).update(entry["data"])
            except (ValueError, KeyError, TypeError):
                continue  # a line cut by a kill; the console log has its numbers
    return sorted(steps.items())


def validation_key(metrics: list[tuple[int, dict[str, float]]]) -> str | None:
    """The metric by which a run's checkpoints are compared; None where it has none."""
    keys = sorted({key for _, values in metrics for key in values if key.startswith(("val-core/", "val/"))})
    return next((key for pattern in _VALIDATION for key in keys if pattern.search(key)), None)


def lower_is_better(metric: str) -> bool:
    """Losses and perplexities fall as a model gets better."""
    return metric.rpartition("/")[2] in ("loss", "perplexity")


def lines_of(folder: Path, record: dict[str, Any]) -> list[str]:
    """The summary, a line each."""
    metrics = read_metrics(folder, record)
    trained = [(step, values) for step, values in metrics if any(key in values for key in REWARD_KEYS)]
    last = trained[-1][0] if trained else 0
    total = record.get("total_steps") or "?"
    lines = [f"run      {record['method']}/{record['run']}: {record['state']} at step {last} of {total}"]
    key = next((k for k in REWARD_KEYS if trained and k in trained[-1][1]), None)
    if key:
        width = min(5, len(trained))
        first = sum(values.get(key, 0.0) for _, values in trained[:width]) / width
        final = sum(values.get(key, 0.0) for _, values in trained[-width:]) / width
        lines.append(f"training {key} {first:.3f} (first {width} steps) -> {final:.3f} (last {width})")
    validation = validation_key(metrics)
    if validation:
        points = [
            (step, values[validation]) for step, values in metrics if values.get(validation) is not None
        ]
        if points:
            best = (min if lower_is_better(validation) else max)(points, key=lambda point: point[1])
            lines.append(
                f"validate {validation} {points[0][1]:.3f} (step {points[0][0]}) -> "
                f"{points[-1][1]:.3f} (step {points[-1][0]}), best {best[1]:.3f} at step {best[0]}"
            )
    if (record.get("stopped") or {}).get("kind") == "rule":
        lines.append(f"stopped  {record['stopped']['reason']} (STOP_ON)")
    lines.append(f"logs     {folder}")
    lines += _model_lines(record)
    if record["state"] != runs.FINISHED:
        lines.append(f"console  {folder / record['attempts'][-1]['console']}")
        if runs.latest_step(Path(record["checkpoint_dir"])) is not None:
            lines.append(f"go on    {record['method']}/train.sh --resume {record['run']}")
    return lines


def _model_lines(record: dict[str, Any]) -> list[str]:
    root = Path(record["checkpoint_dir"])
    step = runs.latest_step(root)
    if step is None:
        return ["model    none saved" + (" (SAVE_FREQ=0)" if record["knobs"].get("SAVE_FREQ") == "0" else "")]
    folder = root / f"global_step_{step}"
    exported = [p.parent for p in folder.glob("**/huggingface/*.safetensors")]
    if exported:
        model = exported[0]
        lines = [f"model    {model}"]
    else:
        model = folder
        lines = [f"model    {folder} (verl shards; python -m common.checkpoints export {folder} NEW_FOLDER)"]
    if (ROOT / "test.sh").is_file():
        lines.append(f"score it ./test.sh --model_path {model} --batch --input_file YOUR_DATA")
    return lines


def print_failure(folder: Path, record: dict[str, Any]) -> None:
    """Say why the newest attempt failed, to stderr; nothing when it did not."""
    from common.failures import Failure

    found = record.get("failure")
    if not found:
        return
    failure = Failure(**{**found, "traceback": tuple(found["traceback"])})
    log = folder / record["attempts"][-1]["console"]
    with contextlib.suppress(OSError):
        print("\n" + "\n".join(failure.lines(log)), file=sys.stderr, flush=True)


def print_summary(folder: Path, record: dict[str, Any]) -> None:
    """Print the summary to stderr."""
    with contextlib.suppress(OSError):
        print("\n" + "\n".join(lines_of(folder, record)), file=sys.stderr, flush=True)
