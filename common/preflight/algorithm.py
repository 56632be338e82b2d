"""RL: the objective, the rollout and the sampling; what verl finds out minutes later or never."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from common.launcher import checks
from common.preflight import filter_groups, names
from common.preflight.finding import Finding, error, warning
from common.preflight.job import ACTOR, ROLLOUT, Job
from common.preflight.optimiser import optimiser


def check(job: Job, estimators: Iterable[str], losses: Iterable[str]) -> Iterator[Finding]:
    """Estimator, loss, KL, clipping and optimiser.

    Args:
        estimators, losses: names that external modules registered beside verl's own.
    """
    yield from _estimator(job, names.estimators() | set(estimators))
    yield from _loss(job, names.losses() | set(losses))
    yield from _kl(job)
    yield from filter_groups.check(job)
    yield from optimiser(job, f"{ACTOR}.optim")
    if job.needs_critic:
        yield from optimiser(job, "critic.optim")
        yield from _critic(job)
    elif job.get("algorithm.adv_estimator") == "gae":
        yield error(
            "critic.enable=False, but adv_estimator=gae computes advantages from the critic's values: leave "
            "critic.enable out",
            "critic.enable",
        )


def _estimator(job: Job, known: frozenset[str] | set[str]) -> Iterator[Finding]:
    estimator, key = str(job.get("algorithm.adv_estimator")), "algorithm.adv_estimator"
    if estimator not in known:
        yield error(f"{key}={estimator} is none that verl knows{names.suggest(estimator, known)}", key)
        return
    v1 = bool(job.get("trainer.use_v1", True))
    if estimator in names.V0_ONLY and v1:
        yield error(
            f"{key}={estimator} works only in verl's older trainer (the newer one does not compute what it needs): "
            "add trainer.use_v1=False",
            key,
        )
    opponent = job.get("algorithm.preference.opponent", "group")
    if estimator not in names.ONE_ANSWER and not (estimator == "preference" and opponent == "previous"):
        knobs = {"ALGORITHM": estimator, "ROLLOUT_N": str(job.get(f"{ROLLOUT}.n"))}
        for line in checks.check_group_size(knobs):
            yield error(line, "ROLLOUT_N")
    if job.get("algorithm.use_pf_ppo"):
        yield error(
            "algorithm.use_pf_ppo=True does not work in verl 0.9.1's trainer (issue #7956): leave it out"
        )


def _loss(job: Job, known: frozenset[str] | set[str]) -> Iterator[Finding]:
    key = f"{ACTOR}.policy_loss.loss_mode"
    loss = str(job.get(key, "vanilla"))
    if loss != "bypass_mode" and loss not in known:
        yield error(f"{key}={loss} is none that verl knows{names.suggest(loss, known)}", key)
    beta = job.get(f"{ACTOR}.policy_loss.dro_beta")
    if loss == "dro" and not (isinstance(beta, int | float) and beta > 0):
        yield error(f"{key}=dro needs {ACTOR}.policy_loss.dro_beta above 0, it is {beta}", key)
    low, high = (job.get(f"{ACTOR}.clip_ratio_{side}") for side in ("low", "high"))
    if job.users(f"{ACTOR}.clip_ratio") and not job.users(f"{ACTOR}.clip_ratio_low"):
        yield error(
            f"{ACTOR}.clip_ratio={job.get(f'{ACTOR}.clip_ratio')} has no effect: clip_ratio_low={low} and "
            f"clip_ratio_high={high} win; set CLIP_RATIO_LOW and CLIP_RATIO_HIGH",
            "CLIP_RATIO_LOW",
        )
    for side, value in (("low", low), ("high", high)):
        if isinstance(value, int | float) and value <= 0:
            yield error(
                f"{job.name(f'{ACTOR}.clip_ratio_{side}')}={value} must be above 0 (0.2 is usual): nothing would "
                "be learned from the first update on",
                f"CLIP_RATIO_{side.upper()}",
            )
    most = job.get(f"{ACTOR}.clip_ratio_c", 3.0)
    if loss in ("vanilla", "bypass_mode") and isinstance(most, int | float) and most <= 1:
        yield error(
            f"{ACTOR}.clip_ratio_c={most} must be above 1, as verl asserts in the first update (3.0 is usual)",
            f"{ACTOR}.clip_ratio_c",
        )
    batch, mini = job.number("data.train_batch_size"), job.number(f"{ACTOR}.ppo_mini_batch_size")
    once = batch == mini and job.number(f"{ACTOR}.ppo_epochs") == 1
    # GSPO's own launcher says this of its knobs.
    if loss == "gspo" and once and job.command.method != "gspo":
        yield error(
            f"loss_mode=gspo clips from the second update on a rollout on, but MINI_BATCH_SIZE={mini} is the whole "
            f"TRAIN_BATCH_SIZE={batch}: use MINI_BATCH_SIZE={max(1, batch // 4)}",
            "MINI_BATCH_SIZE",
        )


def _kl(job: Job) -> Iterator[Finding]:
    uses = [
        ("algorithm.kl_penalty", bool(job.get("algorithm.use_kl_in_reward"))),
        (f"{ACTOR}.kl_loss_type", bool(job.get(f"{ACTOR}.use_kl_loss"))),
    ]
    for key, used in uses:
        value = str(job.get(key, "kl"))
        if used and value.removesuffix("+") not in names.KL_ESTIMATORS:
            yield error(f"{key}={value} is no KL estimator{names.suggest(value, names.KL_ESTIMATORS)}", key)
    kind = job.get("algorithm.kl_ctrl.type", "fixed")
    if kind not in ("fixed", "adaptive"):
        yield error(f"algorithm.kl_ctrl.type={kind} must be fixed or adaptive", "KL_CONTROLLER")
    elif kind == "adaptive" and job.get("algorithm.kl_ctrl.horizon", 0) <= 0:
        yield error("algorithm.kl_ctrl.type=adaptive needs algorithm.kl_ctrl.horizon above 0", "KL_HORIZON")
    for key in ("algorithm.kl_ctrl.kl_coef", f"{ACTOR}.kl_loss_coef"):
        if job.get(key, 0) < 0:
            yield error(
                f"{key}={job.get(key)} is negative: it would push the policy away from its reference", key
            )
    if all(used for _, used in uses):
        yield warning(
            "the KL counts twice, in the reward and in the loss: use_kl_in_reward and use_kl_loss are both on"
        )


def _critic(job: Job) -> Iterator[Finding]:
    epochs = job.number("critic.ppo_epochs")
    if epochs < 1:
        yield error(
            f"critic.ppo_epochs={epochs}: the critic would never be updated; use 1 or more",
            "critic.ppo_epochs",
        )
    if job.number("critic.model.lora_rank", 0) > 0:
        yield error(
            "critic.model.lora_rank has an error in verl 0.9.1 (a value head cannot be wrapped): leave it out"
        )
    warmup, steps = job.number("trainer.critic_warmup", 0), job.number("trainer.total_training_steps", 0)
    if 0 < steps < warmup:
        yield error(
            f"trainer.critic_warmup={warmup} of {steps} steps: the policy would never be updated",
            "CRITIC_WARMUP",
        )
    if "hf_model" in list(job.get("critic.checkpoint.save_contents", [])):
        yield error(
            "critic.checkpoint.save_contents holds hf_model, which verl exports as a language model that it is not: "
            "leave hf_model out"
        )
