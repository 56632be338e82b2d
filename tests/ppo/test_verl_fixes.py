"""What common/verl_fixes.py mends, each against upstream's own code; and rollouts that can be repeated."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_model import tiny_model
from tiny_scorer import tiny_scorer

pytestmark = pytest.mark.slow  # imports verl
ROOT = Path(__file__).resolve().parents[2]

CRITIC = """
import sys, torch
from transformers import AutoConfig
from verl.utils.model import load_valuehead_model
config = AutoConfig.from_pretrained(sys.argv[1], attn_implementation="sdpa")
config.num_labels = 1
model = load_valuehead_model(sys.argv[1], torch.float32, config, False)
values = model(torch.arange(6)[None]).logits
print(type(model).__name__, model.config._attn_implementation, tuple(values.shape), values.abs().max().item())
"""


def load_critic(model: Path, modules: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CRITIC, str(model)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "VERL_USE_EXTERNAL_MODULES": modules},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def test_critic_loads_without_flash_attn_and_upstream_does_not(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    mended = load_critic(model, "common.verl_fixes")
    assert mended.stdout.split("\n")[-2] == "LlamaForTokenClassification sdpa (1, 6, 1) 0.0", mended.stderr
    scorer = tiny_scorer(tmp_path / "scorer")
    own_head = load_critic(scorer, "common.verl_fixes").stdout.split()[-1]
    assert float(own_head) > 0, "a reward model's head is where the critic should start"
    upstream = load_critic(model, "")
    assert "is not a value head model" in upstream.stderr


class Queue:
    """TransferQueue's two calls on columns in memory."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self.columns = columns
        self.written: Any = None

    def kv_batch_get(self, keys: Any, partition_id: str, select_fields: list[str]) -> Any:
        from verl.utils import tensordict_utils

        return tensordict_utils.get_tensordict({name: self.columns[name] for name in select_fields})

    def kv_batch_put(self, keys: Any, partition_id: str, fields: Any) -> None:
        self.written = fields


