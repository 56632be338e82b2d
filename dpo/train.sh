#!/usr/bin/env bash
# Offline preference optimisation on verl's engine: from pairs of answers, one better than the other, the model learns
# to prefer the better one, measured against a frozen reference. DPO and ten relatives. Edit the block below, then
# run ./train.sh.
set -euo pipefail

# == Model ==
MODEL_PATH="${MODEL_PATH:-Qwen/Qwen2.5-1.5B-Instruct}" # HF folder or hub id; smollm2 = the bundled 135M model
REF_MODEL_PATH="${REF_MODEL_PATH:-}"                   # the reference; empty = MODEL_PATH before training
# == Data ==
TRAIN_DATA="${TRAIN_DATA:-dpo/data/train.jsonl}" # JSON, JSONL, CSV, XLSX, Parquet or HF dataset id; comma-separated
VAL_DATA="${VAL_DATA:-dpo/data/val.jsonl}"       # same; empty = split off TRAIN_DATA
BAD_ROWS="${BAD_ROWS:-error}"                    # error | quarantine: refuse the file, or set bad rows aside
MAX_LENGTH="${MAX_LENGTH:-2048}"                 # tokens of a prompt with one answer
MAX_PROMPT_LENGTH="${MAX_PROMPT_LENGTH:-1024}"   # tokens of a prompt; below MAX_LENGTH
TRUNCATION="${TRUNCATION:-error}"                # error | drop | cut: longer pairs are refused, left out, or cut (prompts at the start, answers at the end)
# == Loss ==
LOSS_TYPE="${LOSS_TYPE:-sigmoid}"         # sigmoid | hinge | ipo | robust | exo_pair | apo_zero | apo_down | sppo_hard | nca_pair | simpo | orpo: see README
BETA="${BETA:-0.1}"                       # how dear it is to leave the reference; 0.1 is usual, 2.0 for simpo
LABEL_SMOOTHING="${LABEL_SMOOTHING:-0.0}" # share of pairs that may be the wrong way round; sigmoid, robust, exo_pair, simpo
RPO_ALPHA="${RPO_ALPHA:-0.0}"             # weight of an SFT loss on the chosen answers; 1.0 keeps them likely
SIMPO_GAMMA="${SIMPO_GAMMA:-0.5}"         # target margin of simpo
# == Optimisation ==
TRAIN_BATCH_SIZE="${TRAIN_BATCH_SIZE:-64}" # pairs per step
LEARNING_RATE="${LEARNING_RATE:-1e-6}"     # 5e-7 to 1e-6 full, 5e-6 to 5e-5 with LoRA
LR_SCHEDULER="${LR_SCHEDULER:-cosine}"     # cosine | constant: after the warm-up
WARMUP_RATIO="${WARMUP_RATIO:-0.1}"        # share of all steps in which the learning rate rises from 0
WEIGHT_DECAY="${WEIGHT_DECAY:-0.0}"        # AdamW's decay
MAX_GRAD_NORM="${MAX_GRAD_NORM:-1.0}"      # longer gradients are scaled down to this
TOTAL_EPOCHS="${TOTAL_EPOCHS:-1}"          # passes over the data; more than 3 overfit
TOTAL_STEPS="${TOTAL_STEPS:-0}"            # stop after this many steps; 0 = by epochs
SEED="${SEED:-1}"                          # data order
# == LoRA ==
USE_LORA="${USE_LORA:-false}"              # train a low-rank adapter instead of all weights
LORA_RANK="${LORA_RANK:-32}"               # 1 to 512
LORA_ALPHA="${LORA_ALPHA:-64}"             # scale; usually rank or twice the rank
LORA_TARGETS="${LORA_TARGETS:-all-linear}" # modules, e.g. [q_proj,v_proj]
LORA_ADAPTER_PATH="${LORA_ADAPTER_PATH:-}" # PEFT adapter to start from; empty = a new one
LORA_REFERENCE="${LORA_REFERENCE:-base}"   # base | adapter: the reference without the adapter, or with LORA_ADAPTER_PATH
# == Memory and speed ==
SHARE_PROMPT="${SHARE_PROMPT:-auto}"                     # auto | true | false: compute the prompt of a pair once; the loss is the same
USE_DYNAMIC_BSZ="${USE_DYNAMIC_BSZ:-true}"               # pack micro-batches by tokens instead of by count
MAX_TOKENS_PER_GPU="${MAX_TOKENS_PER_GPU:-0}"            # token budget of a micro-batch; 0 = the longest pair; lower MAX_LENGTH on OOM
MICRO_BATCH_SIZE="${MICRO_BATCH_SIZE:-4}"                # pairs per micro-batch when USE_DYNAMIC_BSZ=false
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
TEST_FREQ="${TEST_FREQ:-20}"                    # steps between validations (also before and at the end); 0 = only then
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

METHOD=dpo
TASK=preference
# What a CPU run uses where you chose nothing.
CPU_VALUES=(MODEL_PATH=smollm2 TRAIN_BATCH_SIZE=8 MAX_LENGTH=512 MAX_PROMPT_LENGTH=256 LEARNING_RATE=1e-5
  GRADIENT_CHECKPOINTING=false KEEP_CHECKPOINTS=1)
SMOKE_VALUES=("TRAIN_BATCH_SIZE<=4" TOTAL_STEPS=2 SAVE_FREQ=2 TEST_FREQ=2)

# shellcheck source=common/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common/launch.sh"
# shellcheck source=common/engine.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common/engine.sh"

launch::begin "$@"
PACKING=true # pairs are always packed
OWN=(
  "data.max_prompt_length=$MAX_PROMPT_LENGTH"
  "data.truncation=$TRUNCATION"
  "data.bad_rows=$BAD_ROWS"
  "dpo.loss_type=$LOSS_TYPE"
  "dpo.beta=$BETA"
  "dpo.label_smoothing=$LABEL_SMOOTHING"
  "dpo.rpo_alpha=$RPO_ALPHA"
  "dpo.simpo_gamma=$SIMPO_GAMMA"
  "dpo.share_prompt=$SHARE_PROMPT"
  "dpo.lora_reference=$LORA_REFERENCE"
)
[[ -z "$REF_MODEL_DIR" ]] || OWN+=("dpo.reference_path=$(launch::quote "$REF_MODEL_DIR")")
# The head of dpo/answer_head.py takes the place of verl's fused one.
[[ "$DEVICE" == gpu ]] || OWN+=("model.use_fused_kernels=False")
[[ -z "$LORA_ADAPTER_DIR" ]] || OWN+=("model.lora_adapter_path=$(launch::quote "$LORA_ADAPTER_DIR")")
engine::run dpo.dpo_trainer "${OWN[@]}"
