"""RL: batch and length arithmetic on the resolved values, by the launcher's own checks and what they cannot see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from common.launcher import checks
from common.preflight.finding import Finding, error, knob_of, warning
from common.preflight.job import ACTOR, REF, ROLLOUT, Job

_UNKNOWN_ROWS = 10**9
_SHARED = {
    "TRAIN_BATCH_SIZE": "data.train_batch_size",
    "MINI_BATCH_SIZE": f"{ACTOR}.ppo_mini_batch_size",
    "MICRO_BATCH_SIZE": f"{ACTOR}.ppo_micro_batch_size_per_gpu",
    "ROLLOUT_N": f"{ROLLOUT}.n",
    "N_GPUS": "trainer.n_gpus_per_node",
    "NNODES": "trainer.nnodes",
    "ROLLOUT_TP_SIZE": f"{ROLLOUT}.tensor_model_parallel_size",
    "MAX_TOKENS_PER_GPU": f"{ACTOR}.ppo_max_token_len_per_gpu",
    "MAX_PROMPT_LENGTH": "data.max_prompt_length",
    "MAX_RESPONSE_LENGTH": "data.max_response_length",
    "SEQUENCE_PARALLEL_SIZE": f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size",
    "LORA_RANK": "actor_rollout_ref.model.lora_rank",
    "LORA_ALPHA": "actor_rollout_ref.model.lora_alpha",
}


def check(job: Job, rows: int | None) -> Iterator[Finding]:
    """Everything about numbers of rows, answers, tokens and GPUs.

    Args:
        rows: training rows that verl will keep; None when not known.
    """
    knobs = {name: str(job.get(key, "")) for name, key in _SHARED.items()}
    knobs["SEQUENCE_PARALLEL_SIZE"] = str(job.sequence_parallel)
    knobs["USE_DYNAMIC_BSZ"] = str(job.get(f"{ACTOR}.use_dynamic_bsz", False)).lower()
    knobs["USE_LORA"] = "true" if job.number("actor_rollout_ref.model.lora_rank", 0) != 0 else "false"
    problems = checks.check_batches(knobs, _UNKNOWN_ROWS if rows is None else rows) + checks.check_lora(knobs)
    for line in problems:
        # verl asks this of static batches only; with dynamic ones the mini-batch's own line counts.
        if not (knobs["USE_DYNAMIC_BSZ"] == "true" and line.startswith("TRAIN_BATCH_SIZE x ROLLOUT_N")):
            yield error(line + origin(job, line, _SHARED), knob_of(line))
    yield from _micro_batches(job)
    yield from _budgets(job)
    yield from _parallel(job)
    yield from _lengths(job)


def origin(job: Job, line: str, names: Mapping[str, str]) -> str:
    """Which key=value of the user stands behind a knob that *line* names; *names* is knob -> key."""
    keys = [
        f"{name} is {key}" for name, key in names.items() if name in line and job.record and job.users(key)
    ]
    return f" ({', '.join(keys)} here)" if keys else ""


def _micro_batches(job: Job) -> Iterator[Finding]:
    dynamic = bool(job.get(f"{ACTOR}.use_dynamic_bsz"))
    other = job.get(f"{ROLLOUT}.log_prob_use_dynamic_bsz")
    if bool(other) != dynamic:
        yield error(
            f"{ACTOR}.use_dynamic_bsz={dynamic} but {ROLLOUT}.log_prob_use_dynamic_bsz={other}: verl's workers assert "
            "that they are equal; set USE_DYNAMIC_BSZ, which sets both",
            "USE_DYNAMIC_BSZ",
        )
    epochs = job.number(f"{ACTOR}.ppo_epochs")
    if epochs < 1:
        yield error(f"{ACTOR}.ppo_epochs={epochs}: the policy would never be updated; use 1 or more")
    if dynamic:
        return
    ranks = max(1, job.ranks // max(1, job.sequence_parallel))
    each = job.number("data.train_batch_size") * job.number(f"{ROLLOUT}.n") // ranks
    groups = [(ROLLOUT, True), (REF, job.needs_reference)]
    for group, used in groups:
        micro = job.get(f"{group}.log_prob_micro_batch_size_per_gpu")
        if used and isinstance(micro, int) and (micro < 1 or each % micro):
            yield error(
                f"{group}.log_prob_micro_batch_size_per_gpu={micro} does not divide the {each} answers of each rank "
                f"(TRAIN_BATCH_SIZE x ROLLOUT_N / ranks = {job.number('data.train_batch_size')} x "
                f"{job.number(f'{ROLLOUT}.n')} / {ranks}): use {_divisor(each, micro)}",
                "MICRO_BATCH_SIZE",
            )


def _divisor(value: int, near: int) -> int:
    return min((d for d in range(1, value + 1) if value % d == 0), key=lambda d: abs(d - near), default=1)


def _budgets(job: Job) -> Iterator[Finding]:
    """A micro-batch must hold the longest sequence (``verl.utils.seqlen_balancing``)."""
    sp, longest = max(1, job.sequence_parallel), job.longest
    dynamic, key = job.get(f"{ACTOR}.use_dynamic_bsz"), f"{ACTOR}.ppo_max_token_len_per_gpu"
    if dynamic and job.number(key) < 1:  # the launcher's own check takes 0 for its knob's default
        yield error(f"{key}={job.get(key)} must be {-(-longest // sp)} or more", "MAX_TOKENS_PER_GPU")
    budgets = [
        (f"{ROLLOUT}.log_prob_max_token_len_per_gpu", bool(dynamic), 0),
        (
            f"{REF}.log_prob_max_token_len_per_gpu",
            job.needs_reference and bool(job.get(f"{REF}.log_prob_use_dynamic_bsz")),
            0,
        ),
        # Absent: the default of verl's CriticConfig.
        (
            "critic.ppo_infer_max_token_len_per_gpu",
            job.needs_critic and bool(job.get("critic.fsdp.use_dynamic_bsz", True)),
            32768,
        ),
    ]
    for key, used, default in budgets:
        budget = job.number(key, default)
        if used and budget * sp < longest:
            yield error(
                f"{key}={budget} (x {sp} sequence parallel) is below max_prompt_length + max_response_length = "
                f"{longest}: use {-(-longest // sp)} or more",
                "MAX_TOKENS_PER_GPU",
            )


def _parallel(job: Job) -> Iterator[Finding]:
    model, sp = job.model_config(), job.sequence_parallel
    tp = job.number(f"{ROLLOUT}.tensor_model_parallel_size")
    dp, pp = (
        job.number(f"{ROLLOUT}.data_parallel_size"),
        job.number(f"{ROLLOUT}.pipeline_model_parallel_size"),
    )
    if tp < 1 or dp < 1 or pp < 1:
        yield error(
            f"ROLLOUT_TP_SIZE={tp}, data_parallel_size={dp}, pipeline size={pp}: each must be 1 or more"
        )
        return
    if dp * pp > 1 and job.ranks % (tp * dp * pp):
        yield error(
            f"one rollout engine takes tensor x data x pipeline parallel = {tp} x {dp} x {pp} = {tp * dp * pp} GPUs, "
            f"which does not divide the {job.ranks} there are: use a divisor",
            "ROLLOUT_TP_SIZE",
        )
    heads, kv = model.get("num_attention_heads"), model.get("num_key_value_heads")
    if isinstance(heads, int) and heads % tp:
        yield error(
            f"ROLLOUT_TP_SIZE={tp} does not divide the model's {heads} attention heads: use "
            f"{', '.join(str(d) for d in range(1, job.ranks + 1) if heads % d == 0 and job.ranks % d == 0)}",
            "ROLLOUT_TP_SIZE",
        )
    elif isinstance(kv, int) and kv and kv % tp and tp % kv:
        yield error(
            f"ROLLOUT_TP_SIZE={tp} and the model's {kv} key-value heads: one must divide the other",
            "ROLLOUT_TP_SIZE",
        )
    yield from sequence_parallel(job, bool(job.get("actor_rollout_ref.model.use_remove_padding")))
    yield from fsdp_size(job, f"{ACTOR}.fsdp_config.fsdp_size")
    if job.needs_critic and sp != job.number("critic.fsdp.ulysses_sequence_parallel_size"):
        yield warning(
            f"the actor shares a sequence between {sp} GPUs, the critic between "
            f"{job.number('critic.fsdp.ulysses_sequence_parallel_size')}: usually both are SEQUENCE_PARALLEL_SIZE",
            "SEQUENCE_PARALLEL_SIZE",
        )


def sequence_parallel(job: Job, packed: bool) -> Iterator[Finding]:
    """What Ulysses needs of the model (also for SFT and DPO)."""
    sp, model = job.sequence_parallel, job.model_config()
    if sp <= 1:
        return
    if not packed:
        yield error(
            f"SEQUENCE_PARALLEL_SIZE={sp} needs packed rows: set {job.model_key}.use_remove_padding=True",
            "SEQUENCE_PARALLEL_SIZE",
        )
    heads = model.get("num_attention_heads")
    kv = model.get("num_key_value_heads") or heads
    if not isinstance(heads, int) or not isinstance(kv, int):
        return
    fits = ", ".join(
        str(d)
        for d in range(1, job.ranks + 1)
        if heads % d == 0 and job.ranks % d == 0 and (kv % d == 0 or d % kv == 0)
    )
    if heads % sp:
        yield error(
            f"SEQUENCE_PARALLEL_SIZE={sp} does not divide the model's {heads} attention heads: use {fits}",
            "SEQUENCE_PARALLEL_SIZE",
        )
    elif kv % sp and sp % kv:
        yield error(
            f"SEQUENCE_PARALLEL_SIZE={sp} and the model's {kv} key-value heads: one must divide the other; use {fits}",
            "SEQUENCE_PARALLEL_SIZE",
        )


def fsdp_size(job: Job, key: str) -> Iterator[Finding]:
    """GPUs in one sharding group; -1 is all."""
    size = job.number(key, -1)
    if size == 0 or size < -1 or (size > 0 and job.ranks % size):
        fits = ", ".join(str(d) for d in range(1, job.ranks + 1) if job.ranks % d == 0)
        yield error(f"{key}={size} does not divide {job.ranks} GPUs: use -1 (all) or {fits}", key)


def _lengths(job: Job) -> Iterator[Finding]:
    for key in ("data.max_prompt_length", "data.max_response_length"):
        if job.number(key, 0) < 1:
            yield error(f"{job.name(key)}={job.get(key)} must be 1 or more", job.name(key))
    longest, room = job.longest, job.number(f"{ROLLOUT}.max_model_len", 0)
    what = f"max_prompt_length + max_response_length = {longest}"
    if 0 < room < longest:
        yield error(
            f"{ROLLOUT}.max_model_len={room} is below {what}: the engine would cut answers off; use {longest} or more"
        )
    yield from positions(job, longest, what)


def positions(job: Job, longest: int, what: str) -> Iterator[Finding]:
    """The model's own limit of positions; a rope scaling or sliding window may stretch it."""
    most = job.positions
    if most is None or longest <= most:
        return
    if job.model_config().get("rope_scaling"):
        yield warning(f"{what} is above the model's {most} positions: its rope_scaling must cover it")
        return
    yield error(
        f"{what} is above the model's {most} positions (max_position_embeddings): shorten one of them, or take a model "
        "with a longer context",
        "MAX_RESPONSE_LENGTH" if job.rl else "MAX_LENGTH",
    )