def test_colocated_reward_sees_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from tensordict import TensorDict
    from verl import DataProto
    from verl.trainer.ppo.v1 import trainer_base

    from common.verl_fixes import rows_for_rewards

    def ragged(*lengths: int) -> Any:
        return torch.nested.as_nested_tensor(
            [torch.ones(n, dtype=torch.long) for n in lengths], layout=torch.jagged
        )

    queue = Queue(
        {
            "prompts": ragged(3, 2),
            "responses": ragged(1, 4),
            "raw_prompt": [[{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]],
            "data_source": ["sums", "sums"],
            "reward_model": [{"ground_truth": "1"}, {"ground_truth": "2"}],
            "extra_info": [{"index": 0}, {"index": 1}],
        }
    )
    seen: list[Any] = []

    def compute_rm_score(data: Any) -> Any:
        seen.append(data)
        scores = torch.zeros(data.batch["responses"].shape)
        scores[:, 0] = torch.tensor([0.25, 0.5])
        return DataProto(batch=TensorDict({"rm_scores": scores}, batch_size=len(data)), meta_info={})

    trainer = SimpleNamespace(
        reward_loop_manager=SimpleNamespace(compute_rm_score=compute_rm_score),
        tokenizer=SimpleNamespace(pad_token_id=0),
        _lengths_to_mask=trainer_base.PPOTrainer._lengths_to_mask,
    )
    manager = trainer.reward_loop_manager
    batch = type(
        "Batch", (), {"keys": ["a_0_0", "b_0_0"], "partition_id": "train", "__len__": lambda self: 2}
    )()
    monkeypatch.setattr(trainer_base, "tq", queue)
    patched = trainer_base.PPOTrainer._compute_reward_colocate  # importing the module above has mended it
    upstream = patched.__wrapped__
    monkeypatch.setattr(trainer_base.PPOTrainer, "_compute_reward_colocate", upstream)
    upstream(trainer, batch)
    assert "data_source" not in seen[0].non_tensor_batch, "upstream passes the row now: drop the patch"

    rows_for_rewards(trainer_base)
    trainer_base.PPOTrainer._compute_reward_colocate(trainer, batch, metrics={})
    row = seen[1][1].non_tensor_batch
    assert (row["data_source"], row["reward_model"], row["extra_info"]) == (
        "sums",
        {"ground_truth": "2"},
        {"index": 1},
    )
    assert [scores[0].item() for scores in queue.written["rm_scores"].unbind()] == [0.25, 0.5]
    assert trainer.reward_loop_manager is manager


def test_seed_of_an_answer_depends_on_what_it_should() -> None:
    from common.reproducible import answer_seed

    prompt = [{"role": "user", "content": "2 + 2?"}]
    base = answer_seed(1, 3, 0, prompt)
    assert base == answer_seed(1, 3, 0, [dict(turn) for turn in prompt])
    others = {
        answer_seed(2, 3, 0, prompt),
        answer_seed(1, 4, 0, prompt),
        answer_seed(1, 3, 1, prompt),
        answer_seed(1, 3, 0, [{"role": "user", "content": "2 + 3?"}]),
    }
    assert len(others | {base}) == 5
    assert 0 <= base < 2**32


def test_agent_loops_of_the_yaml_hand_the_seed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra.utils import get_class
    from omegaconf import OmegaConf
    from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
    from verl.experimental.agent_loop.tool_agent_loop import ToolAgentLoop

    from common.reproducible import answer_seed

    async def run(self: Any, sampling_params: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return sampling_params

    entries = {entry.name: entry._target_ for entry in OmegaConf.load(ROOT / "common/reproducible.yaml")}
    prompt = [{"role": "user", "content": "2 + 2?"}]
    for name, upstream in (("single_turn_agent", SingleTurnAgentLoop), ("tool_agent", ToolAgentLoop)):
        monkeypatch.setattr(upstream, "run", run)
        loop = object.__new__(get_class(entries[name]))
        loop.rollout_config = SimpleNamespace(seed=7)
        given = {"temperature": 1.0}
        found = asyncio.run(loop.run(given, global_steps=3, session_id=1, raw_prompt=prompt))
        assert found == {"temperature": 1.0, "seed": answer_seed(7, 3, 1, prompt)}
        assert given == {"temperature": 1.0}


def test_batches_come_in_the_order_of_their_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    from verl.trainer.ppo.v1 import replay_buffer

    from common.reproducible import OrderedReplayBuffer

    monkeypatch.setattr(replay_buffer.tq, "kv_clear", lambda **_: None)
    buffer = object.__new__(OrderedReplayBuffer)
    buffer.prompt_global_steps = {"train": {"p2": 1, "p1": 1}}
    finished = {"p1_10_0": {}, "p1_9_0": {}, "p2_1_0": {}, "p2_0_1": {}, "p2_0_0": {}}
    batch = buffer._materialize_batch("train", ["p1", "p2"], finished)
    assert batch.keys == ["p2_0_0", "p2_0_1", "p2_1_0", "p1_9_0", "p1_10_0"]


def test_what_verl_says_of_every_answer_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    from verl.utils.tokenizer import continuous_token_wiring

    from common.verl_fixes import say_once

    say_once(continuous_token_wiring)
    for kind in ("llama", "llama", "opt"):
        continuous_token_wiring.infer_continuous_token_model_family(hf_model_type=kind)
    assert [record.args[0] for record in caplog.records] == ["llama", "opt"]


def test_kl_weight_is_written_beside_the_checkpoint(tmp_path: Path) -> None:
    from ppo.kl_state import SaveKLCoefficient

    trainer = SimpleNamespace(kl_ctrl_in_reward=SimpleNamespace(value=0.1 + 0.2))
    SaveKLCoefficient(config=None).on_save(trainer=trainer, global_step=3, checkpoint_dir=str(tmp_path))
    assert float((tmp_path / "kl_coef.txt").read_text()) == 0.1 + 0.2
