# shellcheck shell=bash
# The verl keys that SFT and DPO share, on verl's sft_trainer_engine config. Sourcing it defines functions and
# nothing more. Knobs are the shell variables of the config block; see launch.sh.

# Fills OVERRIDES with the keys that both methods set from the shared knobs.
# Globals: OVERRIDES (set), knobs (read)
engine::shared() {
  local loggers contents='[model,optimizer,extra,hf_model]' val=null
  # With LoRA verl would export weights under PEFT's names, which transformers loads as random ones.
  [[ "$USE_LORA" != true ]] || contents='[model,optimizer,extra]'
  loggers="console,file${LOGGERS:+,$LOGGERS}"
  [[ "$USE_WANDB" != true ]] || loggers+=",wandb"
  [[ -z "$VAL_FILE" ]] || val="$(launch::quote "$VAL_FILE")"

  OVERRIDES=(
    "data.train_files=$(launch::quote "$TRAIN_FILE")"
    "data.val_files=$val"
    "data.train_batch_size=$TRAIN_BATCH_SIZE"
    "data.max_length=$MAX_LENGTH"
    "++data.seed=$SEED"
    "data.use_dynamic_bsz=$(launch::bool "$USE_DYNAMIC_BSZ")"
    "data.max_token_len_per_gpu=$(engine::budget)"
    "data.micro_batch_size_per_gpu=$MICRO_BATCH_SIZE"

    "model.path=$(launch::quote "$MODEL_DIR")"
    "model.use_remove_padding=$(launch::bool "$PACKING")"
    "model.enable_gradient_checkpointing=$(launch::bool "$GRADIENT_CHECKPOINTING")"
    "model.lora_rank=$([[ "$USE_LORA" == true ]] && echo "$LORA_RANK" || echo 0)"
    "model.lora_alpha=$LORA_ALPHA"
    "model.target_modules=$LORA_TARGETS"

    "engine.strategy=$STRATEGY"
    "engine.param_offload=$(launch::bool "$OFFLOAD")"
    "engine.optimizer_offload=$(launch::bool "$OFFLOAD")"
    "engine.ulysses_sequence_parallel_size=$SEQUENCE_PARALLEL_SIZE"
    "engine.seed=$SEED"

    "optim.lr=$LEARNING_RATE"
    "optim.lr_scheduler_type=$LR_SCHEDULER"
    "optim.lr_warmup_steps_ratio=$WARMUP_RATIO"
    "optim.weight_decay=$WEIGHT_DECAY"
    "optim.clip_grad=$MAX_GRAD_NORM"

    "checkpoint.save_contents=$contents"

    "trainer.total_epochs=$(launch::epochs)"
    "trainer.total_training_steps=$([[ "$TOTAL_STEPS" -gt 0 ]] && echo "$TOTAL_STEPS" || echo null)"
    "trainer.n_gpus_per_node=$N_GPUS"
    "trainer.nnodes=$NNODES"
    "trainer.seed=$SEED"
    "trainer.save_freq=$([[ "$SAVE_FREQ" -gt 0 ]] && echo "$SAVE_FREQ" || echo -1)"
    "trainer.test_freq=$([[ "$TEST_FREQ" -gt 0 ]] && echo "$TEST_FREQ" || echo -1)"
    "trainer.max_ckpt_to_keep=$(launch::kept)"
    "trainer.project_name=$(launch::quote "$WANDB_PROJECT")"
    "trainer.experiment_name=$(launch::quote "${WANDB_RUN_NAME:-$RUN_NAME}")"
    "trainer.logger=[$loggers]"
    "trainer.default_local_dir=$(launch::quote "$CHECKPOINT_DIR")"
    "trainer.resume_mode=$([[ -n "$RESUME_STEP" ]] && echo auto || echo disable)"
  )
  engine::attention
  engine::profiler
  [[ "$DEVICE" == gpu ]] || engine::cpu
}

# Prints the token budget of a micro-batch; MAX_TOKENS_PER_GPU=0 means room for two of the longest rows.
engine::budget() {
  if ((MAX_TOKENS_PER_GPU > 0)); then echo "$MAX_TOKENS_PER_GPU"; else echo $((2 * MAX_LENGTH)); fi
}

# Without flash-attn, packed rows need our attention (common/packed_attention.py); transformers' own sdpa would be
# quadratic in the length of the pack.
engine::attention() {
  [[ "$ATTENTION" == sdpa ]] || return 0
  OVERRIDES+=("model.external_lib=common.packed_sdpa" "+model.override_config.attn_implementation=sdpa")
}

# PROFILE names a verl profiler tool; PROFILE_STEPS the first and last step it records.
engine::profiler() {
  [[ "$PROFILE" != none ]] || return 0
  OVERRIDES+=(
    "profiler.tool=$PROFILE"
    "profiler.enable=True"
    "profiler.all_ranks=True"
    "profiler.save_path=$(launch::quote "$RUN_DIR/profile")"
    "trainer.profile_interval=[${PROFILE_STEPS%%,*},${PROFILE_STEPS##*,}]"
  )
}

# What verl needs where there is no GPU (common/cpu/).
engine::cpu() {
  local dtype=float32
  [[ "$CPU_DTYPE" != bfloat16 && ! ("$CPU_DTYPE" == auto && "$BF16_CPU" == true) ]] || dtype=bfloat16
  OVERRIDES+=(
    "trainer.device=cpu"
    "data.num_workers=0"
    # Log-probs chunk by chunk and of learned tokens only: no logits of the whole batch in memory.
    "model.use_fused_kernels=True"
    "model.fused_kernel_options.impl_backend=torch"
    "engine.use_torch_compile=False"
    "+engine.mixed_precision={param_dtype: $dtype, reduce_dtype: float32, buffer_dtype: float32}"
  )
}

# Hands over to a trainer on verl's engine, one process per GPU. Does not return.
# Arguments: the trainer's module, then the method's own overrides; they win over the shared ones
engine::run() {
  local module="$1" nodes=(--standalone)
  shift
  # What verl gets wrong on every machine; the CPU plugin brings it along.
  [[ "$DEVICE" == cpu ]] || export VERL_USE_EXTERNAL_MODULES=common.verl_fixes
  engine::shared
  ((NNODES == 1)) || nodes=(--nnodes "$NNODES" --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT")
  launch::hand_over "$PYTHON" -m torch.distributed.run "${nodes[@]}" --nproc_per_node "$N_GPUS" -m "$module" \
    --config-path "$ROOT/$METHOD" --config-name config -- "$@"
}
