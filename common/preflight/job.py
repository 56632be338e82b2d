"""What the checks look at: the resolved config, what the launcher found out, the model's config.json, the machine."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from common.launcher.hydra_words import key_of
from common.preflight.command import Command
from common.preflight.machine import Machine

ACTOR, REF, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.ref", "actor_rollout_ref.rollout"
# The knob behind a verl key, for messages; it counts unless the user wrote the key.
KNOBS_RL = {
    "data.train_files": "TRAIN_DATA",
    "data.val_files": "VAL_DATA",
    "data.train_batch_size": "TRAIN_BATCH_SIZE",
    "data.max_prompt_length": "MAX_PROMPT_LENGTH",
    "data.max_response_length": "MAX_RESPONSE_LENGTH",
    "actor_rollout_ref.model.path": "MODEL_PATH",
    "actor_rollout_ref.model.lora_rank": "LORA_RANK",
    "actor_rollout_ref.model.lora_alpha": "LORA_ALPHA",
    f"{ACTOR}.ppo_mini_batch_size": "MINI_BATCH_SIZE",
    f"{ACTOR}.ppo_micro_batch_size_per_gpu": "MICRO_BATCH_SIZE",
    f"{ACTOR}.use_dynamic_bsz": "USE_DYNAMIC_BSZ",
    f"{ACTOR}.ppo_max_token_len_per_gpu": "MAX_TOKENS_PER_GPU",
    f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size": "SEQUENCE_PARALLEL_SIZE",
    f"{ACTOR}.optim.lr": "LEARNING_RATE",
    "critic.optim.lr": "CRITIC_LEARNING_RATE",
    f"{ACTOR}.clip_ratio_low": "CLIP_RATIO_LOW",
    f"{ACTOR}.clip_ratio_high": "CLIP_RATIO_HIGH",
    f"{ACTOR}.strategy": "STRATEGY",
    "critic.model.path": "CRITIC_MODEL_PATH",
    f"{ROLLOUT}.name": "ROLLOUT_ENGINE",
    f"{ROLLOUT}.n": "ROLLOUT_N",
    f"{ROLLOUT}.temperature": "ROLLOUT_TEMPERATURE",
    f"{ROLLOUT}.tensor_model_parallel_size": "ROLLOUT_TP_SIZE",
    f"{ROLLOUT}.gpu_memory_utilization": "GPU_MEMORY_UTILIZATION",
    "trainer.default_local_dir": "OUTPUT_DIR",
    "trainer.save_freq": "SAVE_FREQ",
    "trainer.max_actor_ckpt_to_keep": "KEEP_CHECKPOINTS",
    "trainer.total_epochs": "TOTAL_EPOCHS",
    "trainer.total_training_steps": "TOTAL_STEPS",
    "trainer.n_gpus_per_node": "N_GPUS",
    "trainer.nnodes": "NNODES",
}
KNOBS_ENGINE = {
    "data.train_files": "TRAIN_DATA",
    "data.val_files": "VAL_DATA",
    "data.train_batch_size": "TRAIN_BATCH_SIZE",
    "data.max_length": "MAX_LENGTH",
    "data.micro_batch_size_per_gpu": "MICRO_BATCH_SIZE",
    "data.use_dynamic_bsz": "USE_DYNAMIC_BSZ",
    "data.max_token_len_per_gpu": "MAX_TOKENS_PER_GPU",
    "model.path": "MODEL_PATH",
    "model.lora_rank": "LORA_RANK",
    "model.lora_alpha": "LORA_ALPHA",
    "engine.ulysses_sequence_parallel_size": "SEQUENCE_PARALLEL_SIZE",
    "engine.strategy": "STRATEGY",
    "optim.lr": "LEARNING_RATE",
    "optim.weight_decay": "WEIGHT_DECAY",
    "trainer.default_local_dir": "OUTPUT_DIR",
    "trainer.save_freq": "SAVE_FREQ",
    "trainer.max_ckpt_to_keep": "KEEP_CHECKPOINTS",
    "trainer.total_epochs": "TOTAL_EPOCHS",
    "trainer.total_training_steps": "TOTAL_STEPS",
    "trainer.n_gpus_per_node": "N_GPUS",
    "trainer.nnodes": "NNODES",
}


@dataclass
class Job:
    """One launch.

    Attributes:
        config: as verl will see it, `resolved` as plain values; `base` without any override.
        record: what the launcher planned (`run.json`), {} when the preflight runs alone.
        machine: where it would run.
    """

    command: Command
    config: DictConfig
    base: DictConfig
    machine: Machine
    record: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Alone, nobody knows which overrides are the user's: all of them.
        words = self.record.get("extra", []) if self.record else self.command.overrides
        self._users = {key_of(word) for word in words}
        self._model_config: dict[str, Any] | None = None
        self.resolved: dict[str, Any] = OmegaConf.to_container(self.config, resolve=True)  # type: ignore[assignment]

    @property
    def rl(self) -> bool:
        """True for PPO, GRPO and GSPO."""
        return self.command.task == "rl"

    @property
    def on_gpu(self) -> bool:
        """True unless the run is one on the CPU."""
        return self.get("trainer.device") != "cpu"

    @property
    def model_key(self) -> str:
        """Key of the group that describes the model."""
        return "actor_rollout_ref.model" if self.rl else "model"

    @property
    def model(self) -> str:
        """Folder or hub id of the model that trains."""
        return str(self.get(f"{self.model_key}.path", ""))

    @property
    def ranks(self) -> int:
        """Training processes of all nodes together."""
        return self.number("trainer.n_gpus_per_node") * self.number("trainer.nnodes")

    @property
    def sequence_parallel(self) -> int:
        """GPUs that share one sequence; the deprecated key of the actor wins where it is above 1."""
        if not self.rl:
            return self.number("engine.ulysses_sequence_parallel_size")
        older = self.number(f"{ACTOR}.ulysses_sequence_parallel_size")
        return older if older > 1 else self.number(f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size")

    @property
    def longest(self) -> int:
        """Most tokens of one sequence."""
        if self.rl:
            return self.number("data.max_prompt_length", 0) + self.number("data.max_response_length", 0)
        return self.number("data.max_length", 0)

    @property
    def positions(self) -> int | None:
        """The model's own limit of positions, None when not known; override_config changes it for verl and vLLM."""
        key = "max_position_embeddings"
        most = self.get(f"{self.model_key}.override_config.{key}") or self.model_config().get(key)
        return most if isinstance(most, int) else None

    @property
    def needs_critic(self) -> bool:
        """As ``verl.trainer.ppo.utils.need_critic`` decides."""
        if not self.rl:
            return False
        wanted = self.get("critic.enable")
        return bool(wanted) if wanted is not None else self.get("algorithm.adv_estimator") == "gae"

    @property
    def needs_reference(self) -> bool:
        """As ``verl.trainer.ppo.utils.need_reference_policy`` decides."""
        return self.rl and bool(self.get("algorithm.use_kl_in_reward") or self.get(f"{ACTOR}.use_kl_loss"))

    def get(self, key: str, default: Any = None) -> Any:
        """The resolved value of *key*; *default* where it is absent, null or ???."""
        value: Any = self.resolved
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return default if value is None or value == "???" else value

    def number(self, key: str, default: int = 1) -> int:
        """A whole number; *default* where there is none."""
        value = self.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else default

    def users(self, key: str) -> bool:
        """True when the user wrote *key*, or something below it, as key=value."""
        return any(given == key or given.startswith(f"{key}.") for given in self._users)

    def name(self, key: str) -> str:
        """What the user calls *key*: its knob, or the key itself where they wrote it."""
        knob = (KNOBS_RL if self.rl else KNOBS_ENGINE).get(key)
        return key if knob is None or self.users(key) or not self.record else knob

    def model_config(self) -> dict[str, Any]:
        """config.json of the model (of its text part); {} where it is not at hand."""
        if self._model_config is None:
            self._model_config = read_model_config(self.model)
        return self._model_config


def read_model_config(model: str) -> dict[str, Any]:
    """config.json of a folder or of a hub id in the local cache; {} where there is none."""
    path: Path | None = Path(model) / "config.json"
    if not Path(model).is_dir() and model.count("/") == 1:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(model, "config.json")
        path = Path(cached) if isinstance(cached, str) else None
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    text = found.get("text_config")
    return {**found, **text} if isinstance(text, dict) else dict(found)
