# shellcheck shell=bash
# The verl keys that PPO, GRPO and GSPO share. Sourcing it defines functions and nothing more.
# Knobs are the shell variables of the config block; see launch.sh.

# Fills OVERRIDES with the keys that every RL method sets from the shared knobs.
# Globals: OVERRIDES (set), knobs (read)
rl::shared() {
  local a=actor_rollout_ref budget="$MAX_TOKENS_PER_GPU" contents='[model,optimizer,extra,hf_model]' loggers
  # 0 means: room for two of the longest sequences.
  ((budget > 0)) || budget=$((2 * (MAX_PROMPT_LENGTH + MAX_RESPONSE_LENGTH)))
  # With LoRA verl would export weights under PEFT's names, which transformers loads as random ones.
  [[ "$USE_LORA" != true ]] || contents='[model,optimizer,extra]'
  loggers="console,file${LOGGERS:+,$LOGGERS}"
  [[ "$USE_WANDB" != true ]] || loggers+=",wandb"

  OVERRIDES=(
    "data.train_files=$(launch::quote "$TRAIN_FILE")"
    "data.val_files=$(launch::quote "$VAL_FILE")"
    "data.train_batch_size=$TRAIN_BATCH_SIZE"
    "data.max_prompt_length=$MAX_PROMPT_LENGTH"
    "data.max_response_length=$MAX_RESPONSE_LENGTH"
    "data.seed=$SEED"

    "$a.model.path=$(launch::quote "$MODEL_DIR")"
    "$a.model.enable_gradient_checkpointing=$(launch::bool "$GRADIENT_CHECKPOINTING")"
    "$a.model.lora_rank=$([[ "$USE_LORA" == true ]] && echo "$LORA_RANK" || echo 0)"
    "$a.model.lora_alpha=$LORA_ALPHA"
    "$a.model.target_modules=$LORA_TARGETS"

    "$a.actor.strategy=$STRATEGY"
    "$a.actor.ppo_mini_batch_size=$MINI_BATCH_SIZE"
    "$a.actor.ppo_micro_batch_size_per_gpu=$MICRO_BATCH_SIZE"
    "$a.actor.use_dynamic_bsz=$(launch::bool "$USE_DYNAMIC_BSZ")"
    "$a.actor.ppo_max_token_len_per_gpu=$budget"
    "$a.actor.optim.lr=$LEARNING_RATE"
    "$a.actor.entropy_coeff=$ENTROPY_COEFF"
    "$a.actor.data_loader_seed=$SEED"
    "$a.actor.fsdp_config.param_offload=$(launch::bool "$OFFLOAD")"
    "$a.actor.fsdp_config.optimizer_offload=$(launch::bool "$OFFLOAD")"
    "$a.actor.fsdp_config.ulysses_sequence_parallel_size=$SEQUENCE_PARALLEL_SIZE"
    "$a.actor.ulysses_sequence_parallel_size=$SEQUENCE_PARALLEL_SIZE"
    "$a.actor.checkpoint.save_contents=$contents"

    "$a.ref.strategy=$STRATEGY"
    "$a.ref.log_prob_micro_batch_size_per_gpu=$MICRO_BATCH_SIZE"
    "$a.ref.log_prob_use_dynamic_bsz=$(launch::bool "$USE_DYNAMIC_BSZ")"
    "$a.ref.log_prob_max_token_len_per_gpu=$budget"
    "$a.ref.fsdp_config.param_offload=$(launch::bool "$OFFLOAD")"

    "$a.rollout.name=$ROLLOUT_ENGINE"
    "$a.rollout.n=$ROLLOUT_N"
    "$a.rollout.temperature=$ROLLOUT_TEMPERATURE"
    "$a.rollout.tensor_model_parallel_size=$ROLLOUT_TP_SIZE"
    "$a.rollout.gpu_memory_utilization=$GPU_MEMORY_UTILIZATION"
    "$a.rollout.seed=$SEED"
    "$a.rollout.log_prob_micro_batch_size_per_gpu=$MICRO_BATCH_SIZE"
    "$a.rollout.log_prob_use_dynamic_bsz=$(launch::bool "$USE_DYNAMIC_BSZ")"
    "$a.rollout.log_prob_max_token_len_per_gpu=$budget"

    "trainer.total_epochs=$(launch::epochs)"
    "trainer.total_training_steps=$([[ "$TOTAL_STEPS" -gt 0 ]] && echo "$TOTAL_STEPS" || echo null)"
    "trainer.n_gpus_per_node=$N_GPUS"
    "trainer.nnodes=$NNODES"
    "trainer.save_freq=$([[ "$SAVE_FREQ" -gt 0 ]] && echo "$SAVE_FREQ" || echo -1)"
    "trainer.test_freq=$([[ "$TEST_FREQ" -gt 0 ]] && echo "$TEST_FREQ" || echo -1)"
    "trainer.max_actor_ckpt_to_keep=$(launch::kept)"
    "trainer.project_name=$(launch::quote "$WANDB_PROJECT")"
    "trainer.experiment_name=$(launch::quote "${WANDB_RUN_NAME:-$RUN_NAME}")"
    "trainer.logger=[$loggers]"
    "trainer.default_local_dir=$(launch::quote "$CHECKPOINT_DIR")"
    "trainer.rollout_data_dir=$(launch::quote "$RUN_DIR/rollouts")"
    "trainer.validation_data_dir=$(launch::quote "$RUN_DIR/validation")"
    "trainer.resume_mode=$([[ -n "$RESUME_STEP" ]] && echo auto || echo disable)"
  )
  if [[ -n "$DATASET_CLASS_PATH" ]]; then
    OVERRIDES+=("data.custom_cls.path=$(launch::quote "$DATASET_CLASS_PATH")" "data.custom_cls.name=$DATASET_CLASS_NAME")
  fi
  [[ "$DEVICE" == cpu || "$ATTENTION" == flash_attention_2 ]] || rl::no_flash_attn
  rl::reward
  rl::profiler
  rl::ray
  # What verl gets wrong on every machine; the CPU plugin brings it along.
  if [[ "$DEVICE" == gpu ]]; then rl::external_module common.verl_fixes; else rl::cpu; fi
}

