# shellcheck shell=bash
# verl's keys for what only PPO has. Sourcing it defines functions and nothing more.

# Sets PPO_KEYS from the config block.
# Globals: knobs (read), PPO_KEYS (set)
ppo::keys() {
  local a=actor_rollout_ref.actor
  PPO_KEYS=(
    "algorithm.adv_estimator=gae"
    "algorithm.gamma=$GAMMA"
    "algorithm.lam=$GAE_LAMBDA"
    "algorithm.use_kl_in_reward=$(launch::bool "$([[ "$KL_MODE" != reward ]] || echo true)")"
    "algorithm.kl_penalty=$KL_ESTIMATOR"
    "algorithm.kl_ctrl.type=$KL_CONTROLLER"
    "algorithm.kl_ctrl.kl_coef=$(ppo::kl_coef)"
    "algorithm.kl_ctrl.target_kl=$KL_TARGET"
    "algorithm.kl_ctrl.horizon=$KL_HORIZON"
    "$a.use_kl_loss=$(launch::bool "$([[ "$KL_MODE" != loss ]] || echo true)")"
    "$a.kl_loss_coef=$KL_COEF"
    "$a.kl_loss_type=$KL_ESTIMATOR"
    "$a.ppo_epochs=$PPO_EPOCHS"
    "$a.clip_ratio=$CLIP_RATIO_LOW"
    "$a.clip_ratio_low=$CLIP_RATIO_LOW"
    "$a.clip_ratio_high=$CLIP_RATIO_HIGH"
    "$a.clip_ratio_c=$CLIP_RATIO_C"
    "$a.loss_agg_mode=$LOSS_AGG_MODE"
    # verl keeps every checkpoint of the critic unless it is told.
    "trainer.max_critic_ckpt_to_keep=$(launch::kept)"
    # verl updates the actor from step critic_warmup on, that step included.
    "trainer.critic_warmup=$((CRITIC_WARMUP > 0 ? CRITIC_WARMUP + 1 : 0))"
  )
  [[ "$KL_MODE/$KL_CONTROLLER" != reward/adaptive ]] ||
    PPO_KEYS+=("trainer.checkpoint_callback_class=ppo.kl_state.SaveKLCoefficient")
  # Keys that follow from REWARD_SOURCE, one per line (ppo/reward_source.py).
  [[ -z "$REWARD_KEYS" ]] || mapfile -t -O "${#PPO_KEYS[@]}" PPO_KEYS <<<"$REWARD_KEYS"
  ppo::critic
  [[ "$REPRODUCIBLE" != true ]] || mapfile -t -O "${#PPO_KEYS[@]}" PPO_KEYS < <(rl::reproducible critic.fsdp)
}

# The weight of the KL penalty to start with; a resumed run goes on with the one its controller had reached.
ppo::kl_coef() {
  local saved="$CHECKPOINT_DIR/global_step_$RESUME_STEP/kl_coef.txt"
  if [[ "$KL_CONTROLLER" != adaptive || -z "$RESUME_STEP" ]]; then
    echo "$KL_COEF"
  elif [[ -r "$saved" ]]; then
    echo "$(<"$saved")"
  else
    echo "note: $saved is missing: the KL weight starts again at KL_COEF=$KL_COEF" >&2
    echo "$KL_COEF"
  fi
}

# The critic's keys. verl 0.9.1 also accepts critic.ppo_micro_batch_size_per_gpu, critic.use_dynamic_bsz,
# critic.ppo_max_token_len_per_gpu, critic.forward_* and critic.grad_clip, and reads none of them; its
# critic.model.lora_rank stops with an error (PEFT wraps token classifiers under another task type).
ppo::critic() {
  local budget="$CRITIC_MAX_TOKENS_PER_GPU" micro="$CRITIC_MICRO_BATCH_SIZE"
  ((budget > 0)) || budget="$MAX_TOKENS_PER_GPU"
  ((budget > 0)) || budget=$((2 * (MAX_PROMPT_LENGTH + MAX_RESPONSE_LENGTH)))
  ((micro > 0)) || micro="$MICRO_BATCH_SIZE"
  PPO_KEYS+=(
    "critic.strategy=$STRATEGY"
    "critic.model.path=$(launch::quote "${CRITIC_DIR:-$MODEL_DIR}")"
    # The policy's tokenizer in either case: the critic reads the policy's token ids.
    "critic.model.tokenizer_path=$(launch::quote "$MODEL_DIR")"
    "critic.model.enable_gradient_checkpointing=$(launch::bool "$CRITIC_GRADIENT_CHECKPOINTING")"
    "critic.optim.lr=$CRITIC_LEARNING_RATE"
    "critic.cliprange_value=$CLIPRANGE_VALUE"
    "critic.data_loader_seed=$SEED"
    "critic.fsdp.param_offload=$(launch::bool "$CRITIC_OFFLOAD")"
    "critic.fsdp.optimizer_offload=$(launch::bool "$CRITIC_OFFLOAD")"
    "critic.fsdp.ulysses_sequence_parallel_size=$SEQUENCE_PARALLEL_SIZE"
    # Forward and update alike take their token budget from this one.
    "+critic.ppo_infer_max_token_len_per_gpu=$budget"
    # Asked for by verl's checks where USE_DYNAMIC_BSZ=false; the two below are what the critic then uses.
    "critic.ppo_micro_batch_size_per_gpu=$micro"
    "+critic.fsdp.use_dynamic_bsz=$(launch::bool "$USE_DYNAMIC_BSZ")"
    "+critic.fsdp.micro_batch_size_per_gpu=$micro"
    "+critic.fsdp.infer_micro_batch_size_per_gpu=$micro"
  )
  if [[ "$DEVICE" == cpu ]]; then
    PPO_KEYS+=(
      "+critic.model.override_config.attn_implementation=sdpa"
      "critic.model.use_remove_padding=False"
      "critic.fsdp.use_torch_compile=False"
      "+critic.fsdp.mixed_precision={param_dtype: $(rl::cpu_dtype), reduce_dtype: float32, buffer_dtype: float32}"
    )
  elif [[ "$ATTENTION" != flash_attention_2 ]]; then
    PPO_KEYS+=("+critic.model.override_config.attn_implementation=$ATTENTION")
  fi
}
