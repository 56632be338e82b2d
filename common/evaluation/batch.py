"""One model on one file: generate what is missing, score beside it, then make the files that people open."""

from __future__ import annotations

import hashlib
import json
import signal
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from common.data_utils.atomic import write_text
from common.evaluation import export, output, scores
from common.evaluation.backends import Answer, Backend, Request, load
from common.evaluation.cells import text_of
from common.evaluation.items import Item, groups_of
from common.evaluation.record import Record
from common.evaluation.scores import Collected
from common.evaluation.scoring import SCORE_FIELDS, Scorer, choose_reward, reward_key
from common.evaluation.setup import Job, announce, prepare
from common.launcher.errors import UserError


def run(options: Namespace) -> int:
    """Evaluate one model; returns the exit code: 0 only when every answer is there and was scored.

    Raises:
        UserError: anything the user has to mend.
    """
    job = prepare(options)
    record = Record(output.record_path(job.output))
    if options.overwrite:
        for path in (record.path, output.meta_path(job.output), output.scores_path(job.output)):
            path.unlink(missing_ok=True)
    record.open()
    meta = job.meta()
    _same_settings(job, record, meta)
    scorer = Scorer(job.reward, output.scores_path(job.output), options.threshold, options.reward_timeout)
    done, before = _kept(job, record, scorer), read_meta(job.output)
    announce(job, done)
    _write_meta(job.output, {**meta, "generation": before.get("generation", {}), "state": "running"})
    old = signal.signal(signal.SIGTERM, _stop)
    try:
        spent = _generate(job, record, scorer) or before.get("generation", {})
        scored = scorer.finish()
    except KeyboardInterrupt:
        total = len(job.items) * options.n
        print(
            f"\nstopped: {len(record.places)} of {total} answers are in {record.path}; "
            "the same command goes on from there",
            file=sys.stderr,
        )
        return 130
    finally:
        signal.signal(signal.SIGTERM, old)
    record.rewrite(lambda row: {**row, **scored.get((row["item"], row["sample"]), {})})
    output.scores_path(job.output).unlink(missing_ok=True)
    return finish(job.output, record, {**meta, "generation": spent, "state": "finished"})


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt


def finish(path: Path, record: Record, meta: dict[str, Any]) -> int:
    """Write the view and the run file, print the scores; returns the exit code."""
    found = scores.collect(record.rows(), meta["items"], meta["n"])
    export.write(path, record, found, meta)
    _write_meta(path, {**meta, "figures": export.figure_dicts(found)})
    print_scores(found)
    print(f"results  {path}" + ("" if path == record.path else f" (record: {record.path})"))
    errors = scores.error_counts(found)
    for kind, message, count in errors[:5]:
        print(f"error    {kind}, {count} of {meta['items'] * meta['n']}: {message}", file=sys.stderr)
    missing = meta["items"] * meta["n"] - sum(map(len, found.samples.values()))
    if missing:
        print(f"error    {missing} answers are missing: run the same command again", file=sys.stderr)
    return 1 if errors or missing else 0


def print_scores(found: Collected) -> None:
    """The figures on the terminal."""
    for figure in scores.figures(found):
        bounds = f"  [{figure.low:.4f}, {figure.high:.4f}]" if figure.low is not None else ""
        print(f"{figure.name:<16} {figure.value:.4f}{bounds}")
    for figure in scores.shares(found):
        if figure.value and not figure.name.startswith("tokens"):
            print(f"{figure.name:<16} {figure.value:.4f}")