# Lets verl import a module of ours in every process, beside what is there already.
# Arguments: the module
rl::external_module() {
  export VERL_USE_EXTERNAL_MODULES="${VERL_USE_EXTERNAL_MODULES:+$VERL_USE_EXTERNAL_MODULES,}$1"
}

# GPUs without flash-attn: packed batches through torch's own attention (common/packed_attention.py).
rl::no_flash_attn() {
  rl::external_module common.packed_sdpa
  OVERRIDES+=("+actor_rollout_ref.model.override_config.attn_implementation=$ATTENTION")
}

# Prints the precision of a CPU run.
rl::cpu_dtype() {
  if [[ "$CPU_DTYPE" == bfloat16 || ("$CPU_DTYPE" == auto && "$BF16_CPU" == true) ]]; then
    echo bfloat16
  else
    echo float32
  fi
}

# The reward, through the guard that logs and stops on an exception (common/reward_functions/verl_entry.py).
rl::reward() {
  local r=reward.custom_reward_function
  OVERRIDES+=(
    "$r.path=$(launch::quote "$ROOT/common/reward_functions/verl_entry.py")"
    "$r.name=compute_score"
    "+$r.reward_kwargs.reward_path=$(launch::quote "$REWARD_FILE")"
    "+$r.reward_kwargs.reward_name=$(launch::quote "$REWARD_FUNC_NAME")"
    "+$r.reward_kwargs.reward_kwargs=$(launch::quote "$REWARD_KWARGS")"
    "+$r.reward_kwargs.error_policy=$REWARD_ERRORS"
    "+$r.reward_kwargs.parts_dir=$(launch::quote "$RUN_DIR")"
  )
}

# Rollouts and updates that a resumed run repeats as they were (common/reproducible.py).
# Outputs: Hydra overrides, one per line
rl::reproducible() {
  local a=actor_rollout_ref engine
  printf '%s\n' "$a.rollout.agent.agent_loop_config_path=$(launch::quote "$ROOT/common/reproducible.yaml")" \
    "trainer.v1.sampler.custom_sampler.path=$(launch::quote "$ROOT/common/reproducible.py")" \
    "trainer.v1.sampler.custom_sampler.name=OrderedReplayBuffer"
  # vLLM rewinds the seed of a prompt that it computed in pieces, which only CUDA's generators can do.
  [[ "$DEVICE" == gpu ]] || printf '%s\n' "$a.rollout.enable_chunked_prefill=False"
  for engine in "$a.actor.fsdp_config" "$a.ref.fsdp_config" "$@"; do
    printf '%s\n' "$engine.full_determinism=True" "$engine.seed=$SEED"
  done
}

# PROFILE names a verl profiler tool; PROFILE_STEPS the steps it records.
rl::profiler() {
  [[ "$PROFILE" != none ]] || return 0
  OVERRIDES+=(
    "global_profiler.tool=$PROFILE"
    "global_profiler.steps=[$PROFILE_STEPS]"
    "global_profiler.save_path=$(launch::quote "$RUN_DIR/profile")"
    "actor_rollout_ref.actor.profiler.enable=True"
    "actor_rollout_ref.actor.profiler.all_ranks=True"
  )
}

# One node: a Ray of our own, never a stray one that happens to run here. Several: the cluster that was started
# with `ray start`, whose workers do not inherit our environment and are told of it here.
rl::ray() {
  local name env=ray_kwargs.ray_init.runtime_env.env_vars cpus=$((3 * N_GPUS + 10))
  if ((NNODES == 1)); then
    OVERRIDES+=("+ray_kwargs.ray_init.address=local" "+ray_kwargs.ray_init.include_dashboard=False")
    # verl asks Ray for 3 CPUs beside each GPU and 10 more, and waits for ever where a small machine has fewer cores;
    # Ray only counts them.
    [[ "$DEVICE" == cpu ]] || ((CORES >= cpus)) || OVERRIDES+=("ray_kwargs.ray_init.num_cpus=$cpus")
    [[ -z "$WANDB_ENTITY" ]] || OVERRIDES+=("+$env.WANDB_ENTITY=$(launch::quote "$WANDB_ENTITY")")
    return 0
  fi
  OVERRIDES+=("+ray_kwargs.ray_init.address=auto")
  for name in "${FORWARDED[@]}"; do
    [[ -z "${!name:-}" ]] || OVERRIDES+=("+$env.$name=$(launch::quote "${!name}")")
  done
}

