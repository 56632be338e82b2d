#!/usr/bin/env bash
# PPO on verl: a critic learns what each prefix of an answer is worth, and the policy is pushed towards tokens that
# did better than the critic expected. Edit the block below, then run ./train.sh.
set -euo pipefail

# == Model ==
MODEL_PATH="${MODEL_PATH:-Qwen/Qwen2.5-1.5B-Instruct}" # HF folder or hub id; smollm2 = the bundled 135M model
CRITIC_MODEL_PATH="${CRITIC_MODEL_PATH:-}"             # what the critic starts from, same tokenizer; empty = MODEL_PATH
# == Data ==
TRAIN_DATA="${TRAIN_DATA:-ppo/data/train.jsonl}"   # JSON, JSONL, CSV, XLSX, Parquet or HF dataset id; comma-separated
VAL_DATA="${VAL_DATA:-ppo/data/val.jsonl}"         # same; empty = split off TRAIN_DATA
BAD_ROWS="${BAD_ROWS:-error}"                      # error | quarantine: refuse the file, or set bad rows aside
MAX_PROMPT_LENGTH="${MAX_PROMPT_LENGTH:-512}"      # tokens; longer prompts are left out
MAX_RESPONSE_LENGTH="${MAX_RESPONSE_LENGTH:-1024}" # tokens; long reasoning needs 4096 and more
# == Algorithm ==
GAMMA="${GAMMA:-1.0}"                             # discount per token; 1.0 for answers scored at their end
GAE_LAMBDA="${GAE_LAMBDA:-1.0}"                   # GAE: 1.0 trusts the rewards, 0.95 leans on the critic
PPO_EPOCHS="${PPO_EPOCHS:-1}"                     # passes of actor and critic over each step's answers
CLIP_RATIO_LOW="${CLIP_RATIO_LOW:-0.2}"           # lower clip of the ratio
CLIP_RATIO_HIGH="${CLIP_RATIO_HIGH:-0.2}"         # upper clip; higher than low = "clip higher"
CLIP_RATIO_C="${CLIP_RATIO_C:-3.0}"               # dual clip: bound of the ratio where the advantage is negative; above 1
KL_MODE="${KL_MODE:-reward}"                      # reward | loss | none: where the KL to the reference policy counts
KL_COEF="${KL_COEF:-0.001}"                       # its weight; the first value where KL_CONTROLLER=adaptive
KL_ESTIMATOR="${KL_ESTIMATOR:-kl}"                # kl | abs | mse | low_var_kl: low_var_kl suits KL_MODE=loss
KL_CONTROLLER="${KL_CONTROLLER:-fixed}"           # fixed | adaptive: KL_MODE=reward only
KL_TARGET="${KL_TARGET:-0.1}"                     # adaptive: KL per token that the weight is steered to
KL_HORIZON="${KL_HORIZON:-10000}"                 # adaptive: answers; larger = slower steering
ROLLOUT_N="${ROLLOUT_N:-1}"                       # answers per prompt; 1 is usual
ROLLOUT_TEMPERATURE="${ROLLOUT_TEMPERATURE:-1.0}" # sampling temperature; 1.0 explores best
LOSS_AGG_MODE="${LOSS_AGG_MODE:-token-mean}"      # token-mean | seq-mean-token-sum | seq-mean-token-mean | seq-mean-token-sum-norm: how token losses are averaged
ENTROPY_COEFF="${ENTROPY_COEFF:-0.0}"             # entropy bonus; 0.001 when answers collapse
# == Critic ==
CRITIC_LEARNING_RATE="${CRITIC_LEARNING_RATE:-1e-5}"                   # usually ten times the actor's
CRITIC_WARMUP="${CRITIC_WARMUP:-0}"                                    # steps in which only the critic learns
CLIPRANGE_VALUE="${CLIPRANGE_VALUE:-0.5}"                              # how far a value may move per step
CRITIC_MAX_TOKENS_PER_GPU="${CRITIC_MAX_TOKENS_PER_GPU:-0}"            # its token budget; 0 = as MAX_TOKENS_PER_GPU; lower on OOM
CRITIC_MICRO_BATCH_SIZE="${CRITIC_MICRO_BATCH_SIZE:-0}"                # answers per micro-batch when USE_DYNAMIC_BSZ=false; 0 = as MICRO_BATCH_SIZE
CRITIC_GRADIENT_CHECKPOINTING="${CRITIC_GRADIENT_CHECKPOINTING:-true}" # recompute activations: less memory, a third slower
CRITIC_OFFLOAD="${CRITIC_OFFLOAD:-false}"                              # weights and optimizer in host RAM between phases
# == Reward ==
REWARD_SOURCE="${REWARD_SOURCE:-function}"                                 # function | model | api | mix: what scores an answer
REWARD_FUNC_PATH="${REWARD_FUNC_PATH:-grpo/reward_func.py}"                # your Python file
REWARD_FUNC_NAME="${REWARD_FUNC_NAME:-compute_score}"                      # function in it, or common:math, common:gsm8k ...
REWARD_KWARGS="${REWARD_KWARGS:-}"                                         # JSON object of its keyword arguments
REWARD_ERRORS="${REWARD_ERRORS:-raise}"                                    # raise | zero: what an exception in the reward does to the run
REWARD_MODEL_PATH="${REWARD_MODEL_PATH:-}"                                 # model: HF folder or hub id of a classifier or a judge
REWARD_MODEL_CONFIG="${REWARD_MODEL_CONFIG:-ppo/reward_model_config.yaml}" # model: prompt, scale, where it runs
API_REWARD_CONFIG="${API_REWARD_CONFIG:-ppo/api_reward_config.yaml}"       # api: endpoint, model, prompt, limits
REWARD_WEIGHTS="${REWARD_WEIGHTS:-function=1.0,model=1.0}"                 # mix: weight of each source that takes part
# == Optimisation ==
TRAIN_BATCH_SIZE="${TRAIN_BATCH_SIZE:-128}" # prompts per step
MINI_BATCH_SIZE="${MINI_BATCH_SIZE:-0}"     # prompts per update; divides TRAIN_BATCH_SIZE; 0 = the same, one update
LEARNING_RATE="${LEARNING_RATE:-1e-6}"      # 1e-6 full, 1e-5 to 3e-5 with LoRA
TOTAL_EPOCHS="${TOTAL_EPOCHS:-15}"          # passes over the data
TOTAL_STEPS="${TOTAL_STEPS:-0}"             # stop after this many steps; 0 = by epochs
SEED="${SEED:-1}"                           # data order and sampling
REPRODUCIBLE="${REPRODUCIBLE:-false}"       # a resumed run repeats the uninterrupted one: answers seeded one by one, deterministic kernels; slower on GPUs
# == LoRA ==
USE_LORA="${USE_LORA:-false}"              # train a low-rank adapter instead of all weights; the critic trains all of its own
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

