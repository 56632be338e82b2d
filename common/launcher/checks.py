"""What a launcher refuses before Ray starts, each as one line with the arithmetic and what to do.

The whole preflight works on the resolved config; these are the mistakes that knobs alone show.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
from pathlib import Path

from common.launcher import runs
from common.launcher.errors import UserError
from common.system import existing

_GIB = 1024**3


def is_local_path(model: str) -> bool:
    """True when *model* is meant as a folder, not as a hub id ``owner/name``."""
    return model.startswith(("/", "./", "../", "~")) or Path(model).exists() or model.count("/") != 1


def check_model(model: str) -> str:
    """Return the absolute folder of *model*, or the hub id as it is.

    Raises:
        UserError: a folder that is missing or holds no model, or a hub id that cannot be reached.
    """
    if is_local_path(model):
        folder = Path(model).expanduser()
        if not folder.is_dir():
            raise UserError(f"MODEL_PATH={model} does not exist{_near_folder(folder)}")
        if not (folder / "config.json").is_file():
            found = ", ".join(sorted(p.name for p in folder.iterdir())[:5]) or "nothing"
            raise UserError(
                f"MODEL_PATH={model} holds no config.json (found: {found}): give a Hugging Face model folder"
            )
        return str(folder.resolve())
    _check_hub(model)
    return model


def _near_folder(folder: Path) -> str:
    parent = folder.parent
    names = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
    near = difflib.get_close_matches(folder.name, names, n=1)
    return (
        f"; did you mean {parent / near[0]}?" if near else ": give a folder, a hub id owner/name, or smollm2"
    )


def _check_hub(model: str) -> None:
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        if isinstance(try_to_load_from_cache(model, "config.json"), str):
            return
        HfApi().model_info(model, timeout=6)
    except HFValidationError:
        raise UserError(f"MODEL_PATH={model} is neither a folder nor a hub id owner/name") from None
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else "no answer"
        raise UserError(
            f"MODEL_PATH={model} is not in the local cache and the hub says {code}: check the name, or log in "
            "with `hf auth login` for a gated model"
        ) from None
    except Exception as error:  # no network, offline mode, proxy: many types, one meaning
        raise UserError(
            f"MODEL_PATH={model} is not in the local cache and the hub cannot be reached "
            f"({type(error).__name__}): download it first, set HF_ENDPOINT to a mirror, or use --model smollm2"
        ) from None


def number(knobs: dict[str, str], name: str, default: int = 1) -> int:
    """A whole-number knob, *default* when this method has no such knob or it is empty."""
    value = knobs.get(name) or ""
    return int(value) if re.fullmatch(r"-?\d+", value) else default


def _nearest_multiple(value: int, step: int) -> str:
    below, above = value // step * step, -(-value // step) * step
    return f"{above}" if below in (0, above) else f"{below} or {above}"


def at_least_one(knobs: dict[str, str], *names: str) -> list[str]:
    """A line for each of *names*, and of what every method has, that is below 1."""
    shared = ("N_GPUS", "NNODES", "SEQUENCE_PARALLEL_SIZE", "TOTAL_EPOCHS")
    return [
        f"{name}={number(knobs, name)} must be 1 or more"
        for name in (*names, *shared)
        if number(knobs, name) < 1
    ]


def no_rows_fit(unit: str, limit: str) -> str:
    """What is said where nothing is left to train on."""
    return f"TRAIN_DATA has no {unit} that fit: use a longer {limit}, or look at the data"


def check_batches(knobs: dict[str, str], train_rows: int) -> list[str]:
    """The batch arithmetic of verl's RL trainers; returns one line per mistake.

    Sources: ``verl.utils.config.validate_config``, ``engine_workers.py:267`` and
    ``trainer_base.py:450`` of verl 0.9.1.
    """
    problems = []
    batch, mini = number(knobs, "TRAIN_BATCH_SIZE"), number(knobs, "MINI_BATCH_SIZE")
    n, ranks = number(knobs, "ROLLOUT_N"), number(knobs, "N_GPUS") * number(knobs, "NNODES")
    tp, sp = number(knobs, "ROLLOUT_TP_SIZE"), number(knobs, "SEQUENCE_PARALLEL_SIZE")
    problems += at_least_one(knobs, "TRAIN_BATCH_SIZE", "MINI_BATCH_SIZE", "ROLLOUT_N", "ROLLOUT_TP_SIZE")
    if problems:
        return problems
    if ranks % sp:
        problems.append(
            f"SEQUENCE_PARALLEL_SIZE={sp} does not divide {ranks} GPUs (N_GPUS x NNODES): use a divisor"
        )
        return problems
    dp = ranks // sp
    if mini > batch:
        problems.append(
            f"MINI_BATCH_SIZE={mini} is larger than TRAIN_BATCH_SIZE={batch}: use {batch} or a divisor of it"
        )
    elif batch % mini:
        divisors = [d for d in range(1, batch + 1) if batch % d == 0]
        nearest = min(divisors, key=lambda d: abs(d - mini))
        problems.append(
            f"MINI_BATCH_SIZE={mini} does not divide TRAIN_BATCH_SIZE={batch} (verl would train on padding): "
            f"use MINI_BATCH_SIZE={nearest} or TRAIN_BATCH_SIZE={_nearest_multiple(batch, mini)}"
        )
    # verl asks for this with static micro-batches only; else it pads to the data-parallel ranks.
    if knobs.get("USE_DYNAMIC_BSZ") == "false" and (batch * n) % ranks:
        problems.append(
            f"TRAIN_BATCH_SIZE x ROLLOUT_N = {batch} x {n} = {batch * n} must divide by {ranks} GPUs: "
            f"use TRAIN_BATCH_SIZE={_nearest_multiple(batch, ranks)}"
        )
    if (mini * n) % dp:
        problems.append(
            f"MINI_BATCH_SIZE x ROLLOUT_N = {mini} x {n} = {mini * n} must divide by {dp} data-parallel ranks: "
            f"use MINI_BATCH_SIZE={_nearest_multiple(mini, dp)}"
        )
    elif knobs.get("USE_DYNAMIC_BSZ") == "false":
        micro, per_rank = number(knobs, "MICRO_BATCH_SIZE"), mini * n // dp
        if micro < 1 or per_rank % micro:
            nearest = min(
                (d for d in range(1, per_rank + 1) if per_rank % d == 0), key=lambda d: abs(d - micro)
            )
            problems.append(
                f"MICRO_BATCH_SIZE={micro} does not divide the {per_rank} responses each rank updates on "
                f"(MINI_BATCH_SIZE x ROLLOUT_N / ranks = {mini} x {n} / {dp}): use {nearest}"
            )
    if ranks % tp:
        problems.append(f"ROLLOUT_TP_SIZE={tp} does not divide {ranks} GPUs (N_GPUS x NNODES): use a divisor")
    longest = number(knobs, "MAX_PROMPT_LENGTH", 0) + number(knobs, "MAX_RESPONSE_LENGTH", 0)
    budget = number(knobs, "MAX_TOKENS_PER_GPU", 0)
    if knobs.get("USE_DYNAMIC_BSZ") == "true" and 0 < budget * sp < longest:
        problems.append(
            f"MAX_TOKENS_PER_GPU={budget} (x {sp} sequence parallel) is below MAX_PROMPT_LENGTH + "
            f"MAX_RESPONSE_LENGTH = {longest}: use {-(-longest // sp)} or more"
        )
    if train_rows < 1:
        problems.append(no_rows_fit("rows", "MAX_PROMPT_LENGTH"))
    elif train_rows < batch:
        problems.append(
            f"TRAIN_DATA has {train_rows} rows that fit, fewer than TRAIN_BATCH_SIZE={batch}: no step could run; "
            f"use TRAIN_BATCH_SIZE={train_rows} or less, more data, or a longer MAX_PROMPT_LENGTH"
        )
    return problems


def left_out(knobs: dict[str, str], overlong: dict[str, dict[str, int]]) -> list[str]:
    """One line per file that loses prompts to MAX_PROMPT_LENGTH.

    Args:
        overlong: per file ``rows``, ``over_prompt`` and ``longest_prompt`` (tokens), as ``data_utils`` counts them.
    """
    names = {"train": "TRAIN_DATA", "val": "VAL_DATA"}
    return [
        f"{names.get(name, name)}: {counts['over_prompt']} of {counts['rows']} prompts are longer than "
        f"MAX_PROMPT_LENGTH={knobs.get('MAX_PROMPT_LENGTH')} tokens and are left out "
        f"(longest: {counts['longest_prompt']})"
        for name, counts in overlong.items()
        if counts and counts["over_prompt"]
    ]


def check_group_size(knobs: dict[str, str]) -> list[str]:
    """Refuse groups of one where the advantage is relative to the group (verl would train on mean 0, std 1)."""
    algorithm, n = knobs.get("ALGORITHM"), number(knobs, "ROLLOUT_N")
    if algorithm is None or algorithm in ("reinforce_plus_plus", "remax") or n != 1:
        return []
    return [
        f"ROLLOUT_N=1: {algorithm} compares the answers of one prompt, so it needs 2 or more (8 is usual)"
    ]


def check_lora(knobs: dict[str, str], model: str = "") -> list[str]:
    """LoRA knobs that verl or vLLM would refuse minutes later.

    Args:
        model: where it is a folder, the modules of LORA_TARGETS are looked for in it.
    """
    if knobs.get("USE_LORA") != "true":
        return []
    problems = []
    if not 1 <= number(knobs, "LORA_RANK", 0) <= 512:
        problems.append(f"LORA_RANK={knobs.get('LORA_RANK')} must be between 1 and 512 (vLLM's limit)")
    if number(knobs, "LORA_ALPHA", 0) < 1:
        problems.append(f"LORA_ALPHA={knobs.get('LORA_ALPHA')} must be 1 or more: 0 switches the adapter off")
    return problems + _check_targets(knobs.get("LORA_TARGETS", "all-linear"), model)


def _check_targets(targets: str, model: str) -> list[str]:
    """PEFT takes a bare word as a regular expression for whole paths, and passes over names that it does not find."""
    if targets == "all-linear" or re.search(r"[.*+?|()\\^$]", targets):
        return []
    names = [name.strip(" '\"") for name in targets.strip("[]").split(",")]
    if not targets.startswith("["):
        hint = "all-linear" if difflib.get_close_matches(targets, ["all-linear"], n=1) else f"[{targets}]"
        return [f"LORA_TARGETS={targets} must be all-linear or a list: did you mean {hint}?"]
    problems, known = [], module_names(model)
    for name in names if known else []:
        if name.rpartition(".")[2] not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(known))}"
            problems.append(f"LORA_TARGETS={targets}: the model has no module {name}; {hint}")
    return problems


def module_names(model: str) -> set[str]:
    """Last names of the modules with a matrix in a local model's files; empty where they cannot be read."""
    from safetensors import SafetensorError, safe_open

    folder, found = Path(model), set()
    for file in sorted(folder.glob("*.safetensors")) if model and folder.is_dir() else []:
        try:
            with safe_open(file, framework="np") as tensors:
                found |= {
                    name.split(".")[-2]
                    for name in tensors.keys()  # noqa: SIM118  (not a mapping)
                    if name.endswith(".weight")
                    and len(tensors.get_slice(name).get_shape()) > 1
                    and "." in name[:-7]
                }
        except (OSError, SafetensorError):
            return set()
    return found - {"embed_tokens"}


