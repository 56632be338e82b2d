"""What test.sh costs on top of generation, and how fast it writes Excel. One run measures every claim:

    python -m benchmarks.eval_throughput              # CPU: about five minutes on two quiet cores
    python -m benchmarks.eval_throughput --only excel

vllm:         output tokens/s of test.sh (prompts, record, scores, bar) over one bare `LLM.generate` call, in one
              engine with an empty prefix cache, in turns (bare, ours, ours, bare). Without --model a
              random model of four layers: less to compute makes any overhead weigh more.
transformers: tokens/s of batches over `generate()` one prompt at a time, on the bundled SmolLM2-135M.
excel:        20,000 rows with two texts of 3,000 characters: seconds and extra memory.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.evaluation import device  # noqa: E402

ROUNDS = 2
EXCEL_ROWS, EXCEL_CHARACTERS = 20_000, 3_000


def make_data(path: Path, count: int) -> Path:
    """Questions of several lengths with number answers."""
    lines = []
    for i in range(count):
        story = "A farmer counts apples in the morning. " * (i % 4)
        question = f"{story}What is {i % 97} + {i % 89}? Reply with only the number."
        lines.append(json.dumps({"question": question, "answer": str(i % 97 + i % 89)}))
    path.write_text("\n".join(lines) + "\n")
    return path


def make_model(folder: Path) -> Path:
    """The bundled model's architecture and tokenizer with four layers of random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from common.cpu.model import ensure_bundled_model

    source = ensure_bundled_model()
    config = AutoConfig.from_pretrained(source)
    config.num_hidden_layers = 4
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def job_for(model: str, data: Path, output: Path, *flags: str) -> Any:
    """What test.sh prepares for these flags."""
    from common.evaluation import options, setup

    words = ["--batch", "--model_path", model, "--input_file", str(data), "--output_file", str(output)]
    return setup.prepare(options.parse([*words, "--reward", "common:math", *flags]))


def ours(job: Any, backend: Any) -> tuple[int, float, float]:
    """(tokens, seconds, seconds of scoring beside it) of everything test.sh does between model and Excel."""
    from common.evaluation import batch, output
    from common.evaluation.record import Record
    from common.evaluation.scoring import Scorer

    for path in (output.record_path(job.output), output.scores_path(job.output)):
        path.unlink(missing_ok=True)
    begin = time.perf_counter()
    record = Record(output.record_path(job.output)).open()
    scorer = Scorer(job.reward, output.scores_path(job.output), 0.5, 120)
    requests, _ = batch.missing_requests(job, record)
    tokens = batch.drain(job, backend, requests, record, scorer)
    scorer.finish()
    seconds = time.perf_counter() - begin
    record.close()
    return tokens, seconds, scorer.seconds


def measure_vllm(model: str, prompts: int, tokens: int) -> dict[str, Any]:
    """The engine alone against the engine inside test.sh."""
    from common.evaluation import batch
    from common.evaluation.backends import load
    from common.evaluation.record import Record

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = model or str(make_model(work / "model"))
        data = make_data(work / "data.jsonl", prompts)
        flags = ["--use_vllm", "--temperature", "0", f"--max_new_tokens={tokens}"]
        job = job_for(model, data, work / "r.xlsx", *flags)
        requests, _ = batch.missing_requests(job, Record(work / "none.jsonl"))
        backend: Any = load(job.model, job.options, max(len(r.ids) for r in requests) + tokens)
        stops = job.template.stop_ids(job.generation_config)
        params = backend._params(job.sampling, stops, tokens, 0)
        list(backend.generate(requests[:64], job.sampling, stops))  # warm

        def bare(part: list[Any]) -> tuple[int, float, float]:
            backend.llm.reset_prefix_cache()
            begin, cpu = time.perf_counter(), time.process_time()
            ids = [{"prompt_token_ids": request.ids} for request in part]
            done = backend.llm.generate(ids, params, use_tqdm=True)
            count = sum(len(output.outputs[0].token_ids) for output in done)
            return count, time.perf_counter() - begin, time.process_time() - cpu

        def whole() -> tuple[int, float, float, float]:
            backend.llm.reset_prefix_cache()
            cpu = time.process_time()
            count, seconds, scoring = ours(job, backend)
            return count, seconds, time.process_time() - cpu, scoring

        alone, inside = [], []
        for turn in range(2 * ROUNDS):  # bare, ours, ours, bare ...: a load that comes and goes meets both
            if turn % 4 in (0, 3):
                alone.append(bare(requests))
            else:
                inside.append(whole())
        backend.close()
    rates = [[round(turn[0] / turn[1], 1) for turn in turns] for turns in (alone, inside)]
    return {
        "vllm prompts": prompts,
        "vllm bare tokens/s": rates[0],
        "vllm test.sh tokens/s": rates[1],
        "vllm ratio (>= 0.97)": round(statistics.median(rates[1]) / statistics.median(rates[0]), 3),
        "vllm bare, own CPU seconds beside the engine": round(statistics.mean(t[2] for t in alone), 2),
        "vllm test.sh, own CPU seconds beside the engine": round(statistics.mean(t[2] for t in inside), 2),
        "scoring, share of wall, beside it (<= 0.02)": round(max(t[3] / t[1] for t in inside), 4),
    }