METHOD=ppo
TASK=rl
# What a CPU run uses where you chose nothing.
CPU_VALUES=(MODEL_PATH=smollm2 TRAIN_BATCH_SIZE=64 KL_MODE=none MAX_PROMPT_LENGTH=64 MAX_RESPONSE_LENGTH=16
  LEARNING_RATE=2e-5 CRITIC_LEARNING_RATE=1e-4 TOTAL_STEPS=20 MAX_TOKENS_PER_GPU=512 GRADIENT_CHECKPOINTING=false
  CRITIC_GRADIENT_CHECKPOINTING=false REPRODUCIBLE=true SAVE_FREQ=10 TEST_FREQ=10 KEEP_CHECKPOINTS=1)
SMOKE_VALUES=("TRAIN_BATCH_SIZE<=16" "ROLLOUT_N<=4" "MAX_RESPONSE_LENGTH<=32" TOTAL_STEPS=2 SAVE_FREQ=2
  TEST_FREQ=2)

# shellcheck source=common/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common/launch.sh"
# shellcheck source=common/rl.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common/rl.sh"
# shellcheck source=ppo/keys.sh
source "$(dirname "${BASH_SOURCE[0]}")/keys.sh"

launch::begin "$@"
ppo::keys
rl::run "${PPO_KEYS[@]}"
