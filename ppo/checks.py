"""What PPO checks before Ray starts beyond the shared checks, and what it derives from its knobs."""

from __future__ import annotations

import json
from pathlib import Path

from common.cpu.model import resolve_model_path
from common.launcher import checks
from common.launcher.checks import number
from common.launcher.errors import UserError
from ppo import reward_source


def prepare(knobs: dict[str, str], run_dir: Path) -> dict[str, str]:
    """CRITIC_DIR ("" = the policy's) and the REWARD_* values of the chosen source, for the shell.

    Raises:
        UserError: every mistake in PPO's own knobs, a line each.
    """
    problems = check_numbers(knobs) + check_critic_batches(knobs)
    derived: dict[str, str] = {}
    for step in (critic_folder, lambda given: reward_source.derive(given, run_dir)):
        try:
            derived |= step(knobs)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return derived


def score_own_rows(knobs: dict[str, str], data: str) -> list[str]:
    """The reward's preflight; one line per problem. A function is tried on rows, a judge by one call."""
    return reward_source.preflight(knobs, data)


def check_numbers(knobs: dict[str, str]) -> list[str]:
    """Values that verl refuses late, or takes and does something else with."""
    value = {
        name: float(knobs[name]) for name in ("GAMMA", "GAE_LAMBDA", "CLIP_RATIO_C", "KL_TARGET", "KL_COEF")
    }
    problems = [
        f"{n}={knobs[n]} must lie between 0 and 1" for n in ("GAMMA", "GAE_LAMBDA") if not 0 <= value[n] <= 1
    ]
    problems += [
        f"{name}={knobs[name]} must be above 0"
        for name in ("CLIP_RATIO_LOW", "CLIP_RATIO_HIGH", "CLIPRANGE_VALUE", "CRITIC_LEARNING_RATE")
        if float(knobs[name]) <= 0
    ]
    problems += [
        f"{name}={knobs[name]} must be 1 or more" for name in ("PPO_EPOCHS",) if number(knobs, name) < 1
    ]
    if value["CLIP_RATIO_C"] <= 1:
        problems.append(f"CLIP_RATIO_C={knobs['CLIP_RATIO_C']} must be above 1 (3.0 is usual)")
    if value["KL_COEF"] < 0:
        problems.append(f"KL_COEF={knobs['KL_COEF']} must not be negative; KL_MODE=none switches the KL off")
    if knobs["KL_CONTROLLER"] == "adaptive":
        if knobs["KL_MODE"] != "reward":
            problems.append(
                f"KL_CONTROLLER=adaptive steers a KL in the reward, but KL_MODE={knobs['KL_MODE']}: "
                "use KL_MODE=reward or KL_CONTROLLER=fixed"
            )
        if value["KL_TARGET"] <= 0 or value["KL_COEF"] <= 0 or number(knobs, "KL_HORIZON") < 1:
            problems.append("KL_CONTROLLER=adaptive needs KL_TARGET, KL_COEF and KL_HORIZON above 0")
    warmup, steps = number(knobs, "CRITIC_WARMUP", 0), number(knobs, "TOTAL_STEPS", 0)
    if warmup < 0 or 0 < steps <= warmup:
        problems.append(
            f"CRITIC_WARMUP={warmup} of TOTAL_STEPS={steps} steps: the policy would never be updated"
        )
    if knobs["REPRODUCIBLE"] == "true" and knobs["ROLLOUT_ENGINE"] != "vllm":
        problems.append(
            f"REPRODUCIBLE=true seeds each answer, which ROLLOUT_ENGINE={knobs['ROLLOUT_ENGINE']} cannot: use vllm"
        )
    return problems


def check_critic_batches(knobs: dict[str, str]) -> list[str]:
    """The critic's micro-batches; the shared checks look at the actor's."""
    sp, budget = number(knobs, "SEQUENCE_PARALLEL_SIZE"), number(knobs, "CRITIC_MAX_TOKENS_PER_GPU", 0)
    longest = number(knobs, "MAX_PROMPT_LENGTH", 0) + number(knobs, "MAX_RESPONSE_LENGTH", 0)
    if knobs["USE_DYNAMIC_BSZ"] == "true":
        if 0 < budget * sp < longest:
            return [
                f"CRITIC_MAX_TOKENS_PER_GPU={budget} (x {sp} sequence parallel) is below MAX_PROMPT_LENGTH + "
                f"MAX_RESPONSE_LENGTH = {longest}: use {-(-longest // sp)} or more"
            ]
        return []
    micro = number(knobs, "CRITIC_MICRO_BATCH_SIZE", 0)
    dp = number(knobs, "N_GPUS") * number(knobs, "NNODES") // sp
    each = number(knobs, "MINI_BATCH_SIZE") * number(knobs, "ROLLOUT_N") // max(dp, 1)
    if micro < 0 or (micro and each % micro):
        return [f"CRITIC_MICRO_BATCH_SIZE={micro} does not divide the {each} answers each rank updates on"]
    return []


def critic_folder(knobs: dict[str, str]) -> dict[str, str]:
    """Folder or hub id of CRITIC_MODEL_PATH, "" where the critic starts from the policy.

    Raises:
        UserError: no such model, or one that knows fewer tokens than the policy.
    """
    path = knobs["CRITIC_MODEL_PATH"]
    if not path:
        return {"CRITIC_DIR": ""}
    try:
        critic = checks.check_model(resolve_model_path(path))
    except UserError as error:
        raise UserError(str(error).replace("MODEL_PATH=", "CRITIC_MODEL_PATH=")) from None
    known, needed = vocabulary(critic), vocabulary(resolve_model_path(knobs["MODEL_PATH"]))
    if known and needed and known < needed:
        raise UserError(
            f"CRITIC_MODEL_PATH={path} knows {known} tokens, MODEL_PATH {needed}: the critic reads the policy's "
            "token ids, so take a model with the same tokenizer"
        )
    return {"CRITIC_DIR": critic}


def vocabulary(model: str) -> int:
    """Rows of the embedding by config.json, 0 where that is not at hand."""
    try:
        return int(json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
