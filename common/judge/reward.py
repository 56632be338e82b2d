"""A judge as verl's reward: the score of a sample, and what a failed judgement does to the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.judge.failures import CallFailed, JudgeError
from common.judge.groups import Place
from common.judge.judge import Tag
from common.judge.service import Service, shared_service
from common.judge.templates import question_text, reference_text
from common.reward_functions.training import step_of

# Where the question is looked for in extra_info: first what the reward manager puts there (verl_manager.py).
QUESTION_KEYS = ("raw_prompt", "question", "prompt", "problem", "instruction", "query")
# max_failure_share is judged once there are so many outcomes.
FEWEST = 20


async def judged(
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None,
    *,
    config: str,
    settings: Mapping[str, Any] | None = None,
    run_dir: str = "",
) -> dict[str, Any]:
    """Score one sample.

    Args:
        config: the judge's YAML file.
        settings: keys that replace those of the file.
        run_dir: folder of `judge-metrics.jsonl`; "" for none.

    Returns:
        `score` (in reward_range), `judge_failed` and `judge_cached` (0.0 or 1.0) and `judge_reason`.

    Raises:
        JudgeError: the configuration or the row cannot be used; or the judgement failed and the policy says
            raise, or more than `max_failure_share` of the recent ones failed.
    """
    service = shared_service(config, settings, run_dir)
    extra = extra_info or {}
    question = _question(extra)
    reference = reference_text(ground_truth)
    tag = (step_of(extra), str(extra.get("split") or ""))
    return await service.run(_score(service, question, solution_str, reference, tag, _place(extra)))


async def _score(
    service: Service, question: str, answer: str, reference: str, tag: Tag, place: Place
) -> dict[str, Any]:
    try:
        verdict = await service.judge.score(question, answer, reference, tag)
    except CallFailed as failure:
        service.judge.metrics.add(tag, failures=1, **{f"failed_{failure.kind}": 1})
        return _parts(await _stand_in(service, failure, place), failed=True, reason=str(failure))
    finally:
        service.flush_soon()
    _note(service, failed=False)
    service.groups.report(place, verdict.reward)
    return _parts(verdict.reward, reason=verdict.reason, cached=verdict.cached)


async def _stand_in(service: Service, failure: CallFailed, place: Place) -> float:
    """The score of a sample without a judgement, by the policy."""
    s = service.settings
    if s.on_failure == "raise":
        raise JudgeError(f"judge {s.model}: {failure} (on_failure: raise)") from None
    share = _note(service, failed=True)
    if share > s.max_failure_share:
        raise JudgeError(
            f"judge {s.model}: {share:.0%} of the last judgements failed, more than max_failure_share="
            f"{s.max_failure_share:g}; the last: {failure}"
        ) from None
    if s.on_failure == "constant":
        return s.failure_score
    try:
        return await service.groups.fill(place)
    except CallFailed as nothing:
        raise JudgeError(f"judge {s.model}: {nothing}; the last failure: {failure}") from None


def _note(service: Service, failed: bool) -> float:
    """Remember an outcome; returns the share of failures among the recent ones, 0.0 while they are few."""
    recent = service.outcomes
    recent.append(failed)
    return sum(recent) / len(recent) if len(recent) >= FEWEST else 0.0


def _parts(score: float, failed: bool = False, reason: str = "", cached: bool = False) -> dict[str, Any]:
    return {
        "score": score,
        "judge_failed": float(failed),
        "judge_cached": float(cached),
        "judge_reason": reason,
    }


def _question(extra: Mapping[str, Any]) -> str:
    for key in QUESTION_KEYS:
        value = extra.get(key)
        text = "" if value is None else question_text(value)
        if text:
            return text
    raise JudgeError(
        "the judge needs the question, which verl does not pass to a reward by itself: train with "
        "reward.reward_manager of ppo/api_reward.py's docstring, or keep a column 'question' in the data"
    )


def _place(extra: Mapping[str, Any]) -> Place:
    return Place(
        group=str(extra.get("uid") or ""),
        sample=int(extra.get("session_id") or 0),
        size=int(extra.get("group_size") or 1),
        split=str(extra.get("split") or ""),
    )
