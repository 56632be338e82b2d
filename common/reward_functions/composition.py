"""Many rewards as one: weights, gates, clipping, scaling, a curriculum by step; every part stays visible."""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.reward_functions.calling import BoundReward, as_parts
from common.reward_functions.errors import RewardError
from common.reward_functions.loading import load_reward
from common.reward_functions.registry import Example, get, nearest, register
from common.reward_functions.training import step_of

_RESERVED = ("score", "acc", "pred", "reward", "reward_error")


@dataclass(frozen=True)
class Part:
    """One reward of a composition.

    Attributes:
        weight: its factor in the sum; a list of [step, weight] pairs changes it linearly over the
        training steps.
        scale: [low, high] of the reward, mapped to 0..1 before the weight.
        clip: [low, high] bounds put on the (scaled) score.
        gate: parts that name this one in `needs` count only where its value reached this.
        needs: names of parts that must have reached their gate for this one to count.
    """

    name: str
    reward: BoundReward
    weight: float | tuple[tuple[float, float], ...] = 1.0
    scale: tuple[float, float] | None = None
    clip: tuple[float, float] | None = None
    gate: float = 1.0
    needs: tuple[str, ...] = ()

    def weight_at(self, step: int | None) -> float:
        """The weight at a training step; before the first and after the last pair it stays at that pair's."""
        if isinstance(self.weight, float):
            return self.weight
        points = self.weight
        now = points[0][0] if step is None else float(step)
        if now <= points[0][0]:
            return points[0][1]
        for (left, low), (right, high) in itertools.pairwise(points):
            if now <= right:
                return low + (high - low) * (now - left) / (right - left)
        return points[-1][1]

    def value(self, score: float) -> float:
        """Scaled and clipped score."""
        if self.scale is not None:
            score = (score - self.scale[0]) / (self.scale[1] - self.scale[0])
        return score if self.clip is None else min(self.clip[1], max(self.clip[0], score))


@dataclass(frozen=True)
class Composite:
    """A weighted sum of parts, callable like any reward.

    Attributes:
        parts: the rewards, in order.
        normalise: divide by the sum of the weights' sizes, so that the score stays within the parts' ranges.
        clip: [low, high] bounds of the final score.
    """

    parts: tuple[Part, ...]
    normalise: bool = False
    clip: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        if not names:
            raise RewardError("a composite needs at least one part")
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise RewardError(f"two parts of the composite are called '{twice[0]}'; give one another name")
        for index, part in enumerate(self.parts):
            if part.name in _RESERVED:
                raise RewardError(f"a part cannot be called '{part.name}'; give it another name")
            for needed in part.needs:
                if needed not in names[:index]:
                    raise RewardError(
                        f"part '{part.name}' needs '{needed}', which is no part before it"
                        f"{nearest(needed, names[:index])}; the parts: {', '.join(names)}"
                    )

    def __call__(self, **passed: Any) -> dict[str, Any]:
        """Score one answer; async parts run side by side on an event loop of their own."""
        results = [part.reward(**passed) for part in self.parts]
        waiting = [result for result in results if inspect.isawaitable(result)]
        if waiting:
            done = iter(asyncio.run(_gather(waiting)))
            results = [next(done) if inspect.isawaitable(result) else result for result in results]
        return self._combine(results, passed)

    async def score_async(self, **passed: Any) -> dict[str, Any]:
        """The same on the caller's event loop; plain functions run in its thread pool."""
        loop = asyncio.get_running_loop()

        async def one(reward: BoundReward) -> Any:
            if reward.is_async:
                return await reward(**passed)
            return await loop.run_in_executor(None, functools.partial(reward, **passed))

        return self._combine(await _gather([one(part.reward) for part in self.parts]), passed)

    def _combine(self, results: list[Any], passed: Mapping[str, Any]) -> dict[str, Any]:
        step = step_of(passed.get("extra_info") or {})
        parts = {p.name: as_parts(r, p.reward.label) for p, r in zip(self.parts, results, strict=True)}
        values = {part.name: part.value(parts[part.name]["score"]) for part in self.parts}
        passed_gate: dict[str, bool] = {}  # a part behind a closed gate keeps its own gate closed
        total = size = 0.0
        shown: dict[str, Any] = {}
        for part in self.parts:
            weight = part.weight_at(step)
            size += abs(weight)
            is_open = all(passed_gate[needed] for needed in part.needs)
            passed_gate[part.name] = is_open and values[part.name] >= part.gate
            total += weight * values[part.name] * is_open
            shown[part.name] = values[part.name]
            if part.needs:
                shown[f"{part.name}_counted"] = float(is_open)
        score = total / size if self.normalise and size else total
        if self.clip is not None:
            score = min(self.clip[1], max(self.clip[0], score))
        judged = next((parts[p.name] for p in self.parts if "acc" in parts[p.name]), None)
        accuracy = {key: value for key, value in (judged or {}).items() if key in ("acc", "pred")}
        return {"score": score, **accuracy, **shown}


