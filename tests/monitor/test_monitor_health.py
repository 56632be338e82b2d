"""Each rule on a series that shows it and on one that does not."""

from __future__ import annotations

import numpy as np
import pytest

from monitor import health
from monitor.settings import Settings

RNG = np.random.default_rng(0)
STEPS = 400


def noise(level: float, spread: float) -> np.ndarray:
    return level + spread * RNG.normal(size=STEPS)


def ramp(low: float, high: float) -> np.ndarray:
    return np.linspace(low, high, STEPS)


def with_value(values: np.ndarray, at: int, value: float) -> np.ndarray:
    changed = values.copy()
    changed[at] = value
    return changed


WELL = {
    "actor/kl_loss": noise(0.02, 0.001), "actor/entropy": noise(0.5, 0.02), "actor/grad_norm": np.abs(noise(1, 0.1)),
    "critic/score/mean": ramp(0.1, 0.8) + noise(0, 0.02), "response_length/clip_ratio": np.full(STEPS, 0.01),
    "perf/throughput": noise(1000, 20), "samples/reward_std": np.full(STEPS, 0.4),
    "samples/zero_advantage_share": np.full(STEPS, 0.3), "samples/reward_error_share": np.zeros(STEPS),
    "samples/duplicate_share": np.full(STEPS, 0.05), "actor/pg_loss": noise(0, 0.01),
    "val/loss": ramp(2.0, 1.0) + noise(0, 0.005), "train/rewards/accuracies": ramp(0.5, 0.9) + 0.05,
    "judge/failure_share": np.zeros(STEPS), "train/rewards/chosen": ramp(0, 0.5),
    "critic/vf_explained_var": ramp(-0.2, 0.8), "train/loss": ramp(2.0, 1.0) + noise(0, 0.1),
}  # fmt: skip
ILL = [
    ("not_finite", "actor/pg_loss", with_value(noise(0, 0.01), 77, np.nan), 78),
    ("not_finite", "actor/grad_norm", with_value(noise(1, 0.01), 77, np.inf), 78),
    ("kl_high", "actor/kl_loss", np.where(np.arange(STEPS) < 200, 0.01, 0.5), 201),
    ("kl_low", "actor/kl_loss", np.where(np.arange(STEPS) < 200, 0.01, 1e-6), 210),
    ("entropy_collapse", "actor/entropy", np.where(np.arange(STEPS) < 200, 1.0, 0.01), 209),
    ("entropy_blowup", "actor/entropy", np.where(np.arange(STEPS) < 200, 0.5, 5.0), 203),
    ("reward_flat", "critic/score/mean", np.where(np.arange(STEPS) < 100, ramp(0, 1) * 3, 0.5), 100),
    ("reward_constant", "critic/score/mean", np.where(np.arange(STEPS) < 300, ramp(0, 1), 0.0), 301),
    ("reward_std_zero", "samples/reward_std", np.where(np.arange(STEPS) < 300, 0.4, 0.0), 301),
    ("zero_advantage", "samples/zero_advantage_share", np.where(np.arange(STEPS) < 200, 0.2, 0.6), 206),
    ("zero_advantage_high", "samples/zero_advantage_share", np.full(STEPS, 0.95), 1),
    ("length_limit", "response_length/clip_ratio", np.where(np.arange(STEPS) < 200, 0.0, 0.5), 202),
    ("gradient_spikes", "actor/grad_norm", with_value(np.abs(noise(1, 0.1)), 250, 50.0), 251),
    ("loss_spike", "train/loss", with_value(ramp(2.0, 1.0), 350, 50.0), 351),
    ("prompt_errors", "console/prompt_errors", np.where(np.arange(STEPS) < 300, 0.0, 3.0), 301),
    ("validation_loss_rising", "val/loss", np.where(np.arange(STEPS) < 300, 1.0, 1.2), 301),
    ("preference_wrong", "train/rewards/accuracies", np.where(np.arange(STEPS) < 200, 0.8, 0.3), 213),
    ("chosen_falling", "train/rewards/chosen", np.where(np.arange(STEPS) < 200, 0.0, -3.0), 208),
    ("critic_blind", "critic/vf_explained_var", np.where(np.arange(STEPS) < 200, 0.5, -0.5), 206),
    ("throughput_drop", "perf/throughput", np.where(np.arange(STEPS) < 300, 1000.0, 500.0), 307),
    ("reward_errors", "samples/reward_error_share", np.where(np.arange(STEPS) < 300, 0.0, 0.1), 301),
    ("judge_failures", "judge/failure_share", np.where(np.arange(STEPS) < 300, 0.0, 0.1), 301),
    ("duplicates", "samples/duplicate_share", np.where(np.arange(STEPS) < 300, 0.0, 0.9), 302),
]


