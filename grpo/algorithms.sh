# shellcheck shell=bash
# What each ALGORITHM sets; sources in README.md. Sourcing it defines functions and nothing more.

# Sets ALGORITHM_KEYS, verl's keys for $ALGORITHM, from the algorithm's own values and the user's.
# Globals: ALGORITHM and the knobs it fills (read, set), ALGORITHM_KEYS (set)
grpo::algorithm() {
  local estimator=grpo loss=vanilla keys=() a=actor_rollout_ref.actor
  case "$ALGORITHM" in
    grpo)
      launch::default USE_KL_LOSS true
      ;;
    dr_grpo)
      launch::default NORM_ADV_BY_STD false
      launch::default LOSS_AGG_MODE seq-mean-token-sum-norm
      keys+=("$a.loss_scale_factor=$MAX_RESPONSE_LENGTH")
      ;;
    dapo)
      launch::default CLIP_RATIO_HIGH 0.28
      keys+=(
        "algorithm.filter_groups.enable=True"
        "algorithm.filter_groups.metric=reward"
        "reward.reward_manager.name=dapo"
        "+reward.reward_kwargs.max_resp_len=$MAX_RESPONSE_LENGTH"
        "+reward.reward_kwargs.overlong_buffer_cfg.enable=True"
        "+reward.reward_kwargs.overlong_buffer_cfg.len=$((MAX_RESPONSE_LENGTH / 5 > 0 ? MAX_RESPONSE_LENGTH / 5 : 1))"
        "+reward.reward_kwargs.overlong_buffer_cfg.penalty_factor=1.0"
        "+reward.reward_kwargs.overlong_buffer_cfg.log=False"
      )
      ;;
    rloo)
      estimator=rloo
      keys+=("algorithm.use_kl_in_reward=True" "algorithm.kl_penalty=kl" "algorithm.kl_ctrl.kl_coef=0.001")
      ;;
    reinforce_plus_plus | reinforce_plus_plus_baseline)
      estimator="$ALGORITHM"
      launch::default USE_KL_LOSS true
      ;;
    opo)
      estimator=opo
      ;;
    gpg)
      estimator=gpg loss=gpg
      ;;
    cispo)
      loss=cispo
      launch::default CLIP_RATIO_LOW 10
      launch::default CLIP_RATIO_HIGH 0.2
      ;;
    sapo)
      loss=sapo
      launch::default LOSS_AGG_MODE seq-mean-token-mean
      keys+=("$a.tau_pos=1.0" "$a.tau_neg=1.05")
      ;;
    gmpo)
      loss=geo_mean
      launch::default CLIP_RATIO_LOW 0.4
      launch::default CLIP_RATIO_HIGH 0.4
      ;;
    remax)
      # verl's newer trainer does not compute ReMax's greedy baseline.
      estimator=remax
      keys+=("trainer.use_v1=False" "algorithm.use_kl_in_reward=True" "algorithm.kl_penalty=kl"
        "algorithm.kl_ctrl.kl_coef=0.001")
      ;;
  esac
  launch::default NORM_ADV_BY_STD true
  launch::default USE_KL_LOSS false
  launch::default CLIP_RATIO_LOW 0.2
  launch::default CLIP_RATIO_HIGH 0.2
  launch::default LOSS_AGG_MODE token-mean
  # Read by train.sh.
  # shellcheck disable=SC2034
  ALGORITHM_KEYS=(
    "algorithm.adv_estimator=$estimator"
    "algorithm.norm_adv_by_std_in_grpo=$(launch::bool "$NORM_ADV_BY_STD")"
    "$a.policy_loss.loss_mode=$loss"
    "$a.use_kl_loss=$(launch::bool "$USE_KL_LOSS")"
    "$a.kl_loss_coef=$KL_LOSS_COEF"
    "$a.kl_loss_type=$KL_LOSS_TYPE"
    "$a.clip_ratio=$CLIP_RATIO_LOW"
    "$a.clip_ratio_low=$CLIP_RATIO_LOW"
    "$a.clip_ratio_high=$CLIP_RATIO_HIGH"
    "$a.loss_agg_mode=$LOSS_AGG_MODE"
    "${keys[@]}"
  )
}
