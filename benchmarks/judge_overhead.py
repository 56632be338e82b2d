#!/usr/bin/env python3
"""How many judgements a second one reward process can ask for, beside the bare openai client.

    python benchmarks/judge_overhead.py [--calls 2000] [--concurrency 32]

Both ask the same server, a process of its own that answers at once, for the same messages; the judge also keeps its
limits, parses the score, counts, and writes metrics and cache. Rounds alternate; the medians are compared.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

ROUNDS = 3
BODY = json.dumps(
    {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": '{"reason": "x", "score": 7}'},
            }
        ],
        "usage": {"prompt_tokens": 300, "completion_tokens": 9, "total_tokens": 309},
    }
)


def serve(pipe: Connection) -> None:
    """Answer every request with one fixed completion; the port goes through `pipe`."""
    reply = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(BODY)}\r\n\r\n{BODY}"

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):  # the client closed
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length.split(b":")[1]))
                writer.write(reply.encode())
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(one, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def bare(url: str, prompts: list[list[dict[str, str]]], concurrency: int) -> float:
    """Seconds of the openai client alone."""
    from openai import AsyncOpenAI

    async def run() -> float:
        client, slots = (
            AsyncOpenAI(base_url=url, api_key="none", max_retries=0),
            asyncio.Semaphore(concurrency),
        )

        async def ask(messages: list[dict[str, str]]) -> None:
            async with slots:
                await client.chat.completions.create(model="m", messages=messages, temperature=0)  # type: ignore

        await ask(prompts[0])
        begin = time.perf_counter()
        await asyncio.gather(*[ask(messages) for messages in prompts])
        seconds = time.perf_counter() - begin
        await client.close()
        return seconds

    return asyncio.run(run())


def judged(url: str, questions: list[str], concurrency: int) -> float:
    """Seconds of the judge, everything included."""
    from common.judge import Service, make_settings

    with tempfile.TemporaryDirectory() as folder:
        settings = make_settings(
            {
                "provider": "custom",
                "base_url": url,
                "model": "m",
                "max_concurrency": concurrency,
                "cache": str(Path(folder) / "cache.sqlite3"),
            }
        )
        service = Service(settings, Path(folder))
        service.submit(service.judge.score("warm up", "")).result()
        begin = time.perf_counter()
        for future in [service.submit(service.judge.score(question, "7")) for question in questions]:
            future.result()
        service.flush()
        seconds = time.perf_counter() - begin
        service.close()
        return seconds


def main() -> None:
    """Print calls a second of both and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=32)
    args = parser.parse_args()
    from common.judge import make_settings
    from common.judge.templates import load_template

    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{here.recv()}/v1"
    questions = [f"What is {n} + {n}?" for n in range(args.calls)]
    template = load_template(make_settings({"model": "m"}))
    prompts = [template.messages(question, "7") for question in questions]
    times: dict[str, list[float]] = {"bare": [], "judge": []}
    for _ in range(ROUNDS):
        times["bare"].append(bare(url, prompts, args.concurrency))
        times["judge"].append(judged(url, questions, args.concurrency))
    server.terminate()
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    for name, seconds in medians.items():
        print(
            f"{name:<6} {args.calls / seconds:6.0f} calls a second ({1000 * seconds / args.calls:.2f} ms each)"
        )
    print(f"judge / bare: {medians['bare'] / medians['judge']:.2f} x the calls a second")


if __name__ == "__main__":
    main()
