# shellcheck shell=bash
# The one library behind every train.sh. Sourcing it defines functions and nothing more.
#
# A train.sh has three parts: its config block, `launch::begin "$@"`, and its own verl keys handed to
# `launch::rl`. In between, every knob of the block is a shell variable with its final value.

# Prints the absolute path of the repository.
launch::root() {
  (cd "${BASH_SOURCE[0]%/*}/.." && pwd)
}

# Prints an error and exits with the code of a user's mistake.
# Arguments: the message
launch::die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# Quotes a value for Hydra, so that spaces, quotes, commas, $ and unicode arrive as they are.
# Arguments: the value
# Outputs: a double-quoted Hydra string
launch::quote() {
  local rest="$1" part quoted=""
  # In Hydra a backslash escapes only where it stands before a quote, so just those are doubled.
  while [[ "$rest" == *'"'* ]]; do
    part="${rest%%\"*}"
    quoted+="$part${part##*[!\\]}\\\""
    rest="${rest#*\"}"
  done
  quoted+="$rest${rest##*[!\\]}"
  # shellcheck disable=SC2016
  printf '"%s"' "${quoted//'${'/'\${'}"
}

# Turns true and false into Hydra's True and False.
launch::bool() {
  if [[ "$1" == true ]]; then echo True; else echo False; fi
}

# Prints how many checkpoints verl keeps by itself. It knows no best one: with KEEP_BEST the watcher thins them out.
launch::kept() {
  if [[ "$KEEP_CHECKPOINTS" -gt 0 && "$KEEP_BEST" != true ]]; then echo "$KEEP_CHECKPOINTS"; else echo null; fi
}

# Prints as many epochs as TOTAL_STEPS takes: verl ends with the last epoch, wherever TOTAL_STEPS is.
launch::epochs() {
  local per_epoch=$((TRAIN_ROWS / TRAIN_BATCH_SIZE))
  ((per_epoch > 0)) || per_epoch=1
  if ((TOTAL_STEPS > TOTAL_EPOCHS * per_epoch)); then
    echo $(((TOTAL_STEPS + per_epoch - 1) / per_epoch))
  else
    echo "$TOTAL_EPOCHS"
  fi
}

# Sets a knob that the user left at auto.
# Arguments: the knob's name, the method's value
launch::default() {
  [[ "${!1}" != auto ]] || printf -v "$1" '%s' "$2"
}

# Reads NUL-separated NAME=VALUE items and assigns them; @extra items go to EXTRA, @mode to MODES.
# Globals: the names read (set), EXTRA, MODES (appended to)
launch::assign() {
  local item name
  while IFS= read -r -d '' item; do
    name="${item%%=*}"
    case "$name" in
      @extra) EXTRA+=("${item#*=}") ;;
      @mode) MODES+=("${item#*=}") ;;
      @help) printf '%s\n' "${item#*=}" ;;
      *) printf -v "$name" '%s' "${item#*=}" ;;
    esac
  done
}

# Prints the knobs of the block with their present values, NUL-separated; E marks one that the environment set.
# Arguments: the train.sh
launch::block_values() {
  local line name
  while IFS= read -r line; do
    [[ "$line" == '#'*'end config'* ]] && break
    [[ "$line" =~ ^([A-Z][A-Z0-9_]*)= ]] || continue
    name="${BASH_REMATCH[1]}"
    if [[ "$(declare -p "$name")" =~ ^declare\ -[a-z]*x ]]; then
      printf 'E%s=%s\0' "$name" "${!name}"
    else
      printf 'B%s=%s\0' "$name" "${!name}"
    fi
  done <"$1"
}

