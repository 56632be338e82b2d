# shellcheck shell=bash
# GSPO's own verl keys and its self-play rounds. Sourcing it defines functions and nothing more.

# Sets GSPO_KEYS, verl's keys of the objective, and RUNNER, which plays the rounds when there are several.
# Globals: knobs (read; those left at auto set), GSPO_KEYS, RUNNER (set), VERL_USE_EXTERNAL_MODULES (exported)
gspo::keys() {
  local a=actor_rollout_ref.actor estimator=grpo self_play=false kept
  ((SELF_PLAY_ROUNDS == 1)) || self_play=true
  [[ "$ADVANTAGE" != auto ]] || ADVANTAGE="$([[ "$self_play" == true ]] && echo preference || echo group)"
  launch::default USE_KL_LOSS "$self_play"
  launch::default NORM_ADV_BY_STD "$([[ "$ADVANTAGE" == group ]] && echo true || echo false)"
  GSPO_KEYS=()
  if [[ "$ADVANTAGE" == preference ]]; then
    estimator=preference
    rl::external_module gspo.plugin
    GSPO_KEYS+=("+algorithm.preference.opponent=$OPPONENT" "+algorithm.preference.margin=$MARGIN")
  fi
  GSPO_KEYS+=(
    "algorithm.adv_estimator=$estimator"
    "algorithm.norm_adv_by_std_in_grpo=$(launch::bool "$NORM_ADV_BY_STD")"
    "$a.policy_loss.loss_mode=gspo"
    "$a.use_kl_loss=$(launch::bool "$USE_KL_LOSS")"
    "$a.kl_loss_coef=$KL_LOSS_COEF"
    "$a.kl_loss_type=$KL_LOSS_TYPE"
    "$a.clip_ratio=$CLIP_RATIO_LOW"
    "$a.clip_ratio_low=$CLIP_RATIO_LOW"
    "$a.clip_ratio_high=$CLIP_RATIO_HIGH"
    "$a.loss_agg_mode=$LOSS_AGG_MODE"
  )
  [[ "$self_play" == true || "$OPPONENT" != group ]] || return 0
  kept="$(launch::kept)"
  # Read by rl::run.
  # shellcheck disable=SC2034
  RUNNER=("$PYTHON" -m common.launcher.rounds --run-dir "$RUN_DIR" --checkpoints "$CHECKPOINT_DIR"
    --rounds "$SELF_PLAY_ROUNDS" --steps "$((STEPS_TOTAL / SELF_PLAY_ROUNDS))" --keep "${kept/null/0}"
    --opponent "$OPPONENT")
}
