#!/usr/bin/env bash
# Supervised fine-tuning on verl: the model learns to give the assistant turns of your conversations. The loss is on
# those turns only; prompts, system messages and tool results are read, not learned. Edit the block below, then run
# ./train.sh.
set -euo pipefail

# == Model ==
MODEL_PATH="${MODEL_PATH:-Qwen/Qwen2.5-1.5B-Instruct}" # HF folder or hub id; smollm2 = the bundled 135M model
# == Data ==
TRAIN_DATA="${TRAIN_DATA:-sft/data/train.jsonl}" # JSON, JSONL, CSV, XLSX, Parquet or HF dataset id; comma-separated
VAL_DATA="${VAL_DATA:-sft/data/val.jsonl}"       # same; empty = split off TRAIN_DATA
BAD_ROWS="${BAD_ROWS:-error}"                    # error | quarantine: refuse the file, or set bad rows aside
MAX_LENGTH="${MAX_LENGTH:-2048}"                 # tokens of a whole conversation
TRUNCATION="${TRUNCATION:-error}"                # error | drop | cut: longer rows are refused, left out, or cut at the end
CHAT_TEMPLATE="${CHAT_TEMPLATE:-}"               # Jinja file in place of the model's template; base models have none
ENABLE_THINKING="${ENABLE_THINKING:-auto}"       # auto | true | false: enable_thinking of the template, where a row does not say
# == Optimisation ==
TRAIN_BATCH_SIZE="${TRAIN_BATCH_SIZE:-64}" # conversations per step
LEARNING_RATE="${LEARNING_RATE:-1e-5}"     # 1e-5 full, 1e-4 to 2e-4 with LoRA
LR_SCHEDULER="${LR_SCHEDULER:-cosine}"     # cosine | constant: after the warm-up
WARMUP_RATIO="${WARMUP_RATIO:-0.03}"       # share of all steps in which the learning rate rises from 0
WEIGHT_DECAY="${WEIGHT_DECAY:-0.01}"       # AdamW's decay
MAX_GRAD_NORM="${MAX_GRAD_NORM:-1.0}"      # longer gradients are scaled down to this
TOTAL_EPOCHS="${TOTAL_EPOCHS:-3}"          # passes over the data
TOTAL_STEPS="${TOTAL_STEPS:-0}"            # stop after this many steps; 0 = by epochs
SEED="${SEED:-1}"                          # data order
# == LoRA ==
USE_LORA="${USE_LORA:-false}"              # train a low-rank adapter instead of all weights
LORA_RANK="${LORA_RANK:-32}"               # 1 to 512
LORA_ALPHA="${LORA_ALPHA:-64}"             # scale; usually rank or twice the rank
LORA_TARGETS="${LORA_TARGETS:-all-linear}" # modules, e.g. [q_proj,v_proj]
# == Memory and speed ==
PACKING="${PACKING:-true}"                               # rows end to end without padding; the loss is the same
USE_DYNAMIC_BSZ="${USE_DYNAMIC_BSZ:-true}"               # pack micro-batches by tokens instead of by count
MAX_TOKENS_PER_GPU="${MAX_TOKENS_PER_GPU:-0}"            # token budget of a micro-batch; 0 = two longest rows; lower on OOM
MICRO_BATCH_SIZE="${MICRO_BATCH_SIZE:-8}"                # rows per micro-batch when USE_DYNAMIC_BSZ=false
GRADIENT_CHECKPOINTING="${GRADIENT_CHECKPOINTING:-true}" # recompute activations: less memory, a third slower
OFFLOAD="${OFFLOAD:-false}"                              # weights and optimizer in host RAM between phases
SEQUENCE_PARALLEL_SIZE="${SEQUENCE_PARALLEL_SIZE:-1}"    # Ulysses: GPUs that share one long sequence
STRATEGY="${STRATEGY:-fsdp2}"                            # fsdp2 | fsdp: sharding
# == Hardware ==
DEVICE="${DEVICE:-auto}"            # auto | gpu | cpu
CPU_DTYPE="${CPU_DTYPE:-auto}"      # auto | bfloat16 | float32: on the CPU; auto = bfloat16 where the CPU has it
N_GPUS="${N_GPUS:-auto}"            # GPUs per node; on the CPU: training processes
NNODES="${NNODES:-1}"               # nodes; run the same command on each, with its NODE_RANK
NODE_RANK="${NODE_RANK:-0}"         # this node, 0 to NNODES - 1
MASTER_ADDR="${MASTER_ADDR:-}"      # address of node 0
MASTER_PORT="${MASTER_PORT:-29500}" # a free port of node 0
# == Output ==
OUTPUT_DIR="${OUTPUT_DIR:-outputs}"             # logs/ and checkpoints/ go here; relative to the repository
EXPERIMENT_NAME="${EXPERIMENT_NAME:-}"          # name of the run; empty = method and time
RESUME="${RESUME:-}"                            # a run's name, or last: go on from its newest checkpoint
SAVE_FREQ="${SAVE_FREQ:-100}"                   # steps between checkpoints (and at the end); 0 = only at the end
TEST_FREQ="${TEST_FREQ:-20}"                    # steps between validations (and at the end); 0 = only at the end
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
PROFILE_STEPS="${PROFILE_STEPS:-2}"             # first and last step to profile, comma-separated
# ---------------------------------------------------------------- end config

METHOD=sft
TASK=sft
# What a CPU run uses where you chose nothing.
CPU_VALUES=(MODEL_PATH=smollm2 TRAIN_BATCH_SIZE=16 MAX_LENGTH=512 MAX_TOKENS_PER_GPU=2048 LEARNING_RATE=1e-4
  TOTAL_STEPS=15 GRADIENT_CHECKPOINTING=false TEST_FREQ=5 KEEP_CHECKPOINTS=1)
SMOKE_VALUES=("TRAIN_BATCH_SIZE<=8" TOTAL_STEPS=2 SAVE_FREQ=2 TEST_FREQ=2)

# shellcheck source=common/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common/launch.sh"
# shellcheck source=common/engine.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common/engine.sh"

launch::begin "$@"
OWN=("data.truncation=$([[ "$TRUNCATION" == cut ]] && echo right || echo error)")
if [[ -n "$DATASET_CLASS_PATH" ]]; then
  OWN+=("data.custom_cls.path=$(launch::quote "$DATASET_CLASS_PATH")" "data.custom_cls.name=$DATASET_CLASS_NAME")
fi
# What generation uses later, and upstream's dataset for rows with images.
[[ -z "$CHAT_TEMPLATE" ]] || OWN+=("model.custom_chat_template=$(launch::quote "$(<"$CHAT_TEMPLATE")")")
OWN+=("data.enable_thinking_default=$([[ "$ENABLE_THINKING" == auto ]] && echo null || echo "$ENABLE_THINKING")")
engine::run verl.trainer.sft_trainer "${OWN[@]}"