async def _gather(waiting: list[Any]) -> list[Any]:
    return list(await asyncio.gather(*waiting))


def compose(config: Mapping[str, Any], base: Path | None = None) -> Composite:
    """Build a composite from a plain mapping.

        parts:
          - {reward: think_answer_format, weight: 0.2}
          - {reward: math, weight: 1.0, needs: [think_answer_format]}
          - {reward: my_rewards.py:politeness, weight: [[0, 0.0], [100, 0.3]], kwargs: {strict: true}}
        normalise: true
        clip: [0, 1]

    Args:
        config: `parts` (each with `reward`; optional `name`, `weight`, `kwargs`, `scale`, `clip`,
        `gate`, `needs`),
            `normalise`, `clip`.
        base: folder that reward files are relative to.

    Raises:
        RewardError: an unknown key, reward or part, or a value of the wrong form.
    """
    _known(config, ("parts", "normalise", "clip"), "a composite")
    entries = config.get("parts")
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise RewardError("a composite needs a list of parts")
    return Composite(
        parts=tuple(_part(entry, base) for entry in entries),
        normalise=bool(config.get("normalise", False)),
        clip=_pair(config.get("clip"), "clip of the composite"),
    )


def _part(entry: Any, base: Path | None) -> Part:
    if isinstance(entry, str):
        entry = {"reward": entry}
    if not isinstance(entry, Mapping) or not entry.get("reward"):
        raise RewardError(f"a part of a composite needs 'reward': {entry!r}")
    _known(entry, ("reward", "name", "weight", "kwargs", "scale", "clip", "gate", "needs"), "a part")
    wanted = str(entry["reward"])
    file, _, function = wanted.rpartition(":")
    if file.endswith(".py"):
        path = Path(file).expanduser()
        reward = load_reward(
            str(path if path.is_absolute() or base is None else base / path), function, entry.get("kwargs")
        )
        name = function
    else:
        reward = load_reward(None, wanted, entry.get("kwargs"))
        name = wanted.removeprefix("common:")
    name = str(entry.get("name", name))
    needs = entry.get("needs", ())
    scale = _pair(entry.get("scale"), f"scale of part '{name}'")
    return Part(
        name=name,
        reward=reward,
        weight=_weight(entry.get("weight", 1.0), name),
        scale=scale,
        clip=_pair(entry.get("clip"), f"clip of part '{name}'"),
        gate=_number(entry.get("gate", 1.0), f"gate of part '{name}'"),
        needs=(needs,) if isinstance(needs, str) else tuple(needs),
    )


def _known(given: Mapping[str, Any], keys: tuple[str, ...], what: str) -> None:
    for key in given:
        if key not in keys:
            raise RewardError(f"{what} has no '{key}'{nearest(str(key), keys)}; it has: {', '.join(keys)}")


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RewardError(f"{what} must be a number, not {value!r}")
    return float(value)


def _pair(value: Any, what: str) -> tuple[float, float] | None:
    if value is None:
        return None
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise RewardError(f"{what} must be [low, high], not {value!r}")
    low, high = (_number(item, what) for item in value)
    if low >= high:
        raise RewardError(f"{what} must be [low, high] with low < high, not {value!r}")
    return low, high