def read_meta(path: Path) -> dict[str, Any]:
    """The run file beside a result file; empty where there is none."""
    try:
        return dict(json.loads(output.meta_path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _write_meta(path: Path, meta: dict[str, Any]) -> None:
    write_text(output.meta_path(path), json.dumps(meta, indent=1, ensure_ascii=False, default=str))


def _same_settings(job: Job, record: Record, meta: dict[str, Any]) -> None:
    """Results of two settings never end up in one file.

    Raises:
        UserError: the record was made with other ones.
    """
    if not record.places:
        return
    before = read_meta(job.output).get("settings")
    now = json.loads(json.dumps(meta["settings"], default=str))
    if before is None:
        other = ["its .run.json is gone"]
    else:
        other = [
            f"{name} {before.get(name)!r} there, {now[name]!r} now"
            for name in now
            if before.get(name) != now[name]
        ]
    if other:
        raise UserError(
            f"{record.path} holds results made with other settings ({'; '.join(other[:3])}): "
            "give another --output_file, or --overwrite to start over"
        )


def item_key(item: Item) -> str:
    """Fingerprint of one row's question and truth; pairs items between evaluations."""
    text = json.dumps([item.messages, item.ground_truth, item.error], default=str, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _kept(job: Job, record: Record, scorer: Scorer) -> int:
    """Look through what is there: refuse another data set, forget what failed, score what has no score."""
    for row in record.rows():
        where = f"{record.path} item {row['item']}"
        if row["item"] >= len(job.items) or row["sample"] >= job.options.n:
            raise UserError(
                f"{where} is beyond this run's items and --n: give another --output_file, or --overwrite"
            )
        item = job.items[row["item"]]
        if row.get("key") != item_key(item):
            raise UserError(
                f"{where} is about another row than {job.options.input_file}: give another --output_file"
            )
    failed = [
        (row["item"], row["sample"])
        for row in record.rows()
        if row["error"] and not job.items[row["item"]].error
    ]
    for key in failed:
        del record.places[key]
        scorer.scores.pop(key, None)
    before = read_meta(job.output)
    same = (
        before.get("reward key") == reward_key(job.reward)
        and before.get("threshold of right") == job.options.threshold
    )
    for row in record.rows():
        if same and row["score"] is not None and not row["reward_error"]:
            scorer.scores[row["item"], row["sample"]] = {name: row[name] for name in SCORE_FIELDS}
        else:
            scorer.add(job.items[row["item"]], row)
    return len(record.places)


def _generate(job: Job, record: Record, scorer: Scorer) -> dict[str, Any]:
    """Fill the record; returns what it took."""
    requests, broken = missing_requests(job, record)
    for item, sample, error in broken:
        row = sample_row(job, item, Answer(item.index, sample, "", "error", 0, error), [])
        record.append(row)
        scorer.add(item, row)
    if not requests:
        return {}
    ids = {request.item: request.ids for request in requests}
    if job.options.show_prompt:
        _show(job, requests[0].ids)
    longest = max(map(len, ids.values())) + job.sampling.max_new_tokens
    begin = time.monotonic()
    backend = load(job.model, job.options, longest)
    loaded = time.monotonic()
    try:
        tokens = drain(job, backend, requests, record, scorer)
    finally:
        backend.close()
    seconds = time.monotonic() - loaded
    return {
        "answers": len(requests),
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "tokens per second": round(tokens / seconds, 1),
        "seconds of loading before it": round(loaded - begin, 1),
        "seconds of scoring beside it": round(scorer.seconds, 2),
    }


def missing_requests(job: Job, record: Record) -> tuple[list[Request], list[tuple[Item, int, str]]]:
    """(what to generate, (item, sample, error) of what cannot be)."""
    requests: list[Request] = []
    broken: list[tuple[Item, int, str]] = []
    for item in job.items:
        missing = [s for s in range(job.options.n) if (item.index, s) not in record.places]
        if not missing:
            continue
        error, ids = item.error, []
        if not error:
            try:
                ids = job.template.encode(item.messages, item.tools)
            except ValueError as problem:
                error = str(problem)
        for sample in missing:
            if error:
                broken.append((item, sample, error))
            else:
                requests.append(Request(item.index, sample, ids))
    return requests, broken


def drain(job: Job, backend: Backend, requests: list[Request], record: Record, scorer: Scorer) -> int:
    from tqdm import tqdm

    stops = job.template.stop_ids(job.generation_config)
    ids = {request.item: request.ids for request in requests}
    tokens, begin = 0, time.monotonic()
    tty = sys.stderr.isatty()
    with tqdm(total=len(requests), unit="answer", mininterval=0.5 if tty else 30, dynamic_ncols=tty) as bar:
        for answer in backend.generate(requests, job.sampling, stops):
            item = job.items[answer.item]
            row = sample_row(job, item, answer, ids[answer.item])
            record.append(row)
            scorer.add(item, row)
            tokens += answer.tokens
            rate = tokens / max(1e-9, time.monotonic() - begin)
            bar.set_postfix_str(f"{rate:.0f} tokens/s", refresh=False)
            bar.update()
    return tokens


def sample_row(job: Job, item: Item, answer: Answer, ids: list[int]) -> dict[str, Any]:
    """The record line of one sample; the first keys are those of verl's dumps."""
    return {
        "uid": f"{item.index}_0_{answer.sample}",
        "item": item.index,
        "sample": answer.sample,
        "input": job.template.tokenizer.decode(ids, skip_special_tokens=True)
        if ids
        else text_of(item.messages),
        "output": answer.text,
        "gts": item.ground_truth,
        "score": None,
        "step": job.model.checkpoint.step or 0,
        "messages": item.messages,
        "data_source": item.data_source,
        "finish_reason": answer.finish,
        "truncated": answer.finish == "length",
        "tokens": answer.tokens,
        "prompt_tokens": len(ids),
        "error": answer.error,
        "key": item_key(item),
        "groups": groups_of(item, job.groups),
        "extra_info": item.extra_info,
        "row": item.row,
    }


def _show(job: Job, ids: list[int]) -> None:
    words = job.template.tokenizer
    print("first prompt, as the model sees it:\n" + str(words.decode(ids)), file=sys.stderr)
    ends = f"{words.convert_ids_to_tokens(ids[:4])} ... {words.convert_ids_to_tokens(ids[-4:])}"
    print(
        f"{len(ids)} tokens: {ends}; stops: {job.template.stop_ids(job.generation_config)}", file=sys.stderr
    )


def read_again(options: Namespace) -> int:
    """--rescore and --export_only: from the record, without a model.

    Raises:
        UserError: no record, or no reward to score with.
    """
    path = options.output_file
    record = Record(output.record_path(path))
    if not record.path.is_file():
        raise UserError(f"{record.path} does not exist: --rescore and --export_only need the record of a run")
    record.open()
    meta = read_meta(path)
    if not meta:
        meta = _meta_of(record)
    if options.rescore:
        meta = _rescore(options, record, meta)
    else:
        pending = output.scores_path(path)
        if pending.exists():
            print(
                f"note: {pending} holds scores of an unfinished run; running it again takes them in",
                file=sys.stderr,
            )
        record.rewrite()
    return finish(path, record, meta)


def _meta_of(record: Record) -> dict[str, Any]:
    """What a record alone tells, when its run file is gone."""
    items = 1 + max(item for item, _ in record.places)
    return {"model": "?", "items": items, "n": 1 + max(sample for _, sample in record.places)}


def _rescore(options: Namespace, record: Record, meta: dict[str, Any]) -> dict[str, Any]:
    run = {} if options.reward else _record_of(meta)
    items = items_of(record)
    reward, who = choose_reward(options.reward, options.reward_kwargs, run, items)
    if reward is None:
        raise UserError(f"--rescore: {who}")
    print(f"reward   {reward.label} (from {who})", file=sys.stderr)
    scorer = Scorer(
        reward, output.scores_path(options.output_file), options.threshold, options.reward_timeout
    )
    by_index = {item.index: item for item in items}
    for row in record.rows():
        scorer.add(by_index[row["item"]], row)
    scored = scorer.finish()
    record.rewrite(lambda row: {**row, **scored.get((row["item"], row["sample"]), {})})
    output.scores_path(options.output_file).unlink(missing_ok=True)
    return {
        **meta,
        "reward": reward.label,
        "reward key": reward_key(reward),
        "reward from": who,
        "threshold of right": options.threshold,
    }


def _record_of(meta: dict[str, Any]) -> dict[str, Any]:
    """run.json of the run whose checkpoint was evaluated."""
    from common.checkpoints import CheckpointError, resolve

    try:
        return resolve(str((meta.get("settings") or {}).get("model") or "-")).record()
    except CheckpointError:
        return {}


def items_of(record: Record) -> list[Item]:
    """The items as a reward sees them, from the record alone: the data file may be gone or changed."""
    items: dict[int, Item] = {}
    for row in record.rows():
        if row["item"] not in items:
            items[row["item"]] = Item(
                row["item"], row["messages"], row["data_source"], row["gts"], row["extra_info"], row["row"]
            )
    return list(items.values())
