"""Wrong configurations, each stopped with the sentence that mends it: on the resolved config, by key=value.

Knobs that a flag spoils are in tests/launcher/test_bad_input.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.check_env.gpu import Gpu
from common.launcher.errors import UserError
from common.preflight.composing import base_of, compose, word_problem
from common.preflight.report import Report

from .conftest import CPU_BOX, GPU_BOX, ON_A_CLUSTER, base_command

CPU, GPU = ("--device", "cpu"), ("--device", "gpu", "--gpus", "8")
A, R, REF = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.ref"
STATIC = [
    f"{A}.use_dynamic_bsz=False",
    f"{R}.log_prob_use_dynamic_bsz=False",
    f"{REF}.log_prob_use_dynamic_bsz=False",
]
RM = ["reward.reward_model.enable=True", "reward.reward_model.rollout.name=vllm"]
RM1 = [
    *RM,
    "reward.reward_model.rollout.tensor_model_parallel_size=1",
    "reward.reward_model.model_path=org/rm",
]

# Hydra itself refuses these: method, words, part of the sentence.
NOT_COMPOSED = [
    (
        "grpo",
        "data.train_batchsize=4",
        "has no key 'data.train_batchsize'; did you mean data.train_batch_size?",
    ),
    ("grpo", "rollout.n=4", "did you mean actor_rollout_ref.rollout.n?"),
    ("grpo", f"{R}.nn=4", "did you mean actor_rollout_ref.rollout.n?"),
    ("grpo", "algorithm.lamda=0.9", "did you mean algorithm.lam?"),
    ("grpo", "no.such.key=1", "verl 0.9.1 has no key 'no.such.key'"),
    ("grpo", "~data.nope", "verl 0.9.1 has no key 'data.nope'"),
    ("grpo", "+data.train_batch_size=4", "verl has this key already: write data.train_batch_size=4"),
    ("grpo", "trainer.logger=console,file", "several values at once are a sweep"),
    ("grpo", "data.train_files={a", "Hydra cannot read this value"),
    ("sft", "optim.learning_rate=1e-5", "has no key 'optim.learning_rate'"),
    ("sft", "data.micro_batch_size=4", "did you mean data.micro_batch_size_per_gpu?"),
    ("dpo", "dpo.betta=0.1", "did you mean dpo.beta?"),
]

# method, launch flags, key=values of the user, part of the sentence.
WRONG = [
    # kinds of values
    ("grpo", CPU, ["data.train_batch_size=abc"], "data.train_batch_size=abc must be a whole number"),
    ("grpo", CPU, ["trainer.save_freq=2.5"], "trainer.save_freq=2.5 must be a whole number"),
    ("grpo", CPU, ["trainer.balance_batch=1"], "trainer.balance_batch=1 must be True or False"),
    ("grpo", CPU, [f"{A}.optim.lr=high"], "optim.lr=high must be a number"),
    ("grpo", CPU, ["trainer=3"], "trainer=3 must be a group of keys"),
    ("sft", CPU, ["data.max_length=long"], "data.max_length=long must be a whole number"),
    # keys that do nothing
    ("grpo", CPU, ["+data.train_bach_size=4"], "did you mean data.train_batch_size (without +)?"),
    ("grpo", CPU, ["custom_reward_function.path=/r.py"], "reads no custom_reward_function.* any more"),
    ("grpo", CPU, ["reward_model.enable=True"], "reads no reward_model.* any more"),
    ("grpo", CPU, ["sandbox_fusion.url=http://x"], "use reward.sandbox_fusion"),
    ("grpo", CPU, ["data.truncation=left"], "data.truncation has no effect"),
    ("grpo", CPU, ["data.reward_fn_key=source"], "data.reward_fn_key has no effect"),
    ("grpo", CPU, [f"{A}.grad_clip=0.5"], f"use {A}.optim.clip_grad"),
    ("grpo", CPU, [f"{R}.multi_turn.enable=True"], "default_agent_loop=tool_agent"),
    ("ppo", CPU, ["critic.grad_clip=0.5"], "use critic.optim.clip_grad"),
    ("ppo", CPU, ["critic.ppo_micro_batch_size_per_gpu=4"], "use CRITIC_MICRO_BATCH_SIZE"),
    ("ppo", CPU, ["critic.ppo_max_token_len_per_gpu=9000"], "use CRITIC_MAX_TOKENS_PER_GPU"),
    ("sft", CPU, ["trainer.seed=3"], "trainer.seed has no effect"),
    ("sft", GPU, ["trainer.n_gpus_per_node=4"], "torchrun decides; use N_GPUS"),
    # batches
    ("grpo", CPU, ["data.train_batch_size=4"], "MINI_BATCH_SIZE=8 is larger than TRAIN_BATCH_SIZE=4"),
    ("grpo", CPU, ["data.train_batch_size=4"], "(TRAIN_BATCH_SIZE is data.train_batch_size here)"),
    ("grpo", CPU, [f"{A}.ppo_mini_batch_size=3"], "MINI_BATCH_SIZE=3 does not divide TRAIN_BATCH_SIZE=8"),
    (
        "grpo",
        GPU,
        ["data.train_batch_size=9", f"{A}.ppo_mini_batch_size=9", f"{R}.n=3"],
        "9 x 3 = 27 must divide by 8 GPUs",
    ),
    ("grpo", CPU, ["data.train_batch_size=0"], "TRAIN_BATCH_SIZE=0 must be 1 or more"),
    ("grpo", GPU, ["data.train_batch_size=4096"], "has 480 rows that fit, fewer than TRAIN_BATCH_SIZE=4096"),
    ("grpo", CPU, ["data.train_max_samples=4"], "has 4 rows that fit, fewer than TRAIN_BATCH_SIZE=8"),
    (
        "grpo",
        CPU,
        [*STATIC, f"{A}.ppo_micro_batch_size_per_gpu=7"],
        "MICRO_BATCH_SIZE=7 does not divide the 64 responses",
    ),
    (
        "grpo",
        CPU,
        [*STATIC, f"{R}.log_prob_micro_batch_size_per_gpu=7"],
        "does not divide the 64 answers of each rank",
    ),
    ("grpo", CPU, [f"{R}.log_prob_use_dynamic_bsz=False"], "verl's workers assert that they are equal"),
    ("grpo", CPU, [f"{A}.ppo_epochs=0"], "the policy would never be updated"),
    # token budgets and lengths
    ("grpo", CPU, [f"{A}.ppo_max_token_len_per_gpu=10"], "= 80: use 80 or more"),
    (
        "grpo",
        CPU,
        [f"{R}.log_prob_max_token_len_per_gpu=10"],
        "log_prob_max_token_len_per_gpu=10 (x 1 sequence parallel)",
    ),
    ("grpo", GPU, [f"{REF}.log_prob_max_token_len_per_gpu=100"], f"{REF}.log_prob_max_token_len_per_gpu=100"),
    ("ppo", CPU, ["critic.ppo_infer_max_token_len_per_gpu=10"], "critic.ppo_infer_max_token_len_per_gpu=10"),
    (
        "grpo",
        CPU,
        [f"{R}.max_model_len=50"],
        "max_model_len=50 is below max_prompt_length + max_response_length = 80",
    ),
    ("grpo", GPU, ["data.max_response_length=10000"], "above the model's 8192 positions"),
    ("grpo", CPU, ["data.max_prompt_length=0"], "must be 1 or more"),
    (
        "grpo",
        CPU,
        [f"{R}.enable_chunked_prefill=False", f"{R}.max_num_batched_tokens=20"],
        "which vLLM refuses",
    ),
    # parallelism
    ("grpo", GPU, [f"{R}.tensor_model_parallel_size=3"], "ROLLOUT_TP_SIZE=3 does not divide 8 GPUs"),
    (
        "grpo",
        GPU,
        [f"{R}.tensor_model_parallel_size=2"],
        "does not divide the model's 9 attention heads: use 1",
    ),
    ("grpo", GPU, [f"{R}.data_parallel_size=3"], "1 x 3 x 1 = 3 GPUs, which does not divide the 8"),
    (
        "grpo",
        GPU,
        [f"{A}.fsdp_config.ulysses_sequence_parallel_size=3"],
        "SEQUENCE_PARALLEL_SIZE=3 does not divide 8 GPUs",
    ),
    (
        "grpo",
        GPU,
        [f"{A}.fsdp_config.ulysses_sequence_parallel_size=2"],
        "SEQUENCE_PARALLEL_SIZE=2 does not divide the model's 9",
    ),
    ("grpo", GPU, [f"{A}.fsdp_config.fsdp_size=3"], "fsdp_size=3 does not divide 8 GPUs"),
    # the objective
    (
        "grpo",
        CPU,
        ["algorithm.adv_estimator=grp"],
        "adv_estimator=grp is none that verl knows; did you mean grpo?",
    ),
    ("grpo", CPU, ["algorithm.adv_estimator=remax"], "add trainer.use_v1=False"),
    ("grpo", CPU, ["algorithm.adv_estimator=gdpo"], "works only in verl's older trainer"),
    ("grpo", CPU, ["algorithm.adv_estimator=optimal_token_baseline"], "works only in verl's older trainer"),
    ("grpo", CPU, [f"{R}.n=1"], "ROLLOUT_N=1: grpo compares the answers of one prompt"),
    ("grpo", CPU, ["algorithm.adv_estimator=rloo", f"{R}.n=1"], "ROLLOUT_N=1: rloo compares"),
    ("grpo", CPU, ["algorithm.use_pf_ppo=True"], "use_pf_ppo=True does not work"),
    ("grpo", CPU, [f"{A}.policy_loss.loss_mode=clip-cov"], "did you mean clip_cov?"),
    ("grpo", CPU, [f"{A}.policy_loss.loss_mode=dro"], "dro_beta above 0"),
    ("grpo", CPU, [f"{A}.policy_loss.loss_mode=gspo"], "loss_mode=gspo clips from the second update"),
    ("grpo", CPU, [f"{A}.clip_ratio=0.1"], "set CLIP_RATIO_LOW and CLIP_RATIO_HIGH"),
    ("grpo", CPU, [f"{A}.clip_ratio_low=0"], "must be above 0 (0.2 is usual)"),
    ("grpo", GPU, [f"{A}.kl_loss_type=low_var"], "did you mean low_var_kl?"),
    ("ppo", GPU, ["algorithm.kl_penalty=nope"], "algorithm.kl_penalty=nope is no KL estimator"),
    ("ppo", GPU, ["algorithm.kl_ctrl.type=adaptiv"], "must be fixed or adaptive"),
    ("ppo", GPU, ["algorithm.kl_ctrl.kl_coef=-0.1"], "is negative"),
    ("grpo", CPU, [f"{A}.optim.lr=0"], "must be above 0 (1e-6 is usual"),
    ("grpo", CPU, [f"{A}.optim.clip_grad=0"], "gradients would be scaled to nothing"),
    (
        "grpo",
        CPU,
        ["algorithm.filter_groups.enable=True", "algorithm.filter_groups.metric=reward", *RM1],
        "enable_resource_pool=True",
    ),
    (
        "grpo",
        CPU,
        ["algorithm.filter_groups.enable=True", "trainer.use_v1=False"],
        "has no effect with trainer.use_v1=False",
    ),
    (
        "grpo",
        CPU,
        ["algorithm.filter_groups.enable=True", "algorithm.filter_groups.max_num_gen_batches=4"],
        "max_num_gen_batches has no effect",
    ),
    ("ppo", CPU, ["critic.model.path=/no/critic"], "holds no model (no config.json)"),
    ("ppo", CPU, ["critic.model.lora_rank=8"], "critic.model.lora_rank has an error"),
    ("ppo", CPU, ["trainer.critic_warmup=99"], "the policy would never be updated"),
    ("ppo", CPU, ["critic.checkpoint.save_contents=[model,hf_model]"], "leave hf_model out"),
    # LoRA
    (
        "grpo",
        (*CPU, "--use_lora"),
        ["actor_rollout_ref.model.lora_rank=1000"],
        "LORA_RANK=1000 must be between 1 and 512",
    ),
    (
        "grpo",
        (*CPU, "--use_lora"),
        ["actor_rollout_ref.model.lora_alpha=0"],
        "LORA_ALPHA=0 must be 1 or more",
    ),
    ("grpo", CPU, ["actor_rollout_ref.model.lora_rank=8"], "load as random weights"),
    ("sft", CPU, ["model.lora_rank=8"], "load as random weights"),
    # the rollout
    ("grpo", CPU, [f"{R}.name=vlm"], "vlm is none that verl knows; did you mean vllm?"),
    ("grpo", CPU, [f"{R}.name=null"], "is not set: set ROLLOUT_ENGINE=vllm"),
    ("grpo", CPU, [f"{R}.mode=sync"], "verl 0.9.1 has only async"),
    ("grpo", CPU, [f"{R}.gpu_memory_utilization=1.5"], "above 0, at most 1"),
    ("grpo", CPU, [f"{R}.temperature=0"], "gives 8 times the same answer"),
    ("grpo", CPU, [f"{R}.top_p=0"], "top_p=0 must be above 0"),
    ("grpo", CPU, [f"{R}.val_kwargs.n=4"], "validates on 4 times the same answer"),
    ("grpo", CPU, [f"{R}.agent.default_agent_loop=tools"], "use one of single_turn_agent, tool_agent"),
    ("grpo", CPU, [f"{R}.multi_turn.function_tool_path=/no/tools.py"], "/no/tools.py does not exist"),
    ("grpo", CPU, [f"{R}.agent.num_workers=0"], "must be 1 or more"),
    (
        "grpo",
        CPU,
        [f"{R}.checkpoint_engine.update_weights_bucket_megabytes=50"],
        "below the largest tensor (49152 x 576 x 4 bytes",
    ),
    ("grpo", CPU, [f"{R}.free_cache_engine=True"], "need a GPU: leave both out"),
    # the reward
    (
        "grpo",
        CPU,
        ["reward.reward_manager.name=prime"],
        "reward.reward_manager.name=prime is none that verl knows",
    ),
    ("grpo", CPU, ["reward.reward_manager.source=importlib"], "needs reward.reward_manager.module.path"),
    ("grpo", CPU, ["reward.custom_reward_function.path=/no/r.py"], "/no/r.py does not exist"),
    (
        "grpo",
        CPU,
        ["reward.custom_reward_function.path=r.py"],
        "is relative, but verl's workers run elsewhere",
    ),
    ("grpo", CPU, ["reward.custom_reward_function.name=compute_scor"], "did you mean compute_score?"),
    ("grpo", CPU, ["reward.custom_reward_function.path=null"], "does not know the data_source arithmetic"),
    ("grpo", CPU, ["reward.num_workers=0"], "reward.num_workers=0 must be 1 or more"),
    ("grpo", CPU, RM, "needs reward.reward_model.model_path"),
    ("grpo", CPU, ["reward.reward_model.enable=True"], "reward.reward_model.rollout.name is not set"),
    ("grpo", CPU, RM, "takes 2 GPUs (tensor parallel; verl's default is 2)"),
    (
        "grpo",
        (*CPU, "--algorithm", "dapo"),
        ["reward.reward_kwargs.overlong_buffer_cfg.len=99"],
        "must lie between 1 and max_resp_len=16",
    ),
    # the trainer
    ("grpo", CPU, ["trainer.logger=[console,tensorbord]"], "did you mean tensorboard?"),
    ("grpo", CPU, ["trainer.total_epochs=0"], "trainer.total_epochs=0 must be 1 or more"),
    ("grpo", CPU, ["trainer.resume_mode=never"], "must be auto, disable or resume_path"),
    ("grpo", CPU, ["trainer.resume_mode=resume_path", "trainer.resume_from_path=/x/step_3"], "global_step_N"),
    ("grpo", CPU, ["trainer.default_local_dir=ckpt"], "is relative, and verl's workers run elsewhere"),
    ("grpo", CPU, ["trainer.device=cuda"], "this is a launch on the CPU"),
    ("grpo", GPU, ["trainer.device=cpu"], "needs the CPU plugin"),
    (
        "grpo",
        CPU,
        ["actor_rollout_ref.model.override_config.attn_implementation=flash_attention_2"],
        "flash_attention_2, which needs a GPU",
    ),
    ("grpo", CPU, [f"{A}.strategy=fsdp"], "STRATEGY=fsdp needs a GPU"),
    # data
    ("grpo", CPU, ["data.val_files=null"], "data.val_files is empty"),
    ("grpo", CPU, ["data.train_files=/no/train.parquet"], "/no/train.parquet does not exist"),
    ("grpo", CPU, ["data.custom_cls.path=/no/data.py"], "data.custom_cls.path=/no/data.py does not exist"),
    (
        "grpo",
        CPU,
        ["+data.apply_chat_template_kwargs.enable_thinking=False"],
        "the model's template does not know it",
    ),
    # Ray
    (
        "grpo",
        CPU,
        ["ray_kwargs.ray_init.num_cpus=4"],
        "verl asks it for 3 x 1 GPUs + 1 storage units + 2 = 6",
    ),
    ("grpo", GPU, ["ray_kwargs.ray_init.num_cpus=16"], "3 x 8 GPUs + 8 storage units + 2 = 34"),
    (
        "grpo",
        CPU,
        ["trainer.n_gpus_per_node=2"],
        "ray_kwargs.ray_init.num_gpus=1 is below trainer.n_gpus_per_node=2",
    ),
    (
        "grpo",
        CPU,
        ["ray_kwargs.ray_init.address=auto"],
        "a cluster that runs already (address=auto) decides that itself",
    ),
    # SFT and DPO
    ("sft", CPU, ["data.train_batch_size=7000"], "has 480 rows that fit, fewer than TRAIN_BATCH_SIZE=7000"),
    (
        "sft",
        GPU,
        ["data.train_batch_size=12"],
        "TRAIN_BATCH_SIZE=12 must divide by 8 data-parallel ranks: use 8 or 16",
    ),
    (
        "sft",
        CPU,
        ["data.use_dynamic_bsz=False", "data.micro_batch_size_per_gpu=5"],
        "MICRO_BATCH_SIZE=5 does not divide the 16 rows",
    ),
    ("sft", CPU, ["data.max_token_len_per_gpu=100"], "is below MAX_LENGTH = 512: use 512 or more"),
    (
        "sft",
        GPU,
        ["engine.ulysses_sequence_parallel_size=2"],
        "does not divide the model's 9 attention heads",
    ),
    ("sft", GPU, ["engine.fsdp_size=5"], "engine.fsdp_size=5 does not divide 8 GPUs"),
    ("sft", CPU, ["data.pad_mode=right"], "only no_padding works"),
    ("sft", CPU, ["data.truncation=middle"], "data.truncation=middle must be one of error, left, right"),
    ("sft", CPU, ["trainer.test_freq=0"], "makes verl divide by zero"),
    ("sft", CPU, ["data.val_files=null", "trainer.test_freq=5"], "stops with a TypeError"),
    ("sft", CPU, ["data.train_batch_size=128"], "VAL_DATA has 64 rows, fewer than TRAIN_BATCH_SIZE=128"),
    ("sft", CPU, ["optim.lr_scheduler_type=linear"], "verl's engine knows constant and cosine"),
    ("sft", CPU, ["optim.lr_warmup_steps_ratio=3"], "is a share of all steps"),
    ("sft", CPU, ["optim.lr=-1e-5"], "must be above 0"),
    (
        "sft",
        CPU,
        ["data.max_length=9000", "data.max_token_len_per_gpu=9000"],
        "above the model's 8192 positions",
    ),
    ("dpo", CPU, ["data.truncation=left"], "data.truncation=left must be one of error, drop, cut"),
    ("dpo", CPU, ["data.max_token_len_per_gpu=600"], "2 x MAX_LENGTH (a pair stays together) = 1024"),
]

# What verl itself says, its own checks and dataclasses.
VERL_SAYS = [
    ("grpo", CPU, [f"+{A}.policy_loss.tau_pos=1.0"], "no such field in PolicyLossConfig"),
    (
        "grpo",
        CPU,
        [*STATIC, f"{A}.ppo_micro_batch_size=4"],
        "verl refuses the config: [actor] You have set both",
    ),
    ("grpo", CPU, [f"{A}.loss_agg_mode=mean"], "Invalid loss_agg_mode: mean"),
    ("gspo", CPU, ["algorithm.adv_estimator=preferences"], "did you mean preference?"),
    (
        "ppo",
        GPU,
        [f"{R}.temperature=0", f"{R}.val_kwargs.do_sample=True"],
        "validation gen temperature should be greater than 0",
    ),
    ("grpo", CPU, [f"{R}.expert_parallel_size=3"], "expert_parallel_size must be equal"),
    ("sft", CPU, ["+optim.learning_rate=1e-5"], "no such field in FSDPOptimizerConfig"),
    ("dpo", CPU, ["dpo.beta=0"], "BETA=0.0 must be above 0"),
    ("dpo", CPU, ["dpo.loss_type=sigmoyd"], "LOSS_TYPE=sigmoyd is unknown"),
]


def stopped(report: Report, part: str) -> None:
    """One of the errors says *part*."""
    errors = [finding.text for finding in report.findings if finding.severity == "error"]
    assert any(part in text for text in errors), errors


@pytest.mark.parametrize(
    ("method", "word", "part"), NOT_COMPOSED, ids=[f"{m} {w}" for m, w, _ in NOT_COMPOSED]
)
def test_hydra_refuses_in_one_line(method: str, word: str, part: str) -> None:
    (line,) = word_problem(word, base_of(base_command(method, *CPU)))
    assert part in line


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("data.train_batchsize=4", "did you mean data.train_batch_size?"),
        ("data.train_files=${nope.y}", "Interpolation key 'nope.y' not found"),
        ("model_engine=nope", "Could not find 'model_engine/nope'"),
    ],
)
def test_a_config_that_cannot_be_composed(word: str, part: str) -> None:
    command = base_command("grpo", *CPU)
    with pytest.raises(UserError) as refused:
        compose(replace(command, overrides=[*command.overrides, word]))
    assert part in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("method", "flags", "words", "part"), WRONG, ids=[f"{m} {' '.join(w)} {p[:20]}" for m, _, w, p in WRONG]
)
def test_wrong_values_are_stopped(
    examined: Callable[..., Report], method: str, flags: tuple[str, ...], words: list[str], part: str
) -> None:
    stopped(examined(method, flags, words), part)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "flags", "words", "part"), VERL_SAYS, ids=[f"{m} {' '.join(w)}" for m, _, w, _ in VERL_SAYS]
)
def test_what_verl_refuses_is_stopped(
    examined: Callable[..., Report], method: str, flags: tuple[str, ...], words: list[str], part: str
) -> None:
    stopped(examined(method, flags, words, ask=True), part)


BUSY = [replace(GPU_BOX.gpus[0], memory_free=9000), *GPU_BOX.gpus[1:]]
SMALL = [Gpu("0", "a small one", 4096, 4000, 7.5)]
ONE_GPU = ("--device", "gpu", "--gpus", "1")
HERE = {
    "fewer GPUs": (
        GPU,
        [],
        {"gpus": GPU_BOX.gpus[:4]},
        "N_GPUS=8, but this machine shows 4 GPUs: use N_GPUS=4",
    )
}
HERE |= {
    "a busy GPU": (
        GPU,
        [],
        {"gpus": BUSY},
        "GPU 0 has 8.8 of 79.6 GiB free, the rollout engine asks for 0.5 x 79.6",
    ),
    "no flash-attn": (
        GPU,
        [],
        {"importable": lambda name: name != "flash_attn"},
        "flash-attn is not installed",
    ),
    "no TransferQueue": (
        CPU,
        [],
        {"importable": lambda name: name != "transfer_queue"},
        "TransferQueue, on which",
    ),
    "no sglang": (
        (*GPU, "--rollout_engine", "sglang"),
        [],
        {"importable": lambda name: name != "sglang"},
        "sglang is not installed",
    ),
    "no swanlab": (
        (*CPU, "--loggers", "swanlab"),
        [],
        {"importable": lambda name: name != "swanlab"},
        "pip install swanlab",
    ),
    "small /dev/shm": (CPU, [], {"shm_free": 64 << 20}, "/dev/shm has 0.06 GiB"),
    "few cores": (GPU, ["ray_kwargs.ray_init.num_cpus=null"], {"cores": 16}, "Ray would have 16 CPUs"),
    "full disk": (
        GPU,
        [],
        {"disk_free": lambda path: 3 << 30},
        "KEEP_CHECKPOINTS=3 keeps up to 3 checkpoints of",
    ),
    "small host": (CPU, [], {"ram_total": 4 << 30, "ram_free": 3 << 30}, "this machine has 4.0 GiB"),
    "small GPU": (
        (*ONE_GPU, "--max_tokens_per_gpu", "60000", "--max_response_length", "7000"),
        [],
        {"gpus": SMALL},
        "a GPU has 4.0 GiB",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HERE)
def test_a_machine_that_cannot(examined: Callable[..., Report], name: str) -> None:
    flags, words, there, part = HERE[name]
    stopped(examined("grpo", flags, words, replace(CPU_BOX if "cpu" in flags else GPU_BOX, **there)), part)


@pytest.mark.slow
def test_a_taken_port(examined: Callable[..., Report]) -> None:
    flags = (*GPU, "--nnodes", "2", "--master_addr", "10.0.0.1", "--master_port", "29511")
    taken = replace(GPU_BOX, port_free=lambda port: port != 29511)
    stopped(examined("sft", flags, [], taken), "MASTER_PORT=29511 is taken on this node")


@pytest.mark.slow
def test_a_cluster_that_is_not_there(
    examined: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    from common.preflight import hardware

    def none(address: str) -> list[dict[str, float]]:
        raise ValueError("ConnectionError: Could not find any running Ray instance.")

    two = (*GPU, "--nnodes", "2")
    stopped(examined("grpo", two, []), "no Ray cluster answers at auto (nothing runs here)")
    monkeypatch.setattr(hardware, "cluster_nodes", none)
    stopped(examined("grpo", two, [], ON_A_CLUSTER), "no Ray cluster answers at auto (ConnectionError")
    monkeypatch.setattr(hardware, "cluster_nodes", lambda address: [{"CPU": 96.0, "GPU": 8.0}, {"CPU": 8.0}])
    stopped(examined("grpo", two, [], ON_A_CLUSTER), "has 2 nodes with 8, 0 GPUs")
    monkeypatch.setattr(hardware, "cluster_nodes", lambda address: [{"CPU": 8.0, "GPU": 8.0}] * 2)
    stopped(examined("grpo", two, [], ON_A_CLUSTER), "the Ray cluster has 16 CPUs, verl asks it for 58")


def test_a_stray_cluster_that_would_be_joined(examined: Callable[..., Report], tmp_path: Path) -> None:
    there = replace(GPU_BOX, environment={"RAY_ADDRESS": "10.0.0.9:6379"})
    stopped(examined("grpo", GPU, ["ray_kwargs.ray_init.address=null"], there), "RAY_ADDRESS=10.0.0.9:6379")


def test_data_that_verl_cannot_read(examined: Callable[..., Report], tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    csv, broken, columns = (tmp_path / name for name in ("a.csv", "b.parquet", "c.parquet"))
    csv.write_text("question,answer\n")
    broken.write_text("no parquet")
    pq.write_table(pa.table({"question": ["a"] * 50, "answer": ["b"] * 50}), columns)
    for path, part in (
        (csv, "is no file that verl reads"),
        (broken, "is no Parquet file"),
        (columns, "has no column prompt or data_source"),
    ):
        stopped(examined("grpo", CPU, [f"data.train_files={path}"]), part)


def test_long_prompts_without_the_filter(examined: Callable[..., Report]) -> None:
    long = {"data": {"overlong": {"train": {"rows": 480, "over_prompt": 48, "longest_prompt": 900}}}}
    report = examined("grpo", CPU, ["data.filter_overlong_prompts=False"], record=long)
    stopped(report, "48 of 480 prompts (10%) are over MAX_PROMPT_LENGTH=64")


def test_a_model_without_a_chat_template(examined: Callable[..., Report], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"})
    )
    (tmp_path / "tokenizer_config.json").write_text("{}")
    stopped(
        examined("grpo", CPU, [f"actor_rollout_ref.model.path={tmp_path}"]),
        "the tokenizer has no chat template",
    )


def test_force_turns_errors_into_warnings(examined: Callable[..., Any]) -> None:
    from common.preflight.finding import forced

    found = forced(examined("grpo", CPU, [f"{R}.n=1"]).findings)
    assert not [finding for finding in found if finding.severity == "error"]
    assert any(finding.text.endswith("(--force: going on)") for finding in found)
