"""In which phase of a step something happened, from the functions of a traceback.

Names are those of verl 0.9.1: trainer/ppo/v1/trainer_base.py, workers/engine_workers.py, trainer/sft_trainer.py,
workers/rollout/vllm_rollout/, experimental/agent_loop/, and of dpo/dpo_trainer.py.
"""

from __future__ import annotations

import re

from common.failures.console import Line, Raised

START = "start-up"
RESUME = "resume from a checkpoint"
DATA = "data loading"
ROLLOUT = "rollout"
REWARD = "reward"
LOG_PROB = "log-prob"
ADVANTAGE = "advantages"
ACTOR = "update of the actor"
CRITIC = "update of the critic"
UPDATE = "update"
SYNC = "weight sync"
VALIDATION = "validation"
SAVE = "save"

# The first row that any function of the traceback matches wins, so the narrow ones stand first.
_FUNCTIONS: list[tuple[str, str]] = [
    (r"load_checkpoint|_load_checkpoint", RESUME),
    (r"save_checkpoint|_save_checkpoint|save_pretrained|save_hf_model", SAVE),
    (r"update_weights|receive_weights|sync_weights|bucketed_weight|load_weights_from_ipc", SYNC),
    (r"compute_score|run_single|score_async|compute_rm_score|_compute_score", REWARD),
    (r"_validate\b|_val\b|validate_batch", VALIDATION),
    (r"create_rl_dataset|_build_dataset|_read_files_and_tokenize|load_pairs|_read_files", START),
    (r"__getitem__|collate|_next_data|_try_get_data|_process_next_batch", DATA),
    (r"critic_?(train|update)|update_critic|train_mini_batch_critic|_update_critic", CRITIC),
    (r"update_actor|_update_actor|actor_rollout_ref_train|actor_train", ACTOR),
    (
        r"compute_(ref_)?log_prob|_compute_(old|ref)_log_prob|_compute_old|compute_values|infer_batch|infer_mini",
        LOG_PROB,
    ),
    (r"compute_advantage|get_adv_estimator", ADVANTAGE),
    (r"init_workers|init_model|_init_engine|_build_engine|_build_config|launch_server|launch_servers", START),
    (
        r"__init__|initialize|create_colocated|_init_resource_pool|init_process_group|init_device|ray_init",
        START,
    ),
    (r"generate_sequences|_run_agent_loop|_run_prompt|generate\b|wake_up|_agent_loop", ROLLOUT),
    (r"train_batch|train_mini_batch|forward_backward_batch|training_step|optimizer_step", UPDATE),
]
_STEP = re.compile(r"(?<![\w/])step:(\d{1,18}) - ")
_TRAINING = re.compile(r"Training Progress:\s+\d|Epoch \d+/\d+:\s+\d")


def steps_logged(lines: list[Line]) -> dict[int, int]:
    """The steps whose metrics were printed, the newest last, each with the last line that has some."""
    found: dict[int, int] = {}
    for line in lines:
        for match in _STEP.finditer(line.text):
            step = int(match.group(1))
            found.pop(step, None)
            found[step] = line.number
    return found


def phase_of(error: Raised | None, chain: list[Raised], lines: list[Line]) -> str:
    """The phase, in words; where no function tells, how far the log came.

    Args:
        error: the root exception, if there is one.
        chain: the exceptions that wrapped it (Ray's, torchrun's), whose frames tell as well.
    """
    names = [name for one in ([error] if error else []) + chain for name in _names(one)]
    for pattern, phase in _FUNCTIONS:
        matcher = re.compile(pattern)
        if any(matcher.search(name) for name in names):
            return phase
    if steps := steps_logged(lines):
        return f"training, after step {list(steps)[-1]}"
    return "training, in the first step" if any(_TRAINING.search(line.text) for line in lines) else START


def _names(error: Raised) -> list[str]:
    return [error.remote, *(function for _, _, function in error.frames)]
