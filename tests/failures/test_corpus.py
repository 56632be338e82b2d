"""Every log of the corpus: what failed, in which phase, the root error, and what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from common.failures import explain_file, explain_run
from common.failures.patterns import table
from common.reward_functions.records import MARKER, claim

LOGS = Path(__file__).parent / "logs"
ROOT = Path(__file__).resolve().parents[2]

# log, exit code, kind, phase, in the error, in the advice
CORPUS = [
    ("sft_missing_column", 1, "data_column", "start-up", "KeyError: 'messages'", "docs/data.md"),
    ("sft_corrupt_parquet", 1, "parquet", "start-up", "Parquet magic bytes not found", "common.data_utils"),
    ("sft_bad_override", 1, "unknown_key", "start-up", "Could not override 'optim.lrr'", "spelling"),
    ("sft_killed", 1, "killed", "training, after step 3", "exitcode: -9", "dmesg"),
    ("sft_port", 1, "port", "start-up", "EADDRINUSE", "MASTER_PORT"),
    ("sft_resume_torn", 1, "torn_checkpoint", "resume from a checkpoint", "PytorchStreamReader", "verify"),
    ("sft_corrupt_safetensors", 1, "safetensors", "start-up", "SafetensorError", "MODEL_PATH"),
    ("sft_size_mismatch", 1, "weights_shape", "start-up", "ignore_mismatched_sizes", "num_labels=1"),
    ("sft_no_model", 1, "no_model", "start-up", "HFValidationError", "hub id"),
    ("sft_hub_offline", 1, "hub", "start-up", "LocalEntryNotFoundError", "HF_HUB_OFFLINE"),
    ("sft_no_chat_template", 1, "chat_template", "start-up", "chat_template is not set", "CHAT_TEMPLATE"),
    ("sft_broken_tokenizer", 1, "tokenizer", "start-up", "KeyError: 'added_tokens'", "tokenizer.json"),
    ("sft_budget", 1, "token_budget", "update", "max_seq_len=tensor(36)", "MAX_TOKENS_PER_GPU"),
    ("sft_read_only", 1, "permission", "save", "Operation not permitted: '/sys/checkpoints'", "OUTPUT_DIR"),
    ("sft_disk_full", 1, "disk_full", "save", "unexpected pos", "KEEP_CHECKPOINTS"),
    ("sft_address_space", 1, "host_memory", "start-up", "MemoryError", "ulimit -v"),
    ("sft_bad_module", 1, "import", "start-up", "No module named 'does_not_exist'", "install it"),
    ("sft_nan", 0, "nan", "training, after step 6", "grad_norm is not finite: nan", "LEARNING_RATE"),
    ("sft_peer_killed", 1, "killed", "training, after step 4", "exitcode: -9", "dmesg"),
    (
        "sft_resume_world",
        1,
        "world_size",
        "resume from a checkpoint",
        "model_world_size_1_rank_0.pt",
        "as many GPUs",
    ),
    ("sft_wandb", 1, "wandb", "start-up", "No API key configured", "wandb login"),
    ("sft_bad_value", 1, "unknown_name", "start-up", "strategy fsdp3 not supported", "--help"),
    ("sft_few_rows", 1, "too_few_rows", "start-up", "ZeroDivisionError", "TRAIN_BATCH_SIZE"),
    ("rl_reward_all", 1, "reward_swallowed", "reward", "KeyError: 'difficulty'", "first error"),
    ("rl_reward_guarded", 134, "reward", "reward", "the judge is out to lunch", "dry-run"),
    ("rl_reward_file_gone", 134, "reward_file", "reward", "my_reward.py does not exist", "REWARD_FUNC_PATH"),
    ("rl_vllm_max_len", 1, "vllm_length", "start-up", "max_position_embeddings (512)", "MAX_RESPONSE_LENGTH"),
    ("rl_vllm_kv", 1, "kv_cache", "start-up", "KV cache is needed", "GPU_MEMORY_UTILIZATION"),
    ("rl_killed", 1, "killed", "training, after step 1", "ActorDiedError", "dmesg"),
    ("rl_ray_oom", 1, "ray_oom", "start-up", "node running low on memory", "ROLLOUT_N"),
    ("rl_missing_column", 1, "data_column", "reward", "KeyError: 'reward_model'", "docs/data.md"),
    ("rl_estimator", 1, "unknown_name", "advantages", "grpoo", "--help"),
    (
        "rl_validate",
        1,
        "batch_arithmetic",
        "start-up",
        "must be >= actor.ppo_mini_batch_size (8)",
        "MINI_BATCH_SIZE",
    ),
    ("rl_no_val", 1, "val_files", "start-up", "'NoneType' object is not subscriptable", "VAL_DATA"),
    ("rl_save_ro", 1, "permission", "save", "Operation not permitted", "OUTPUT_DIR"),
    ("rl_micro", 1, "token_budget", "update of the actor", "max_token_len=16", "MAX_TOKENS_PER_GPU"),
    ("rl_ray_workers_do_not_start", 1, "ray_start", "start-up", "repeatedly failed", "raylet.err"),
    ("rl_no_gpu_visible", 1, "no_gpu", "start-up", "CUDA_VISIBLE_DEVICES contains []", "nvidia-smi"),
    ("rl_terminated", 143, "interrupted", "start-up", "KeyboardInterrupt", "--resume"),
    ("gpu_oom_update_actor", 1, "gpu_oom", "update of the actor", "CUDA out of memory", "MAX_TOKENS_PER_GPU"),
    ("gpu_oom_log_prob", 1, "gpu_oom", "log-prob", "CUDA out of memory", "it bounds log-probs"),
    (
        "gpu_oom_critic",
        1,
        "gpu_oom",
        "update of the critic",
        "CUDA out of memory",
        "CRITIC_MAX_TOKENS_PER_GPU",
    ),
    ("gpu_taken_vllm_start", 1, "gpu_oom", "start-up", "9.87/79.1 GiB", "nvidia-smi"),
    ("nccl_timeout", 1, "nccl_timeout", "training, after step 3", "OpType=ALLREDUCE", "NCCL_SOCKET_IFNAME"),
    ("cuda_driver_too_old", 1, "cuda_driver", "start-up", "driver on your system is too old", "setup_env.sh"),
    ("cuda_no_kernel_image", 1, "cuda_kernel", "update", "no kernel image", "pinned torch"),
    (
        "flash_attn_missing",
        1,
        "flash_attn",
        "start-up",
        "FlashAttention2 has been toggled on",
        "setup_env.sh",
    ),
    ("sft_finished_well", 0, "", "training, after step 4", "", "nothing"),
]


@pytest.mark.parametrize(
    ("log", "code", "kind", "phase", "error", "do"), CORPUS, ids=[row[0] for row in CORPUS]
)
def test_explanation(log: str, code: int, kind: str, phase: str, error: str, do: str) -> None:
    found = explain_file(LOGS / f"{log}.txt", code)
    assert (found.kind, found.phase) == (kind, phase)
    assert error in found.error
    assert do in found.do
    assert "RayTaskError" not in found.error
    assert "ChildFailedError" not in found.error
    assert json.loads(json.dumps(found.as_dict()))["what"] == found.what


def test_every_log_is_expected_and_short() -> None:
    assert {path.stem for path in LOGS.glob("*.txt")} == {row[0] for row in CORPUS}
    assert sum(not row[0].startswith(("gpu_", "nccl", "cuda", "flash")) for row in CORPUS) >= 25
    assert all(len(path.read_text().splitlines()) < 200 for path in LOGS.glob("*.txt"))


def test_the_table_is_complete_and_its_kinds_are_different() -> None:
    kinds = [row.kind for row in table().failures]
    assert len(set(kinds)) == len(kinds)
    for row in table().failures:
        assert "" in row.do
        assert row.regexes


def test_from_the_shell(tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "common.failures", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)

    done = run(str(LOGS / "rl_missing_column.txt"))
    assert done.stdout.splitlines()[0] == "failed   the data has no column 'reward_model', which verl reads"
    assert json.loads(run(str(LOGS / "sft_port.txt"), "--json").stdout)["kind"] == "port"
    missing = run(str(tmp_path / "no.log"))
    assert missing.returncode == 2
    assert "no.log cannot be read: No such file or directory" in missing.stderr
    record = {"attempts": [{"console": "console-1.log", "exit_code": 137}]}
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / "console-1.log").write_text("step:3 - a:1\n")
    assert "a process was killed from outside (training, after step 3)" in run(str(tmp_path)).stdout


def test_the_rewards_own_words_count_where_the_log_lacks_them(tmp_path: Path) -> None:
    attempt = {"console": "console-1.log", "exit_code": 137}
    (tmp_path / "console-1.log").write_text("step:3 - a:1\n")
    assert explain_run(tmp_path, attempt).kind == "killed"
    claim(tmp_path / MARKER, {"message": "reward file /data/r.py does not exist"})
    found = explain_run(tmp_path, attempt)
    assert (found.kind, found.phase, found.line) == ("reward_file", "reward", 0)
    assert "/data/r.py does not exist" in found.what


def test_a_reward_error_that_was_scored_zero_explains_nothing(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_text("reward error (scored 0): r.py:r raised ValueError: boom\nstep:3 - a:1\n")
    assert explain_file(log, 137).kind == "killed"