def check_same_adapter(knobs: dict[str, str], before: dict[str, str]) -> list[str]:
    """What of the adapter a resumed run has otherwise than its checkpoint, which could not be read so."""
    names = ("USE_LORA", "LORA_RANK", "LORA_TARGETS") if knobs.get("USE_LORA") == "true" else ("USE_LORA",)
    return [
        f"{name}={knobs[name]}, but the run was started with {before[name]}: its checkpoint goes on only so; start a "
        "new run with --model RUN to go another way"
        for name in names
        if name in before and knobs.get(name) != before[name]
    ]


def check_reward(path: str, name: str, kwargs: str) -> str:
    """Load the reward as the run will; return the absolute path of its file, or "" for a library reward.

    Raises:
        UserError: missing file, failing import, missing function, or kwargs that are not a JSON object.
    """
    from common.reward_functions import load_reward
    from common.reward_functions.errors import RewardError

    try:
        parsed = json.loads(kwargs) if kwargs else {}
    except ValueError as error:
        raise UserError(f"REWARD_KWARGS is not JSON ({error}): write e.g. '{{\"weight\": 0.5}}'") from None
    if not isinstance(parsed, dict):
        raise UserError("REWARD_KWARGS must be a JSON object of keyword arguments, e.g. '{\"weight\": 0.5}'")
    library = name.startswith("common:")
    try:
        load_reward(None if library else path, name, parsed)
    except RewardError as error:
        raise UserError(f"REWARD_FUNC_PATH/REWARD_FUNC_NAME: {error}") from None
    return "" if library else str(Path(path).expanduser().resolve())