# shellcheck disable=SC2119 # env::ensure takes no arguments here
# Resolves flags, device, data and run folder. Exits here for --help and for every user's mistake.
# Globals: METHOD, TASK, CPU_VALUES, SMOKE_VALUES (read); all knobs, EXTRA, MODES, PYTHON, MODEL_DIR, TRAIN_FILE,
#   VAL_FILE, REWARD_FILE, RUN_NAME, RUN_DIR, CHECKPOINT_DIR, METRICS_FILE, RUN_TAG ... (set)
# Arguments: the command line of train.sh
launch::begin() {
  local script answer cpu=() smoke=() item flags_python=python3 caller="$PWD"
  script="$(cd "$(dirname "${BASH_SOURCE[1]}")" && pwd)/${BASH_SOURCE[1]##*/}"
  ROOT="$(launch::root)"
  cd "$ROOT" || exit
  # shellcheck source=common/env.sh
  source "$ROOT/common/env.sh"
  EXTRA=()
  MODES=()
  # A method's own program that runs verl's command, with its arguments; see gspo/self_play.sh.
  # shellcheck disable=SC2034
  RUNNER=()
  export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
  answer="$(mktemp)"
  # shellcheck disable=SC2064
  trap "rm -f '$answer' '$answer.plan' '$answer.record' '$answer.verl'" EXIT

  for item in "${CPU_VALUES[@]}"; do cpu+=("--cpu-value=$item"); done
  for item in "${SMOKE_VALUES[@]}"; do smoke+=("--smoke-value=$item"); done
  # Flags are read with whatever Python is there, so that --help and a typo cost no installation.
  type -P "$flags_python" >/dev/null || { env::ensure && flags_python="$PYTHON"; }
  launch::block_values "$script" | "$flags_python" -S "$ROOT/common/launcher/resolve.py" --script "$script" \
    --method "$METHOD" --caller "$caller" "${cpu[@]}" "${smoke[@]}" -- "$@" >"$answer" || exit
  launch::assign <"$answer"
  [[ " ${MODES[*]} " != *' HELP '* ]] || exit 0

  env::ensure || exit
  if [[ "$DEVICE" == gpu && "$(env::kind)" == cpu && " ${MODES[*]} " != *' COMPOSE '* ]]; then
    launch::die "this environment holds the CPU set, but DEVICE=gpu: run ./setup_env.sh --gpu, or use --device cpu"
  fi
  launch::import_verl "$answer.verl"
  # The run's record, which becomes its folder's run.json once nothing stands in the way; the trap stays for it.
  RECORD_FILE="$answer.record"
  "$PYTHON" -m common.launcher.plan --method "$METHOD" --task "$TASK" --record "$RECORD_FILE" \
    <"$answer" >"$answer.plan" || launch::refused "$answer.plan"
  launch::assign <"$answer.plan"
  rm -f "$answer" "$answer.plan"
  launch::environment
}

# Ends after a mistake in knobs or data, which was said on stderr; --json has it as a report too.
# Arguments: what the planner wrote
launch::refused() {
  local code=$?
  [[ " ${MODES[*]} " != *' JSON '* ]] || cat "$1"
  exit "$code"
}

# Exports what verl, Ray and the loggers read from the environment; FORWARDED names what every worker needs.
# Globals: FORWARDED (set)
launch::environment() {
  local threads
  FORWARDED=(PYTHONPATH VERL_FILE_LOGGER_PATH TENSORBOARD_DIR WANDB_DIR WANDB_MODE WANDB_ENTITY VERL_PLATFORM
    VERL_USE_EXTERNAL_MODULES VERL_ENGINE_DEVICE VLLM_CPU_KVCACHE_SPACE VLLM_CPU_OMP_THREADS_BIND OMP_NUM_THREADS
    MALLOC_MMAP_MAX_ MALLOC_TRIM_THRESHOLD_ MALLOC_ARENA_MAX TORCHDYNAMO_DISABLE TOKENIZERS_PARALLELISM
    TQ_NUM_THREADS HYDRA_FULL_ERROR)
  export VERL_FILE_LOGGER_PATH="$METRICS_FILE"
  export TENSORBOARD_DIR="$RUN_DIR/tensorboard" WANDB_DIR="$RUN_DIR" HYDRA_FULL_ERROR=1
  if [[ -n "$WANDB_MODE_CHOSEN" ]]; then
    export WANDB_MODE="$WANDB_MODE_CHOSEN"
    [[ -z "$WANDB_ENTITY" ]] || export WANDB_ENTITY
  fi
  [[ "$DEVICE" == cpu ]] || return 0
  threads="${OMP_NUM_THREADS:-$((CORES / N_GPUS > 0 ? CORES / N_GPUS : 1))}"
  export VERL_PLATFORM=cpu VERL_USE_EXTERNAL_MODULES=common.cpu.plugin VERL_ENGINE_DEVICE=cuda
  export VLLM_CPU_OMP_THREADS_BIND=nobind
  export OMP_NUM_THREADS="$threads" TOKENIZERS_PARALLELISM=false
  # TransferQueue wants 8, takes what there is, and says so at every call.
  export TQ_NUM_THREADS="${TQ_NUM_THREADS:-$((CORES < 8 ? CORES : 8))}"
  # Keep freed memory: by default every large tensor is mapped, zeroed and unmapped again.
  export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=68719476736 MALLOC_ARENA_MAX=2
  # vLLM would compile a few small functions at every start, which takes longer than they ever save here.
  export TORCHDYNAMO_DISABLE=1
  # Ray refuses to start with pretended GPUs while this says that there are none.
  unset CUDA_VISIBLE_DEVICES
  # Puts the CPU plugin's package metadata before vLLM's eyes (common/cpu/site).
  export PYTHONPATH="$ROOT/common/cpu/site:$PYTHONPATH"
}

