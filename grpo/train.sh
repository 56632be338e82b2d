#!/usr/bin/env bash
# GRPO and its relatives on verl: for each prompt, several answers are sampled, and an answer is pushed up or
# down by how much better than its group it scored. No critic. Edit the block below, then run ./train.sh.
set -euo pipefail

# == Model ==
MODEL_PATH="${MODEL_PATH:-Qwen/Qwen2.5-1.5B-Instruct}" # HF folder or hub id; smollm2 = the bundled 135M model
# == Data ==
TRAIN_DATA="${TRAIN_DATA:-grpo/data/train.jsonl}"  # JSON, JSONL, CSV, XLSX, Parquet or HF dataset id; comma-separated
VAL_DATA="${VAL_DATA:-grpo/data/val.jsonl}"        # same; empty = split off TRAIN_DATA
BAD_ROWS="${BAD_ROWS:-error}"                      # error | quarantine: refuse the file, or set bad rows aside
MAX_PROMPT_LENGTH="${MAX_PROMPT_LENGTH:-512}"      # tokens; longer prompts are left out
MAX_RESPONSE_LENGTH="${MAX_RESPONSE_LENGTH:-1024}" # tokens; long reasoning needs 4096 and more
# == Algorithm ==
ALGORITHM="${ALGORITHM:-grpo}"                    # grpo | dr_grpo | dapo | rloo | reinforce_plus_plus | reinforce_plus_plus_baseline | opo | gpg | cispo | sapo | gmpo | remax: see README
ROLLOUT_N="${ROLLOUT_N:-8}"                       # answers per prompt, 2 or more; 8-16 is usual
ROLLOUT_TEMPERATURE="${ROLLOUT_TEMPERATURE:-1.0}" # sampling temperature; 1.0 explores best
NORM_ADV_BY_STD="${NORM_ADV_BY_STD:-auto}"        # auto | true | false: divide advantages by the group's std
USE_KL_LOSS="${USE_KL_LOSS:-auto}"                # auto | true | false: KL to the reference policy in the loss
KL_LOSS_COEF="${KL_LOSS_COEF:-0.001}"             # weight of that KL
KL_LOSS_TYPE="${KL_LOSS_TYPE:-low_var_kl}"        # low_var_kl | kl | abs | mse: its estimator
CLIP_RATIO_LOW="${CLIP_RATIO_LOW:-auto}"          # lower clip of the ratio; auto = the algorithm's
CLIP_RATIO_HIGH="${CLIP_RATIO_HIGH:-auto}"        # upper clip; higher than low = "clip higher"
LOSS_AGG_MODE="${LOSS_AGG_MODE:-auto}"            # auto | token-mean | seq-mean-token-sum | seq-mean-token-mean | seq-mean-token-sum-norm: how token losses are averaged
ENTROPY_COEFF="${ENTROPY_COEFF:-0.0}"             # entropy bonus; 0.001 when answers collapse
# == Reward ==
REWARD_FUNC_PATH="${REWARD_FUNC_PATH:-grpo/reward_func.py}" # your Python file
REWARD_FUNC_NAME="${REWARD_FUNC_NAME:-compute_score}"       # function in it, or common:math, common:gsm8k ...
REWARD_KWARGS="${REWARD_KWARGS:-}"                          # JSON object of its keyword arguments
REWARD_ERRORS="${REWARD_ERRORS:-raise}"                     # raise | zero: what an exception in the reward does to the run
# == Optimisation ==
TRAIN_BATCH_SIZE="${TRAIN_BATCH_SIZE:-64}" # prompts per step
MINI_BATCH_SIZE="${MINI_BATCH_SIZE:-0}"    # prompts per update; divides TRAIN_BATCH_SIZE; 0 = the same, one update
LEARNING_RATE="${LEARNING_RATE:-1e-6}"     # 1e-6 full, 1e-5 to 3e-5 with LoRA
TOTAL_EPOCHS="${TOTAL_EPOCHS:-15}"         # passes over the data
TOTAL_STEPS="${TOTAL_STEPS:-0}"            # stop after this many steps; 0 = by epochs
SEED="${SEED:-1}"                          # data order and sampling
# == LoRA ==
USE_LORA="${USE_LORA:-false}"              # train a low-rank adapter instead of all weights
LORA_RANK="${LORA_RANK:-32}"               # 1 to 512
LORA_ALPHA="${LORA_ALPHA:-64}"             # scale; usually rank or twice the rank
LORA_TARGETS="${LORA_TARGETS:-all-linear}" # modules, e.g. [q_proj,v_proj]
# == Memory and speed ==
USE_DYNAMIC_BSZ="${USE_DYNAMIC_BSZ:-true}"               # pack micro-batches by tokens instead of by count
MAX_TOKENS_PER_GPU="${MAX_TOKENS_PER_GPU:-0}"            # token budget of a micro-batch; 0 = two longest sequences; lower on OOM
MICRO_BATCH_SIZE="${MICRO_BATCH_SIZE:-8}"                # answers per micro-batch when USE_DYNAMIC_BSZ=false
GRADIENT_CHECKPOINTING="${GRADIENT_CHECKPOINTING:-true}" # recompute activations: less memory, a third slower
OFFLOAD="${OFFLOAD:-false}"                              # weights and optimizer in host RAM between phases
SEQUENCE_PARALLEL_SIZE="${SEQUENCE_PARALLEL_SIZE:-1}"    # Ulysses: GPUs that share one long sequence
STRATEGY="${STRATEGY:-fsdp2}"                            # fsdp2 | fsdp: sharding
ROLLOUT_ENGINE="${ROLLOUT_ENGINE:-vllm}"                 # vllm | sglang: what samples the answers
ROLLOUT_TP_SIZE="${ROLLOUT_TP_SIZE:-1}"                  # GPUs per rollout engine; 2+ for models that do not fit one
GPU_MEMORY_UTILIZATION="${GPU_MEMORY_UTILIZATION:-0.5}"  # share of GPU memory for the rollout engine; lower on OOM in update
# == Hardware ==
DEVICE="${DEVICE:-auto}"       # auto | gpu | cpu
CPU_DTYPE="${CPU_DTYPE:-auto}" # auto | bfloat16 | float32: on the CPU; auto = bfloat16 where the CPU has it
N_GPUS="${N_GPUS:-auto}"       # GPUs per node; on the CPU: training processes
NNODES="${NNODES:-1}"          # nodes of a Ray cluster that you started
# == Output ==
OUTPUT_DIR="${OUTPUT_DIR:-outputs}"             # logs/ and checkpoints/ go here; relative to the repository
EXPERIMENT_NAME="${EXPERIMENT_NAME:-}"          # name of the run; empty = method and time
RESUME="${RESUME:-}"                            # a run's name, or last: go on from its newest checkpoint
SAVE_FREQ="${SAVE_FREQ:-20}"                    # steps between checkpoints (and at the end); 0 = never
TEST_FREQ="${TEST_FREQ:-10}"                    # steps between validations (and at the end); 0 = never
KEEP_CHECKPOINTS="${KEEP_CHECKPOINTS:-3}"       # newest ones kept; 0 = all
KEEP_BEST="${KEEP_BEST:-false}"                 # keep the best one by validation too; TEST_FREQ divides SAVE_FREQ then
EXPORT_HF="${EXPORT_HF:-false}"                 # after each one a Hugging Face model in merged_hf/, LoRA folded in
ON_SAVE="${ON_SAVE:-}"                          # command after each one: rclone copy {checkpoint} backup:{run}/{step}
STOP_ON="${STOP_ON:-}"                          # rules that end the run after its next checkpoint: not_finite,kl_high ...; docs/watch.md
USE_WANDB="${USE_WANDB:-false}"                 # log to Weights & Biases too
WANDB_PROJECT="${WANDB_PROJECT:-verl_training}" # project there
WANDB_ENTITY="${WANDB_ENTITY:-}"                # team there; empty = your default
WANDB_RUN_NAME="${WANDB_RUN_NAME:-}"            # name there; empty = EXPERIMENT_NAME
LOGGERS="${LOGGERS:-}"                          # more of verl's loggers: tensorboard, swanlab, mlflow; comma-separated
PROFILE="${PROFILE:-none}"                      # none | torch | nsys | torch_memory: verl's profiler
PROFILE_STEPS="${PROFILE_STEPS:-2}"             # steps to profile, comma-separated
# ---------------------------------------------------------------- end config

METHOD=grpo
TASK=rl
# What a CPU run uses where you chose nothing.
CPU_VALUES=(MODEL_PATH=smollm2 TRAIN_BATCH_SIZE=8 USE_KL_LOSS=false MAX_PROMPT_LENGTH=64 MAX_RESPONSE_LENGTH=16
  LEARNING_RATE=2e-5 TOTAL_STEPS=30 MAX_TOKENS_PER_GPU=1024 GRADIENT_CHECKPOINTING=false SAVE_FREQ=15 TEST_FREQ=15
  KEEP_CHECKPOINTS=1)
SMOKE_VALUES=("TRAIN_BATCH_SIZE<=4" "ROLLOUT_N<=4" "MAX_RESPONSE_LENGTH<=32" TOTAL_STEPS=2 SAVE_FREQ=2
  TEST_FREQ=2)

# shellcheck source=common/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common/launch.sh"
# shellcheck source=common/rl.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common/rl.sh"
# shellcheck source=grpo/algorithms.sh
source "$(dirname "${BASH_SOURCE[0]}")/algorithms.sh"

launch::begin "$@"
grpo::algorithm
rl::run "${ALGORITHM_KEYS[@]}"