def score_own_rows(knobs: dict[str, str], data: str, rows: int = 64) -> list[str]:
    """Score right, empty, shuffled and random answers on the run's own rows; one line per problem.

    A reward that cannot tell right answers from junk gives no learning signal, and verl would not say so.

    Args:
        knobs: REWARD_FUNC_PATH, REWARD_FUNC_NAME and REWARD_KWARGS, as ``check_reward`` takes them.
        data: Parquet file in verl's RL schema; its first *rows* rows are scored.
    """
    from common.reward_functions import load_reward
    from common.reward_functions.errors import RewardError
    from common.reward_functions.trial import dry_run, read_rows

    path, name, kwargs = (knobs.get(f"REWARD_{key}", "") for key in ("FUNC_PATH", "FUNC_NAME", "KWARGS"))
    try:
        report = dry_run(
            load_reward(path, name, json.loads(kwargs) if kwargs else {}), read_rows(Path(data), rows)
        )
    except RewardError as error:
        return [f"reward on the run's own rows: {error}"]
    return [f"reward on {report.rows} of the run's own rows: {problem}" for problem in report.problems]


def check_resume(checkpoints: Path, ranks: int) -> int:
    """The step to resume from.

    Raises:
        UserError: the checkpoint was written by another number of processes.
    """
    step = runs.latest_step(checkpoints)
    if step is None:
        raise UserError(f"{checkpoints} has no checkpoint to resume from; start a new run")
    folder = checkpoints / f"global_step_{step}"
    if not folder.is_dir():
        raise UserError(
            f"{folder} is missing, though latest_checkpointed_iteration.txt names it: restore it, or write an "
            "older step into that file"
        )
    if not any(folder.rglob("*.pt")):
        raise UserError(
            f"{folder} holds no checkpoint: write an older step into latest_checkpointed_iteration.txt, or start anew"
        )
    shards = [*folder.glob("model_world_size_*_rank_0.pt"), *folder.glob("*/model_world_size_*_rank_0.pt")]
    sizes = {int(re.findall(r"world_size_(\d+)_", shard.name)[0]) for shard in shards}
    if sizes and ranks not in sizes:
        written = min(sizes)
        raise UserError(
            f"{folder.name} was written by {written} process(es), this launch has {ranks} (N_GPUS x NNODES): "
            f"resume with {written}, or start a new run from the exported model"
        )
    return step