def _weight(value: Any, name: str) -> float | tuple[tuple[float, float], ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return _number(value, f"weight of part '{name}'")
    points = []
    for point in value:
        if not isinstance(point, Sequence) or isinstance(point, str) or len(point) != 2:
            raise RewardError(
                f"weight of part '{name}' must be a number or a list of [step, weight], not {value!r}"
            )
        points.append(
            (_number(point[0], f"step of part '{name}'"), _number(point[1], f"weight of part '{name}'"))
        )
    if not points or [step for step, _ in points] != sorted({step for step, _ in points}):
        raise RewardError(f"the steps in the weight of part '{name}' must rise, not {value!r}")
    return tuple(points)


@functools.lru_cache(maxsize=64)
def _composed(configuration: str) -> Composite:
    """The composite of one configuration (JSON text), built once and not at every call."""
    given = json.loads(configuration)
    if bool(given["config"]) == (given["parts"] is not None):
        raise RewardError("composite needs either config (a YAML file) or parts")
    if given["config"]:
        return compose_file(Path(given["config"]))
    return compose({key: given[key] for key in ("parts", "normalise", "clip")})


def compose_file(path: Path) -> Composite:
    """A composite from a YAML file; reward files in it are relative to that file.

    Raises:
        RewardError: no such file, no YAML mapping, or a wrong entry.
    """
    import yaml

    if not path.is_file():
        raise RewardError(f"composite file {path} does not exist")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RewardError(
            f"composite file {path} is not valid YAML: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(config, Mapping):
        raise RewardError(f"composite file {path} must hold a mapping with 'parts'")
    return compose(config, path.parent)


def _gold(truth: Any, extra: Mapping[str, Any]) -> str | None:
    """A gold answer for the usual parts at once: thinking, an answer tag, the gold of the first part."""
    parts = extra.get("parts") or (
        [{"reward": p.name} for p in compose_file(Path(extra["config"])).parts] if extra.get("config") else []
    )
    names = [str(p if isinstance(p, str) else p["reward"]).removeprefix("common:") for p in parts]
    if any(".py:" in name for name in names):
        return None
    golds = [get(name).gold(truth, extra) for name in names if name != "think_answer_format"]
    if "think_answer_format" in names:
        return f"<think>\nWe work it out.\n</think>\n<answer>{golds[0] if golds else truth}</answer>"
    return golds[0] if golds else str(truth)


@register(
    "composite",
    low=0.0,
    high=1.0,
    source="weights and gates as in verifiers' Rubric (PrimeIntellect-ai/verifiers)",
    gold=_gold,
    examples=(
        Example(r"\boxed{2}", "2", 1.0, kwargs={"parts": [{"reward": "math"}]}),
        Example(
            "<answer>2</answer>",
            "2",
            0.0,
            kwargs={
                "parts": [
                    {"reward": "think_answer_format", "weight": 0.0},
                    {"reward": "math", "needs": ["think_answer_format"]},
                ]
            },
        ),
        Example(
            r"So 2, \boxed{3}",
            "2",
            0.2,
            kwargs={"parts": [{"reward": "math", "weight": 0.8}, {"reward": "boxed_format", "weight": 0.2}]},
        ),
    ),
)
def composite(
    solution_str: str,
    ground_truth: Any,
    data_source: str = "",
    extra_info: Mapping[str, Any] | None = None,
    *,
    config: str = "",
    parts: Sequence[Any] | None = None,
    normalise: bool = False,
    clip: Sequence[float] | None = None,
    reward_router_address: str | None = None,
    reward_model_tokenizer: Any = None,
) -> dict[str, Any]:
    """A weighted sum of other rewards, from a YAML file or from `parts`.

    The score range follows from the weights.

    Args:
        config: YAML file, see `compose`.
        parts: the same list as in the file.
        normalise: divide by the sum of the weights.
        clip: [low, high] of the final score.
        reward_router_address: passed by verl while it serves a reward model, handed to the parts that take it.
        reward_model_tokenizer: the same.
    """
    configuration = {"config": config, "parts": parts, "normalise": normalise, "clip": clip}
    built = _composed(json.dumps(configuration))
    passed = {
        "solution_str": solution_str,
        "ground_truth": ground_truth,
        "data_source": data_source,
        "extra_info": extra_info,
    }
    if reward_router_address is not None:
        passed |= {
            "reward_router_address": reward_router_address,
            "reward_model_tokenizer": reward_model_tokenizer,
        }
    return built(**passed)
