"""Self-play with real verl: two rounds, killed in the second and gone on with; GSPO beside GRPO from one seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import ROOT, Run, Trainer, wait_for_step

pytestmark = pytest.mark.e2e
SHARED = (
    *("--batch_size", "8", "--n", "4", "--steps", "2", "--seed", "1"),
    *("--lr", "1e-5", "--use_kl_loss", "true"),
)


def in_folder(model: Path, name: str) -> bytes:
    """One tensor of an exported model, as bytes."""
    from safetensors import safe_open

    with safe_open(model / "model.safetensors", "pt") as file:
        return file.get_tensor(name).float().numpy().tobytes()


@pytest.fixture(scope="module")
def killed(train: Trainer) -> dict[int, dict[str, float]]:
    """Metrics of two rounds of two steps, killed after the first step of the second round."""
    flags = ("--self_play_rounds", "2", "--save_freq", "1", "--test_freq", "2", "--keep_checkpoints", "0")
    run, process = train.start("gspo", "rounds", *SHARED, *flags)
    wait_for_step(run, 3, process, timeout=900)
    process.kill()
    process.wait()
    return run.metrics


@pytest.fixture(scope="module")
def played(train: Trainer, killed: dict[int, dict[str, float]]) -> Run:
    """The same run, resumed and finished."""
    return train("gspo", "rounds", "--resume", "rounds").check()


def test_a_run_killed_in_round_two_goes_on_in_round_two(
    played: Run, killed: dict[int, dict[str, float]]
) -> None:
    assert "resuming gspo/rounds from step 3 of 4" in played.log
    assert "round 2 of 2, steps 4 to 4, from " in played.log
    assert "round 1 of 2" not in played.log
    assert sorted(played.metrics) == [0, 1, 2, 3, 4]
    assert [killed[step] for step in (1, 2)] == [played.metrics[step] for step in (1, 2)]
    attempts = played.record["attempts"]
    assert [(a["round"], a["resumed_from_step"]) for a in attempts] == [(1, None), (2, 2), (2, 3)]
    assert played.record["state"] == "finished"
    assert (played.checkpoints / "global_step_4/actor/huggingface/model.safetensors").is_file()


def test_verl_trained_on_win_rates_of_its_own_scores(played: Run) -> None:
    for step in (1, 2, 3, 4):
        lines = (played.folder / "rollouts" / f"{step}.jsonl").read_text().splitlines()
        groups: dict[str, list[float]] = {}
        for row in map(json.loads, lines):
            groups.setdefault(row["uid"].rsplit("_", 2)[0], []).append(row["score"])
        assert [len(group) for group in groups.values()] == [4] * 8
        rates = [
            (sum((own > other) + (own == other) / 2 for other in group) - 0.5) / 3 - 0.5
            for group in groups.values()
            for own in group
        ]
        for name, expected in (("max", max(rates)), ("min", min(rates))):
            assert abs(played.metrics[step][f"critic/advantages/{name}"] - expected) < 1e-6, (step, name)


@pytest.mark.matrix
def test_gspo_and_grpo_from_one_seed_differ(train: Trainer, played: Run) -> None:
    reward = str(ROOT / "gspo/reward_func.py")
    flags = ("--mini_batch_size", "2", "--reward_func_path", reward, "--test_freq", "0", "--save_freq", "2")
    grpo = train("grpo", "beside", *SHARED, *flags).check()
    assert grpo.prompts(1) == played.prompts(1)
    # The clip of a whole answer at 3e-4 meets what the clip of a token at 0.2 lets pass.
    clipped = [sum(run.metrics[step]["actor/pg_clipfrac"] for step in (1, 2)) for run in (played, grpo)]
    assert clipped[0] > clipped[1] + 0.02
    name = "model.layers.0.self_attn.q_proj.weight"
    weights = [in_folder(run.checkpoints / "global_step_2/actor/huggingface", name) for run in (grpo, played)]
    assert weights[0] != weights[1]


@pytest.mark.matrix
def test_a_further_round_takes_the_last_policy_as_its_reference(train: Trainer, played: Run) -> None:
    # So small a learning rate keeps the policy where the round begins, which is where its reference is.
    flags = ("--self_play_rounds", "3", "--lr", "1e-12")
    more = train("gspo", "rounds", "--resume", "rounds", *flags).check()
    assert "round 3 of 3, steps 5 to 6, from " in more.log
    assert more.metrics[5]["actor/kl_loss"] < more.metrics[4]["actor/kl_loss"] / 3


@pytest.fixture(scope="module")
def few_rows(train: Trainer) -> tuple[str, ...]:
    """Flags for 24 training and 8 validation rows."""
    flags = []
    train.output.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", 24), ("val", 8)):
        lines = (ROOT / f"grpo/data/{name}.jsonl").read_text().splitlines()[:rows]
        path = train.output / f"{name}.jsonl"
        path.write_text("\n".join(lines) + "\n")
        flags += [f"--{name}_data", str(path)]
    return tuple(flags)


@pytest.mark.matrix
def test_previous_policy_as_opponent(train: Trainer, few_rows: tuple[str, ...]) -> None:
    run = train("gspo", "both", "--smoke", "--opponent", "both", *few_rows).check()
    assert sorted(step for step in run.metrics if step) == [1, 2]
    for number in (1, 2):
        scores = json.loads((run.folder / "opponents" / f"round-{number}.json").read_text())
        assert sorted(map(int, scores)) == list(range(24))
        answers = (run.folder / "opponents" / f"round-{number}" / "0.jsonl").read_text().splitlines()
        assert len(answers) == 24


@pytest.mark.matrix
def test_lora_rounds_go_on_from_the_merged_model(train: Trainer, few_rows: tuple[str, ...]) -> None:
    # No right answer in so few tries, no win, no update: here every letter counts.
    reward = train.output.parent / "letters.py"
    reward.write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    return sum(letter.islower() for letter in solution_str) / 100\n"
    )
    lora = (
        "--use_lora",
        "--lora_rank",
        "8",
        "--lr",
        "1e-4",
        "--no-preflight",
        "--reward_func_path",
        str(reward),
    )
    run = train("gspo", "lora", "--smoke", *lora, *few_rows).check()
    assert sorted(step for step in run.metrics if step) == [1, 2]
    assert (run.checkpoints / "global_step_2/actor/lora_train_meta.json").is_file()
    assert "round 2 of 2, steps 2 to 2, from " in run.log
