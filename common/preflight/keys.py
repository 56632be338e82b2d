"""Keys that verl 0.9.1 takes and does nothing with, and keys that a launch decides otherwise."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from common.launcher.hydra_words import key_of
from common.preflight.composing import exists, keys
from common.preflight.finding import Finding, error, warning
from common.preflight.job import ACTOR, Job

LEGACY = {  # still composed, never read by main_ppo (only fully_async migrates them)
    "custom_reward_function": "reward.custom_reward_function (or REWARD_FUNC_PATH)",
    "reward_model": "reward.reward_model, reward.reward_manager and reward.reward_kwargs",
    "sandbox_fusion": "reward.sandbox_fusion",
}
DEAD_RL = {
    "data.truncation": "prompts are left out by MAX_PROMPT_LENGTH, never cut",
    "data.reward_fn_key": "the column is data_source",
    f"{ACTOR}.grad_clip": f"use {ACTOR}.optim.clip_grad",
    "critic.grad_clip": "use critic.optim.clip_grad",
    "critic.ppo_micro_batch_size_per_gpu": "use CRITIC_MICRO_BATCH_SIZE",
    "critic.ppo_max_token_len_per_gpu": "use CRITIC_MAX_TOKENS_PER_GPU (+critic.ppo_infer_max_token_len_per_gpu)",
    "critic.use_dynamic_bsz": "use USE_DYNAMIC_BSZ (+critic.fsdp.use_dynamic_bsz)",
    "critic.forward_max_token_len_per_gpu": "use CRITIC_MAX_TOKENS_PER_GPU",
    "critic.forward_micro_batch_size_per_gpu": "use CRITIC_MICRO_BATCH_SIZE",
}
DEAD_ENGINE = {
    "trainer.seed": "use SEED (engine.seed and data.seed)",
    "trainer.nnodes": "torchrun decides; use NNODES",
    "trainer.n_gpus_per_node": "torchrun decides; use N_GPUS",
    "data.balance_dp_token": "verl has not written it yet",
}
# The launcher computed something else from the knob; the key alone would leave that behind.
DECIDED = {
    "trainer.default_local_dir": ("OUTPUT_DIR", "--resume, test.sh and the monitor look there"),
    "trainer.resume_mode": ("RESUME", "a new run starts its own logs"),
    "trainer.resume_from_path": ("RESUME", "a new run starts its own logs"),
    "actor_rollout_ref.model.path": ("MODEL_PATH", "tokenizer, critic and length checks follow the knob"),
    "model.path": ("MODEL_PATH", "rows are tokenized by the knob's model"),
    "data.train_files": ("TRAIN_DATA", "rows are checked, converted and counted by the knob"),
    "data.val_files": ("VAL_DATA", "rows are checked and converted by the knob"),
    "trainer.total_training_steps": (
        "TOTAL_STEPS",
        "the run's length, its record and its end are computed from it",
    ),
    "trainer.total_epochs": ("TOTAL_EPOCHS", "the run's length, its record and its end are computed from it"),
    "trainer.nnodes": ("NNODES", "Ray's address is chosen by it"),
}


def check(job: Job) -> Iterator[Finding]:
    """Keys that the user wrote and that would not do what they say."""
    dead = DEAD_RL if job.rl else DEAD_ENGINE
    launched = bool(job.record)
    for word in job.command.overrides:
        key = key_of(word)
        if not job.users(key):
            continue
        top = key.partition(".")[0]
        if job.rl and top in LEGACY:
            yield error(
                f"{key}: verl 0.9.1 reads no {top}.* any more and would not say so: use {LEGACY[top]}", key
            )
        # Alone, the launcher's own words cannot be told from the user's; it sets some of these for verl's checks.
        elif key in dead and (launched or key in _NEVER_OURS):
            yield error(f"{key} has no effect in verl 0.9.1: {dead[key]}", key)
        elif key in DECIDED and launched:
            knob, why = DECIDED[key]
            yield warning(
                f"{key} is set beside {knob}={job.record.get('knobs', {}).get(knob, '')}: {why}; use {knob}",
                knob,
            )
        if word.startswith("+") and not exists(job.base, key):
            yield from _near_miss(job, key)


_NEVER_OURS = set(DEAD_RL) - {"critic.ppo_micro_batch_size_per_gpu"}


def _near_miss(job: Job, key: str) -> Iterator[Finding]:
    """`+data.train_bach_size=4` is accepted by Hydra and read by nobody."""
    group, _, last = key.rpartition(".")
    names = [name.rpartition(".")[2] for name in keys(job.base) if name.rpartition(".")[0] == group]
    near = difflib.get_close_matches(last, names, n=1, cutoff=0.9)
    if near:
        yield error(
            f"+{key} is a new key that nothing reads: did you mean {group}.{near[0]} (without +)?", key
        )
