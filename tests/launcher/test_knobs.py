"""Every knob of every config block changes the config that verl sees (or the launch itself, named below)."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.cpu.model import ensure_bundled_model
from common.launcher.block import read_block

from .conftest import ROOT, Launcher, composed

METHODS = [path.parent.name for path in sorted(ROOT.glob("*/train.sh"))]
BASE = ("--name", "knobs", "--device", "cpu", "--no-preflight")

# Another value per knob; {tmp} is a temporary folder with copies of the data, the reward and the model.
OTHER = {
    "MODEL_PATH": "{tmp}/model",
    "TRAIN_DATA": "{tmp}/train.jsonl",
    "VAL_DATA": "{tmp}/train.jsonl",
    "BAD_ROWS": "quarantine",
    "MAX_PROMPT_LENGTH": "100",
    "MAX_RESPONSE_LENGTH": "33",
    "ALGORITHM": "gmpo",
    "SELF_PLAY_ROUNDS": "1",
    "ADVANTAGE": "group",
    "OPPONENT": "both",
    "MARGIN": "0.1",
    "ROLLOUT_N": "4",
    "ROLLOUT_TEMPERATURE": "0.7",
    "NORM_ADV_BY_STD": "false",
    "USE_KL_LOSS": "true",
    "KL_LOSS_COEF": "0.01",
    "KL_LOSS_TYPE": "mse",
    "CLIP_RATIO_LOW": "0.1",
    "CLIP_RATIO_HIGH": "0.3",
    "LOSS_AGG_MODE": "seq-mean-token-sum",
    "ENTROPY_COEFF": "0.01",
    "REWARD_FUNC_PATH": "{tmp}/reward.py",
    "REWARD_FUNC_NAME": "common:math",
    "REWARD_KWARGS": '{{"weight": 0.5}}',
    "REWARD_ERRORS": "zero",
    "TRAIN_BATCH_SIZE": "16",
    "MINI_BATCH_SIZE": "4",
    "LEARNING_RATE": "3e-5",
    "TOTAL_EPOCHS": "3",
    "TOTAL_STEPS": "7",
    "SEED": "5",
    "USE_LORA": "true",
    "LORA_RANK": "8",
    "LORA_ALPHA": "8",
    "LORA_TARGETS": "[q_proj,v_proj]",
    "USE_DYNAMIC_BSZ": "false",
    "MAX_TOKENS_PER_GPU": "999",
    "MICRO_BATCH_SIZE": "4",
    "GRADIENT_CHECKPOINTING": "true",
    "OFFLOAD": "true",
    "SEQUENCE_PARALLEL_SIZE": "2",
    "STRATEGY": "fsdp",
    "ROLLOUT_ENGINE": "sglang",
    "ROLLOUT_TP_SIZE": "2",
    "GPU_MEMORY_UTILIZATION": "0.3",
    "CPU_DTYPE": "float32",
    "N_GPUS": "2",
    "NNODES": "2",
    "OUTPUT_DIR": "{tmp}/elsewhere",
    "EXPERIMENT_NAME": "another",
    "SAVE_FREQ": "3",
    "TEST_FREQ": "4",
    "KEEP_CHECKPOINTS": "7",
    "KEEP_BEST": "true",
    "USE_WANDB": "true",
    "WANDB_PROJECT": "mine",
    "WANDB_ENTITY": "team",
    "WANDB_RUN_NAME": "shown",
    "LOGGERS": "tensorboard",
    "PROFILE": "torch",
    "PROFILE_STEPS": "3",
    "MAX_LENGTH": "300",
    "TRUNCATION": "cut",
    "CHAT_TEMPLATE": "{tmp}/template.jinja",
    "ENABLE_THINKING": "true",
    "LR_SCHEDULER": "constant",
    "WARMUP_RATIO": "0.5",
    "WEIGHT_DECAY": "0.2",
    "MAX_GRAD_NORM": "0.5",
    "PACKING": "false",
    "CRITIC_MODEL_PATH": "{tmp}/model",
    "GAMMA": "0.9",
    "GAE_LAMBDA": "0.95",
    "PPO_EPOCHS": "2",
    "CLIP_RATIO_C": "5.0",
    "KL_MODE": "loss",
    "KL_COEF": "0.01",
    "KL_ESTIMATOR": "mse",
    "KL_CONTROLLER": "adaptive",
    "KL_TARGET": "0.2",
    "KL_HORIZON": "500",
    "CRITIC_LEARNING_RATE": "2e-5",
    "CRITIC_WARMUP": "2",
    "CLIPRANGE_VALUE": "0.2",
    "CRITIC_MAX_TOKENS_PER_GPU": "700",
    "CRITIC_MICRO_BATCH_SIZE": "2",
    "CRITIC_GRADIENT_CHECKPOINTING": "true",
    "CRITIC_OFFLOAD": "true",
    "REWARD_SOURCE": "model",
    "REWARD_MODEL_PATH": "{tmp}/classifier2",
    "REWARD_MODEL_CONFIG": "{tmp}/reward_model.yaml",
    "API_REWARD_CONFIG": "{tmp}/reward_model.yaml",
    "REWARD_WEIGHTS": "function=1.0,model=0.25",
    "REPRODUCIBLE": "false",
    "REF_MODEL_PATH": "{tmp}/model",
    "LOSS_TYPE": "apo_zero",
    "BETA": "0.2",
    "LABEL_SMOOTHING": "0.1",
    "RPO_ALPHA": "0.5",
    "SIMPO_GAMMA": "1.0",
    "LORA_ADAPTER_PATH": "{tmp}/adapter",
    "LORA_REFERENCE": "adapter",
    "SHARE_PROMPT": "false",
}
# Where a method's own default is that value.
OTHER_OF = {
    "sft": {"TRAIN_BATCH_SIZE": "32", "TOTAL_EPOCHS": "2"},
    "dpo": {
        "TRAIN_DATA": "{tmp}/pairs.jsonl",
        "VAL_DATA": "{tmp}/pairs.jsonl",
        "TRUNCATION": "drop",
        "MAX_LENGTH": "400",
        "MAX_TOKENS_PER_GPU": "2048",
        "MICRO_BATCH_SIZE": "2",
    },
    "gspo": {"NORM_ADV_BY_STD": "true", "USE_KL_LOSS": "false"},
}
# These need another knob to matter.
WITH = {
    "REWARD_KWARGS": ["--reward_func_path", "{tmp}/reward.py"],
    "LORA_RANK": ["--use_lora"],
    "SEQUENCE_PARALLEL_SIZE": ["--n_gpus", "2"],
    "ROLLOUT_TP_SIZE": ["--n_gpus", "2"],
    "PROFILE_STEPS": ["--profile", "torch"],
}
CLASSIFIER = ["--reward_model_path", "{tmp}/classifier"]
WITH_OF = {
    "ppo": {
        "KL_CONTROLLER": ["--kl_mode", "reward"],
        "REWARD_SOURCE": CLASSIFIER,
        "REWARD_MODEL_PATH": [*CLASSIFIER, "--reward_source", "model"],
        "REWARD_MODEL_CONFIG": [*CLASSIFIER, "--reward_source", "model"],
        "API_REWARD_CONFIG": ["--reward_source", "api"],
        "REWARD_WEIGHTS": [*CLASSIFIER, "--reward_source", "mix"],
        "ROLLOUT_ENGINE": ["--reproducible", "false"],
    },
    "dpo": {
        "LORA_ADAPTER_PATH": ["--use_lora"],
        "LORA_REFERENCE": ["--use_lora", "--lora_adapter_path", "{tmp}/adapter"],
    },
}
# What these change is tested where it is: BAD_ROWS in test_bad_input, RESUME in test_runs, DEVICE in test_arguments,
# the watcher's in tests/watcher.
ELSEWHERE = {"BAD_ROWS", "RESUME", "DEVICE", "EXPORT_HF", "ON_SAVE", "STOP_ON"}
# torchrun's arguments and the environment, not the config: test_engine.py.
TORCHRUN = {"NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "WANDB_ENTITY", "NNODES"}
ELSEWHERE_OF = {"sft": TORCHRUN, "dpo": TORCHRUN}


@pytest.fixture
def other_files(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "grpo/data/val.jsonl", tmp_path / "train.jsonl")
    shutil.copy(ROOT / "dpo/data/val.jsonl", tmp_path / "pairs.jsonl")
    (tmp_path / "reward.py").write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None, weight=1.0):\n    return weight\n"
    )
    small = ensure_bundled_model()
    (tmp_path / "template.jinja").write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    shutil.copytree(small, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    for name in ("classifier", "classifier2"):
        shutil.copytree(tmp_path / "model", tmp_path / name)
        scorer = {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}
        (tmp_path / name / "config.json").write_text(json.dumps(scorer))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "reward_model.yaml").write_text("serve: server\n")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_knob_changes_the_resolved_config(method: str, launch: Launcher, other_files: Path) -> None:
    other = {**OTHER, **OTHER_OF.get(method, {})}
    elsewhere = ELSEWHERE | ELSEWHERE_OF.get(method, set())
    knobs = [knob.name for knob in read_block(ROOT / method / "train.sh") if knob.name not in elsewhere]
    missing = [name for name in knobs if name not in other]
    assert not missing, f"give these knobs another value in this test: {missing}"

    more = {**WITH, **WITH_OF.get(method, {})}
    extras = {name: tuple(word.format(tmp=other_files) for word in more.get(name, ())) for name in knobs}

    def words(*flags: str) -> list[str]:
        return launch.dry_run(*BASE, *flags, method=method)

    with ThreadPoolExecutor(2) as pool:
        plain = {extra: pool.submit(words, *extra) for extra in set(extras.values())}
        changed = {
            name: pool.submit(words, *extra, f"--{name.lower()}={other[name].format(tmp=other_files)}")
            for name, extra in extras.items()
        }
    before = {extra: composed(found.result(), method) for extra, found in plain.items()}
    dead = [name for name in knobs if composed(changed[name].result(), method) == before[extras[name]]]
    assert dead == []


@pytest.mark.parametrize("method", METHODS)
def test_choices_of_a_knob_are_enforced(method: str, launch: Launcher) -> None:
    limited = [knob for knob in read_block(ROOT / method / "train.sh") if knob.choices]
    assert limited
    done = launch(f"--{limited[0].name.lower()}", "no-such-choice", method=method)
    assert done.code == 2
    assert f"{limited[0].name}='no-such-choice' must be one of {', '.join(limited[0].choices)}" in done.err