# What verl and vLLM need where there is no GPU (common/cpu/).
rl::cpu() {
  local a=actor_rollout_ref dtype kv_megabytes=256
  ((MAX_PROMPT_LENGTH + MAX_RESPONSE_LENGTH <= 512)) || kv_megabytes=1024
  dtype="$(rl::cpu_dtype)"
  OVERRIDES+=(
    "trainer.device=cpu"
    "data.dataloader_num_workers=0"
    "+$a.model.override_config.attn_implementation=sdpa"
    # Packed rows without flash-attn: common/packed_attention.py.
    "$a.model.external_lib=common.packed_sdpa"
    # Log-probs chunk by chunk: no logits of the whole batch in memory.
    "$a.model.use_fused_kernels=True"
    "$a.model.fused_kernel_options.impl_backend=torch"
    "$a.actor.use_torch_compile=False"
    # Gathering weights again for the backward pass would save no memory to speak of and cost a tenth of an update.
    "$a.actor.fsdp_config.reshard_after_forward=False"
    "$a.actor.fsdp_config.use_torch_compile=False"
    "$a.ref.fsdp_config.use_torch_compile=False"
    "+$a.actor.fsdp_config.mixed_precision={param_dtype: $dtype, reduce_dtype: float32, buffer_dtype: float32}"
    "+$a.ref.fsdp_config.mixed_precision={param_dtype: $dtype, reduce_dtype: float32, buffer_dtype: float32}"
    "$a.rollout.dtype=$dtype"
    "$a.rollout.enforce_eager=True"
    "$a.rollout.free_cache_engine=False"
    "+$a.rollout.enable_sleep_mode=False"
    "$a.rollout.load_format=auto"
    "$a.rollout.max_model_len=$((MAX_PROMPT_LENGTH + MAX_RESPONSE_LENGTH))"
    # vLLM warms up with its largest batch: at upstream's 8192 tokens that takes longer than a training step.
    "$a.rollout.max_num_batched_tokens=2048"
    "$a.rollout.max_num_seqs=128"
    # Answers to one prompt share what was computed for it in whole blocks: vLLM's 128 are longer than a prompt here.
    "+$a.rollout.engine_kwargs.vllm.block_size=16"
    # VLLM_CPU_KVCACHE_SPACE (GiB) of the environment wins over this.
    "+$a.rollout.engine_kwargs.vllm.kv_cache_memory_bytes=$((kv_megabytes * 1024 * 1024))"
    # The model in the engine's own process. vLLM allows that when the variable below says so; its reason not to,
    # binding OpenMP threads to cores, is switched off here.
    "+$a.rollout.engine_kwargs.vllm.distributed_executor_backend=$([[ "$ROLLOUT_TP_SIZE" == 1 ]] && echo uni || echo mp)"
    # One tensor must fit into a bucket: without a GPU there is no other way to send it.
    "$a.rollout.checkpoint_engine.update_weights_bucket_megabytes=$((EMBEDDING_MB + 16))"
    "$a.rollout.agent.num_workers=1"
    "reward.num_workers=1"
    "transfer_queue.backend.SimpleStorage.num_data_storage_units=1"
  )
  # Ray would run workers beneath everything else (nice 15): a thread that is pushed aside holds up its partners.
  export VLLM_ENABLE_V1_MULTIPROCESSING=0 RAY_worker_niceness="${RAY_worker_niceness:-0}"
  FORWARDED+=(VLLM_ENABLE_V1_MULTIPROCESSING RAY_worker_niceness)
  ((NNODES == 1)) || return 0
  # Ray counts "GPUs" that stand for training processes; too few "CPUs" would hang it without a word.
  OVERRIDES+=("ray_kwargs.ray_init.num_cpus=$((16 + 4 * N_GPUS))" "+ray_kwargs.ray_init.num_gpus=$N_GPUS"
    "+ray_kwargs.ray_init.runtime_env.py_executable=$(launch::quote "$(printf %q "$ROOT/common/cpu/fork_python.sh")")")
  # The supervisor starts the fork server when it sees this.
  VERL_TRAINING_FORK_PYTHON="$(type -P "$PYTHON")"
  export VERL_TRAINING_FORK_PYTHON
  FORWARDED+=(VERL_TRAINING_FORK_PYTHON)
}

# Starts verl's RL trainer with the shared keys and the method's own. Does not return.
# Arguments: the method's overrides; they win over the shared ones
rl::run() {
  rl::shared
  launch::hand_over "${RUNNER[@]}" "$PYTHON" -m verl.trainer.main_ppo --config-path "$ROOT/$METHOD" --config-name config -- \
    "$@"
}