def measure_transformers(prompts: int = 128, tokens: int = 16, singles: int = 12) -> dict[str, Any]:
    """Batches against one prompt at a time."""
    import torch

    from common.evaluation import batch
    from common.evaluation.backends import load
    from common.evaluation.record import Record

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data = make_data(work / "data.jsonl", prompts)
        job = job_for("smollm2", data, work / "r.xlsx", "--temperature", "0", f"--max_new_tokens={tokens}")
        backend: Any = load(job.model, job.options, 0)
        requests, _ = batch.missing_requests(job, Record(work / "none.jsonl"))
        stops = job.template.stop_ids(job.generation_config)
        count, begin = 0, 0.0
        for number, request in enumerate(requests[: singles + 1]):
            if number == 1:  # the first one warms
                count, begin = 0, time.perf_counter()
            ids = torch.tensor([request.ids], device=backend.model.device)
            out = backend.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=tokens,
                eos_token_id=stops,
                pad_token_id=stops[0],
            )
            count += out.shape[1] - ids.shape[1]
        single = count / (time.perf_counter() - begin)
        made, seconds, _ = ours(job, backend)
    return {
        "transformers one at a time, tokens/s": round(single, 1),
        "transformers test.sh, tokens/s": round(made / seconds, 1),
        "transformers ratio (>= 5)": round(made / seconds / single, 2),
    }


def write_excel() -> dict[str, Any]:
    """In a process of its own, so that its memory is its own."""
    import random

    from common.evaluation import export, scores
    from common.evaluation.record import Record, json_line

    chance = random.Random(0)
    words = ["apple", "sum", "because", "therefore", "42", "答案", "is", "the", "of", "\n"]
    texts = [
        " ".join(chance.choices(words, k=900))[:EXCEL_CHARACTERS].ljust(EXCEL_CHARACTERS) for _ in range(50)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.jsonl"
        with path.open("wb") as file:
            for i in range(EXCEL_ROWS):
                row = {"item": i, "sample": 0, "output": texts[i % 50], "score": i % 2, "right": bool(i % 2)}
                row |= {
                    "messages": [{"role": "user", "content": texts[(i + 7) % 50]}],
                    "parts": {"acc": i % 2},
                }
                file.write(json_line({**row, "gts": "42", "tokens": 700, "row": {"id": i}, "groups": {}}))
        record = Record(path).scan()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begin = time.perf_counter()
        found = scores.collect(record.rows(), EXCEL_ROWS, 1)
        export.write(Path(folder) / "r.xlsx", record, found, {"model": "m"})
        seconds = time.perf_counter() - begin
        extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"excel seconds (<= 8)": round(seconds, 2), "excel extra MB (<= 200)": round(extra, 1)}


def missed(name: str, value: Any) -> bool:
    """Whether a figure misses the target that its name carries."""
    target = re.search(r"\((<=|>=) ([\d.]+)\)", name)
    if target is None:
        return False
    return value > float(target[2]) if target[1] == "<=" else value < float(target[2])


def main() -> None:
    """Measure, print a line per figure; exit code 1 when a target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=["vllm", "transformers", "excel"])
    parser.add_argument("--model", default="", help="for vllm: a real one")
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=32, help="most new tokens per prompt")
    parser.add_argument("--write-excel", action="store_true", help=argparse.SUPPRESS)
    own = parser.parse_args()
    device.prepare()
    if own.write_excel:
        print(json.dumps(write_excel()))
        return
    results: dict[str, Any] = {}
    if own.only in (None, "excel"):
        words = [sys.executable, "-m", "benchmarks.eval_throughput", "--write-excel"]
        done = subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
        results |= json.loads(done.stdout.splitlines()[-1])
    if own.only in (None, "transformers"):
        results |= measure_transformers()
    if own.only in (None, "vllm"):
        results |= measure_vllm(own.model, own.prompts, own.tokens)
    for name, value in results.items():
        print(f"{name:<46} {value}")
    sys.exit(int(any(missed(name, value) for name, value in results.items())))


if __name__ == "__main__":
    main()
