"""Every weight of a tied-weights model reaches vLLM through verl's own transfer, again and again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from .test_patches import CPU_ENV

# Runs in a process of its own: vLLM's engine must start in the CPU environment from the beginning.
PROGRAM = """
import asyncio, os, threading
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
import verl  # loads the CPU plugin
from common.cpu.model import ensure_bundled_model
from vllm import LLM, SamplingParams
from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightSender


def serve_once(handle):
    def receive(worker):
        from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver
        loaded = set()
        def load(weights, is_last):
            loaded.update(worker.model_runner.model.load_weights(weights) or ())
        BucketedWeightReceiver(handle, torch.device("cpu"), use_shm=True).receive_weights(load)
        return len(loaded)
    return receive


def main():
    folder = str(ensure_bundled_model())
    actor = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    engine = LLM(folder, dtype="float32", enforce_eager=True, max_model_len=128, max_logprobs=20,
                 gpu_memory_utilization=0.1)
    prompts = [tokenizer.encode(t) for t in ("The capital of France is", "One two three four", "def add(a, b):")]
    sampling = SamplingParams(temperature=0, max_tokens=1, logprobs=20)

    def difference():
        worst = 0.0
        outputs = engine.generate([{"prompt_token_ids": p} for p in prompts], sampling, use_tqdm=False)
        for ids, output in zip(prompts, outputs):
            with torch.no_grad():
                expected = torch.log_softmax(actor(torch.tensor([ids])).logits[0, -1].float(), -1)
            for token, entry in output.outputs[0].logprobs[0].items():
                worst = max(worst, abs(entry.logprob - expected[token].item()))
        return worst

    print("start", difference(), flush=True)
    for round in range(3):
        torch.manual_seed(round)
        with torch.no_grad():
            for name, parameter in actor.named_parameters():
                parameter.mul_(1 + 0.05 * torch.randn_like(parameter))
        print("changed", difference(), flush=True)
        handle = f"ipc:///tmp/verl_training_sync_{os.getpid()}_{round}.sock"
        # A bucket much smaller than the model, so that its memory is reused during one transfer.
        sender = BucketedWeightSender(handle, bucket_size_mb=128, use_shm=True)
        thread = threading.Thread(
            target=lambda: asyncio.run(sender.async_send_weights(iter(actor.state_dict().items())))
        )
        thread.start()
        count = engine.collective_rpc(serve_once(handle))[0]
        thread.join()
        print("synced", difference(), count, flush=True)


if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_changed_weights_reach_the_rollout_engine(tmp_path: object) -> None:
    program = f"{tmp_path}/sync.py"
    with open(program, "w") as file:  # noqa: PTH123
        file.write(PROGRAM)
    done = subprocess.run(
        [sys.executable, program],
        env={
            **os.environ,
            **CPU_ENV,
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    lines = [
        line.split()
        for line in done.stdout.splitlines()
        if line.split()[:1] in (["start"], ["changed"], ["synced"])
    ]
    assert [line[0] for line in lines] == ["start", *["changed", "synced"] * 3], (
        done.stdout + done.stderr[-4000:]
    )
    for line in lines:
        if line[0] == "changed":
            assert float(line[1]) > 0.1, "the change must be visible before the sync"
        else:
            assert float(line[1]) < 2e-3, line