def observe(config: Settings, **changed: np.ndarray) -> list[health.Observation]:
    table = WELL | changed
    steps = np.arange(1, STEPS + 1)
    return health.evaluate(config.rules, table, lambda name: (steps, table[name].astype(np.float32)))


def test_a_healthy_run_gives_no_observation(config: Settings) -> None:
    assert [seen.rule.id for seen in observe(config)] == []


@pytest.mark.parametrize(
    ("rule", "metric", "values", "since"), ILL, ids=[f"{r}-{m.split('/')[-1]}" for r, m, _, _ in ILL]
)
def test_rule_holds_from_its_step(
    config: Settings, rule: str, metric: str, values: np.ndarray, since: int
) -> None:
    found = {seen.rule.id: seen for seen in observe(config, **{metric: values})}
    assert rule in found
    assert found[rule].metric == metric
    assert abs(found[rule].since - since) <= 2
    for lang in ("en", "zh"):
        assert str(found[rule].since) in found[rule].sentence(lang)
        assert found[rule].advice(lang)


def test_every_shipped_rule_is_tested(config: Settings) -> None:
    assert {rule.id for rule in config.rules} == {rule for rule, _, _, _ in ILL}


def test_an_excursion_that_ended_is_not_reported(config: Settings) -> None:
    values = np.where((np.arange(STEPS) > 100) & (np.arange(STEPS) < 200), 0.5, 0.01)
    assert "kl_high" not in {seen.rule.id for seen in observe(config, **{"actor/kl_loss": values})}


def test_first_metric_that_exists_is_judged(config: Settings) -> None:
    table = {"actor/reward_kl_penalty": np.full(50, 0.5, dtype=np.float32)}
    (seen,) = health.evaluate(config.rules, table, lambda name: (np.arange(50), table[name]))
    assert (seen.rule.id, seen.metric) == ("kl_high", "actor/reward_kl_penalty")


def test_long_series_are_judged_by_their_newest_part(config: Settings) -> None:
    values = np.full(200_000, 0.01, dtype=np.float32)
    values[-1000:] = 0.5
    table = {"actor/kl_loss": values}
    found = health.evaluate(config.rules, table, lambda name: (np.arange(200_000), table[name]))
    assert [(seen.rule.id, seen.since) for seen in found] == [("kl_high", 199_000)]


@pytest.mark.parametrize("values", [[], [np.nan], [1.0], [np.nan, np.nan, 1.0], [0.0] * 3])
def test_short_or_empty_series_do_not_break_a_rule(config: Settings, values: list[float]) -> None:
    table = {name: np.array(values, dtype=np.float32) for name in WELL}
    health.evaluate(config.rules, table, lambda name: (np.arange(len(values)), table[name]))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("text", "must be a mapping"),
        ({"id": "x", "metrics": ["a"], "test": "above"}, "'says' is missing"),
        ({"id": "x", "metrics": ["a"], "test": "abov", "says": {"en": ""}}, "unknown test 'abov'"),
        ({"id": "x", "metrics": ["a"], "test": "above", "says": {"zh": ""}}, "needs a text for en"),
        ({"id": "x", "metrics": ["a"], "test": "above", "says": {"en": ""}, "valu": 1}, "unknown key 'valu'"),
        (
            {"id": "x", "metrics": ["a"], "test": "above", "says": {"en": ""}, "value": "high"},
            "could not convert",
        ),
    ],
)
def test_bad_rule_is_named(entry: object, message: str) -> None:
    with pytest.raises(health.RuleError, match=message):
        health.load_rules([entry])