def check_disk(output: Path, model: str, save: bool) -> None:
    """Refuse a run whose first checkpoint would not fit.

    A step holds fp32 weights, two fp32 Adam moments and the exported bf16 or fp32 model: about eight times the
    bf16 weights of *model*. Unknown sizes (hub ids) need 1 GiB.

    Raises:
        UserError: free and needed space, and which knob moves the output.
    """
    folder = Path(model)
    weights = sum(f.stat().st_size for f in folder.glob("*.safetensors")) if folder.is_dir() else 0
    needed = max(8 * weights, _GIB) if save else _GIB // 10
    place = existing(output)
    if not place.is_dir():
        raise UserError(f"OUTPUT_DIR={output}: {place} is a file, no folder")
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"{output} has {free / _GIB:.1f} GiB free, one checkpoint needs about {needed / _GIB:.1f} GiB: "
            "free space, or set OUTPUT_DIR to another disk"
        )
    if not os.access(place, os.W_OK):
        raise UserError(f"OUTPUT_DIR={output}: no permission to write in {place}")


def wandb_mode(knobs: dict[str, str], environment: dict[str, str]) -> tuple[str, str]:
    """(WANDB_MODE, note) decided before launch, so that no run stops to ask for a login.

    Order: an explicit WANDB_MODE, a key in the environment, ``wandb login``'s netrc entry, else offline.
    """
    if knobs.get("USE_WANDB") != "true":
        return "", ""
    if environment.get("WANDB_MODE"):
        return environment["WANDB_MODE"], ""
    host = re.sub(r"^https?://|/.*$", "", environment.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    if environment.get("WANDB_API_KEY") or _in_netrc(host, environment):
        return "online", ""
    return "offline", (
        "USE_WANDB=true but there is no login: W&B writes offline into the run folder; send it later with "
        "`wandb sync`, or log in first with `wandb login`"
    )


def _in_netrc(host: str, environment: dict[str, str]) -> bool:
    import netrc

    path = Path(environment.get("NETRC") or Path.home() / ".netrc")
    try:
        return path.is_file() and netrc.netrc(str(path)).authenticators(host) is not None
    except (netrc.NetrcParseError, OSError):
        return False
