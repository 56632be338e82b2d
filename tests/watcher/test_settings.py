"""watch.yaml and the watcher's knobs: what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from common.launcher.errors import UserError
from common.watcher.launch_checks import problems
from common.watcher.settings import FILE, load, stop_rules


def test_the_shipped_file() -> None:
    settings = load()
    assert settings.stall.factor == 5
    assert settings.rules.name == "config.yaml"
    assert settings.severities == ("bad", "warn")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pol": 1}, "key pol is unknown"),
        ({"poll": None}, "key poll is missing"),
        ({"poll": 0}, "poll must be a number above 0, not 0"),
        ({"poll": True}, "poll must be a number above 0, not True"),
        ({"stall": 5}, "stall must be a mapping"),
        ({"stall": {"factor": 5}}, "key stall.least is missing"),
        (
            {"webhook": {"severities": ["worst"], "events": [], "timeout": 1}},
            "webhook.severities must be a list of",
        ),
    ],
)
def test_a_wrong_file(tmp_path: Path, change: dict, said: str) -> None:
    content = {**yaml.safe_load(FILE.read_text()), **change}
    path = tmp_path / "watch.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    with pytest.raises(UserError, match=said):
        load(path)
    path.write_text("a: [")
    with pytest.raises(UserError, match="is not YAML"):
        load(path)
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "missing")


@pytest.mark.parametrize(
    ("knobs", "task", "said"),
    [
        ({}, "rl", None),
        ({"STOP_ON": "kl_high, stall", "KEEP_BEST": "true", "SAVE_FREQ": "6", "TEST_FREQ": "3"}, "rl", None),
        ({"KEEP_BEST": "true", "SAVE_FREQ": "0", "TEST_FREQ": "5"}, "sft", None),
        ({"STOP_ON": "kl_hihg"}, "rl", "STOP_ON names 'kl_hihg', which is no rule"),
        (
            {"KEEP_BEST": "true", "SAVE_FREQ": "6", "TEST_FREQ": "4"},
            "sft",
            "TEST_FREQ=4 does not divide SAVE_FREQ=6",
        ),
        ({"KEEP_BEST": "true", "SAVE_FREQ": "6", "TEST_FREQ": "0"}, "rl", "TEST_FREQ=0 does not divide"),
        ({"EXPORT_HF": "true", "SAVE_FREQ": "0"}, "rl", "EXPORT_HF needs checkpoints: set SAVE_FREQ above 0"),
        ({"ON_SAVE": "cp {where}", "SAVE_FREQ": "5"}, "rl", "ON_SAVE='cp {where}' cannot be read"),
        (
            {"ON_SAVE": "cp {checkpoint.name} x", "SAVE_FREQ": "5"},
            "rl",
            "ON_SAVE='cp {checkpoint.name} x' cannot be read",
        ),
    ],
)
def test_knobs_at_the_launch(knobs: dict[str, str], task: str, said: str | None) -> None:
    found = problems(knobs, task, {})
    assert len(found) == (said is not None)
    assert said is None or said in found[0]


def test_the_webhooks_format_at_the_launch() -> None:
    (line,) = problems({}, "rl", {"WATCH_WEBHOOK_FORMAT": "teams"})
    assert line == "WATCH_WEBHOOK_FORMAT=teams must be one of slack, feishu, dingtalk, json"


def test_stop_rules_knows_every_rule_of_the_panel() -> None:
    from monitor.settings import load as load_panel

    ids = [rule.id for rule in load_panel(load().rules).rules]
    assert stop_rules(",".join([*ids, "stall"])) == [*ids, "stall"]