# Prints a command so that it can be pasted into a shell.
launch::print_command() {
  local name word
  printf 'cd %q && env' "$ROOT"
  for name in "${FORWARDED[@]}"; do
    [[ -z "${!name+x}" ]] || printf ' %s=%q' "$name" "${!name}"
  done
  for word in "$@"; do printf ' %q' "$word"; done
  printf '\n'
}

# True where the preflight is left out.
launch::no_preflight() {
  [[ " ${MODES[*]} " =~ ' '(NO_PREFLIGHT|COMPOSE)' ' ]]
}

# Starts the process that asks verl itself, where the preflight will: it imports verl while the data is prepared.
# Globals: VERL_SOCKET, VERL_IMPORTER (set; "" for none)
# Arguments: where it shall listen
launch::import_verl() {
  VERL_SOCKET="" VERL_IMPORTER=""
  if launch::no_preflight || [[ "$TASK" != rl && ${#EXTRA[@]} -eq 0 ]]; then return 0; fi
  VERL_SOCKET="$1"
  "$PYTHON" -m common.preflight.verl_check "$VERL_SOCKET" "$$" </dev/null >/dev/null 2>&1 &
  VERL_IMPORTER=$!
}

# Checks the resolved config, the data and the machine, and shows one screen (common/preflight). Exits where something
# is wrong, and after the screen for --preflight-only.
# Arguments: the command
launch::preflight() {
  local modes=" ${MODES[*]} " flags=(--record "$RECORD_FILE")
  ! launch::no_preflight || return 0
  [[ -z "$VERL_SOCKET" ]] || flags+=(--verl "$VERL_SOCKET")
  [[ "$modes" != *' FORCE '* ]] || flags+=(--force)
  [[ "$modes" != *' JSON '* ]] || flags+=(--json)
  [[ "$modes" == *' PREFLIGHT_ONLY '* ]] || flags+=(--stderr)
  "$PYTHON" -m common.preflight "${flags[@]}" -- "$@" || exit
  [[ -z "$VERL_IMPORTER" ]] || wait "$VERL_IMPORTER" || true
  [[ "$modes" != *' PREFLIGHT_ONLY '* ]] || exit 0
}

# Appends to a list the overrides whose Hydra keys (a.b of ++a.b=1) are not taken yet, then takes them.
# Globals: TAKEN (read and set)
# Arguments: the name of the list, overrides
launch::keep_new() {
  local -n _kept="$1"
  local word key
  for word in "${@:2}"; do
    key="${word%%=*}"
    [[ -n "${TAKEN["${key##*[+~]}"]:-}" ]] || _kept+=("$word")
  done
  for word in "${@:2}"; do
    key="${word%%=*}"
    TAKEN["${key##*[+~]}"]=1
  done
}

# Hands over: verl's command as a supervised child, or printed for --dry-run. Does not return.
# For each key the most particular speaks: what methods share gives way to the method's own override, and that to a
# key=value of the user.
# Globals: OVERRIDES (what methods share)
# Arguments: program and its fixed arguments, then --, then the method's own overrides
launch::hand_over() {
  local command=() own=() users=() word key
  local -A added=()
  declare -gA TAKEN=()
  while [[ "$1" != -- ]]; do
    command+=("$1")
    shift
  done
  shift
  # A key that we add with + is not in verl's config: a user's plain word for it would be refused as unknown.
  for word in "${OVERRIDES[@]}" "$@"; do
    key="${word%%=*}"
    [[ "$key" != +* ]] || added["${key##*+}"]=1
  done
  for word in "${EXTRA[@]}"; do
    [[ -z "${added["${word%%=*}"]:-}" ]] || word="++$word"
    launch::keep_new users "$word"
  done
  launch::keep_new own "$@"
  launch::keep_new command "${OVERRIDES[@]}"
  command+=("${own[@]}" "${users[@]}")
  launch::preflight "${command[@]}"
  if [[ " ${MODES[*]} " == *' DRY_RUN '* ]]; then
    launch::print_command "${command[@]}"
    exit 0
  fi
  if [[ -n "$RESUME_STEP" ]]; then
    printf 'resuming %s/%s from step %s of %s\n' "$METHOD" "$RUN_NAME" "$RESUME_STEP" "$STEPS_TOTAL" >&2
  else
    printf 'starting %s/%s: %s steps on %s, logs in %s\n' "$METHOD" "$RUN_NAME" "$STEPS_TOTAL" "$DEVICE" "$RUN_DIR" >&2
  fi
  exec "$PYTHON" -m common.launcher.supervise --run-dir "$RUN_DIR" --tag "$RUN_TAG" --record "$RECORD_FILE" \
    -- "${command[@]}"
}
