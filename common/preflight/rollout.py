"""RL: the engine that samples, its settings, and the tools of several turns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from common.preflight import names, vllm_limits
from common.preflight.finding import Finding, error, warning
from common.preflight.job import ROLLOUT, Job

_MIB = 1024**2


def check(job: Job) -> Iterator[Finding]:
    """Engine, sampling, validation sampling, agents."""
    yield from _engine(job)
    yield from vllm_limits.check(job)
    yield from _sampling(job)
    yield from _turns(job)
    if not job.on_gpu:
        yield from _cpu(job)


def _engine(job: Job) -> Iterator[Finding]:
    key, known = f"{ROLLOUT}.name", names.rollout_engines()
    engine = job.get(key)
    if engine is None:
        yield error(f"{key} is not set: set ROLLOUT_ENGINE=vllm", "ROLLOUT_ENGINE")
    elif engine not in known:
        yield error(
            f"{job.name(key)}={engine} is none that verl knows{names.suggest(str(engine), known)}",
            "ROLLOUT_ENGINE",
        )
    elif not job.machine.importable({"trtllm": "tensorrt_llm"}.get(str(engine), str(engine))):
        yield error(
            f"{job.name(key)}={engine}, but {engine} is not installed in this environment: ./setup_env.sh installs "
            "vllm (--engine sglang: sglang)",
            "ROLLOUT_ENGINE",
        )
    mode = job.get(f"{ROLLOUT}.mode", "async")
    if mode != "async":
        yield error(f"{ROLLOUT}.mode={mode}: verl 0.9.1 has only async; leave the key out", f"{ROLLOUT}.mode")
    share = job.get(f"{ROLLOUT}.gpu_memory_utilization", 0.5)
    if not 0 < share <= 1:
        yield error(
            f"{job.name(f'{ROLLOUT}.gpu_memory_utilization')}={share} is the engine's share of GPU memory: "
            "above 0, at most 1 (0.5 is usual)",
            "GPU_MEMORY_UTILIZATION",
        )
    elif share > 0.95 and job.on_gpu:
        yield warning(
            f"GPU_MEMORY_UTILIZATION={share} leaves no room for the weights that are being sent: 0.5 to 0.9 is usual"
        )
    if job.number(f"{ROLLOUT}.agent.num_workers") < 1:
        yield error(
            f"{ROLLOUT}.agent.num_workers={job.get(f'{ROLLOUT}.agent.num_workers')} must be 1 or more"
        )
    if job.number("actor_rollout_ref.model.lora_rank", 0) > 0 and "hf_model" in list(
        job.get("actor_rollout_ref.actor.checkpoint.save_contents", [])
    ):
        yield error(
            "with LoRA verl exports hf_model under PEFT's names, which load as random weights: leave hf_model out of "
            "actor_rollout_ref.actor.checkpoint.save_contents (python -m common.checkpoints export merges it later)",
            "USE_LORA",
        )


def _sampling(job: Job) -> Iterator[Finding]:
    n, temperature = job.number(f"{ROLLOUT}.n"), job.get(f"{ROLLOUT}.temperature", 1.0)
    name = job.name(f"{ROLLOUT}.temperature")
    if temperature < 0 or (temperature == 0 and n < 2):
        yield error(
            f"{name}={temperature} must be above 0: without sampling nothing is explored (1.0 is usual)",
            "ROLLOUT_TEMPERATURE",
        )
    elif temperature == 0:
        yield error(
            f"{name}=0 gives {n} times the same answer to each prompt, so no answer is better than its group: "
            "use 1.0",
            "ROLLOUT_TEMPERATURE",
        )
    for group in (ROLLOUT, f"{ROLLOUT}.val_kwargs"):
        top_p, top_k = job.get(f"{group}.top_p", 1.0), job.get(f"{group}.top_k", -1)
        if not 0 < top_p <= 1:
            yield error(f"{group}.top_p={top_p} must be above 0 and at most 1", f"{group}.top_p")
        # vLLM takes 0 for all tokens, the other engines do not.
        if top_k < -1 or (top_k == 0 and job.get(f"{ROLLOUT}.name") != "vllm"):
            yield error(f"{group}.top_k={top_k} must be -1 (all tokens) or 1 and more", f"{group}.top_k")
    answers, sampled = job.number(f"{ROLLOUT}.val_kwargs.n"), bool(job.get(f"{ROLLOUT}.val_kwargs.do_sample"))
    cold = job.get(f"{ROLLOUT}.val_kwargs.temperature", 0) == 0
    if answers > 1 and (cold or not sampled):
        yield error(
            f"{ROLLOUT}.val_kwargs.n={answers} with "
            f"{'temperature=0' if cold else 'do_sample=False'} validates on {answers} times the same answer: set "
            f"{ROLLOUT}.val_kwargs.do_sample=True and a temperature, or n=1",
            f"{ROLLOUT}.val_kwargs.n",
        )
    if not 0 <= job.get(f"{ROLLOUT}.over_sample_rate", 0) < 1:
        yield error(
            f"{ROLLOUT}.over_sample_rate={job.get(f'{ROLLOUT}.over_sample_rate')} must be 0 or more and below 1"
        )


def _turns(job: Job) -> Iterator[Finding]:
    turns, agent = f"{ROLLOUT}.multi_turn", f"{ROLLOUT}.agent"
    for key in (
        f"{turns}.tool_config_path",
        f"{turns}.function_tool_path",
        f"{agent}.agent_loop_config_path",
    ):
        path = job.get(key)
        if path and not Path(str(path)).is_file():
            yield error(f"{key}={path} does not exist: give an absolute path", key)
    loop = str(job.get(f"{agent}.default_agent_loop", "single_turn_agent"))
    if loop not in names.agent_loops() and not job.get(f"{agent}.agent_loop_config_path"):
        yield error(
            f"{agent}.default_agent_loop={loop} is none that verl knows{names.suggest(loop, names.agent_loops())}",
            f"{agent}.default_agent_loop",
        )
    has_tools = job.get(f"{turns}.tool_config_path") or job.get(f"{turns}.function_tool_path")
    form = str(job.get(f"{turns}.format", "hermes"))
    if has_tools and form not in names.tool_formats():
        yield error(
            f"{turns}.format={form} is none that verl knows{names.suggest(form, names.tool_formats())}",
            f"{turns}.format",
        )
    if job.users(f"{turns}.enable") and loop == "single_turn_agent":
        yield error(
            f"{turns}.enable has no effect in verl 0.9.1: set {agent}.default_agent_loop=tool_agent (or the column "
            "agent_name) for tools",
            f"{turns}.enable",
        )


def _cpu(job: Job) -> Iterator[Finding]:
    """Without a GPU, weights go to the engine bucket by bucket through shared memory, whole tensors only."""
    model = job.model_config()
    rows, width = model.get("vocab_size"), model.get("hidden_size")
    bucket = job.number(f"{ROLLOUT}.checkpoint_engine.update_weights_bucket_megabytes", 0)
    if isinstance(rows, int) and isinstance(width, int):
        largest = -(-rows * width * 4 // _MIB)
        if bucket < largest:
            yield error(
                f"{ROLLOUT}.checkpoint_engine.update_weights_bucket_megabytes={bucket} is below the largest tensor "
                f"({rows} x {width} x 4 bytes = {largest} MiB): use {largest + 16}"
            )
    heads = model.get("num_attention_heads")
    if isinstance(width, int) and isinstance(heads, int) and heads:
        size = model.get("head_dim") or width // heads
        if size < 32:
            yield error(
                f"the model's attention heads have {size} dimensions, vLLM on the CPU needs 32 or more",
                "MODEL_PATH",
            )
    if job.get(f"{ROLLOUT}.free_cache_engine") or job.get(f"{ROLLOUT}.enable_sleep_mode"):
        yield error(
            f"{ROLLOUT}.free_cache_engine and enable_sleep_mode need a GPU: leave both out of a run on the CPU"
        )
