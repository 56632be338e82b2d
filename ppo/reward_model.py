"""The reward model's settings file, what its folder says, and verl's keys to serve it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.judge.failures import JudgeError
from common.judge.settings import Settings as JudgeSettings
from common.judge.settings import make_settings
from common.judge.templates import load_template
from common.launcher.checks import number
from common.launcher.device import visible_gpus
from common.launcher.errors import UserError
from common.launcher.hydra_words import quote
from common.reward_functions.registry import nearest

CHOICES = {
    "kind": ("auto", "discriminative", "generative"),
    "serve": ("auto", "server", "process"),
    "dtype": ("bfloat16", "float16", "float32"),
    "output": ("last", "margin", "probability"),
    "engine": ("vllm", "sglang"),
}
JUDGE_KEYS = (
    *("preset", "template", "system", "score_range", "score_pattern", "reward_range", "temperature"),
    *("max_tokens", "on_failure", "failure_score"),
)


@dataclass(frozen=True)
class Server:
    """Where verl serves the model; ``gpus`` 0 = on the training GPUs."""

    engine: str = "vllm"
    gpus: int = 0
    nodes: int = 1
    tensor_parallel: int = 1
    gpu_memory_utilization: float = 0.3


@dataclass(frozen=True)
class Settings:
    """The keys of ``reward_model_config.yaml``; see there for what each means."""

    kind: str = "auto"
    serve: str = "auto"
    max_length: int = 2048
    dtype: str = "bfloat16"
    output: str = "last"
    scale: tuple[float, float] | None = None
    clip: tuple[float, float] | None = None
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    server: Server = field(default_factory=Server)

    def reward(self, logits: list[float]) -> float:
        """The reward of a classifier's *logits*, one or two."""
        import math

        margin = logits[-1] - logits[0] if len(logits) == 2 else logits[0]
        if self.output == "probability":
            value = 1 / (1 + math.exp(-margin)) if margin >= 0 else math.exp(margin) / (1 + math.exp(margin))
        else:
            value = margin if self.output == "margin" else logits[-1]
        if self.scale:
            value = (value - self.scale[0]) / (self.scale[1] - self.scale[0])
        return value if self.clip is None else min(self.clip[1], max(self.clip[0], value))


@dataclass(frozen=True)
class Plan:
    """How the run serves the model: ``served`` by verl (with verl's ``keys``) or inside the reward worker."""

    served: bool
    keys: list[str]


def load_settings(path: Path) -> Settings:
    """Read the settings file.

    Raises:
        UserError: no YAML, an unknown key, or a value of the wrong form; in one line.
    """
    import yaml

    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(given, dict):
        raise UserError(f"{path} must hold one mapping of keys, e.g. 'kind: auto'")
    judge, server = given.pop("judge", None) or {}, given.pop("server", None) or {}
    for name, part in (("judge", judge), ("server", server)):
        if not isinstance(part, dict):
            raise UserError(f"{path}: {name} must be a mapping")
    values = _values(Settings, given, path, hidden=("judge", "server"))
    values["server"] = Server(**_values(Server, server, path))
    values["judge"] = _judge(judge, path)
    return Settings(**values)


def _judge(given: dict[str, Any], path: Path) -> JudgeSettings:
    for key in given:
        if key not in JUDGE_KEYS:
            raise UserError(
                f"{path}: judge has no '{key}'{nearest(str(key), JUDGE_KEYS)}; it has: {', '.join(JUDGE_KEYS)}"
            )
    if given.get("on_failure") == "drop":
        raise UserError(
            f"{path}: judge.on_failure: drop is for an API judge; a reward model takes raise or constant"
        )
    fixed = {
        "provider": "custom",
        "model": "reward-model",
        "base_url": "http://reward-model/v1",
        "max_tokens": 256,
    }
    try:
        settings = make_settings({**fixed, **given}, f"{path}: judge")
        if settings.template and not Path(settings.template).expanduser().is_absolute():
            settings = dataclasses.replace(settings, template=str(path.parent / settings.template))
        load_template(settings)
    except JudgeError as error:
        raise UserError(str(error)) from None
    return settings


def _values(kind: type, given: dict[str, Any], path: Path, hidden: tuple[str, ...] = ()) -> dict[str, Any]:
    fields = {f.name: f for f in dataclasses.fields(kind) if f.name not in hidden}
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in fields:
            raise UserError(
                f"{path} has no key '{name}'{nearest(str(name), list(fields))}; it has: {', '.join(fields)}"
            )
        wanted = str(fields[name].type)
        if value is None and "None" not in wanted:
            continue
        values[name] = _value(name, wanted, value, path)
    return values


def _value(name: str, wanted: str, value: Any, path: Path) -> Any:
    if name in CHOICES and value not in CHOICES[name]:
        raise UserError(f"{path}: {name}: {value!r} is not one of {', '.join(CHOICES[name])}")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if wanted == "int" and (not isinstance(value, int) or not is_number or value < (name != "gpus")):
        raise UserError(f"{path}: {name}: {value!r} is not a whole number of {int(name != 'gpus')} or more")
    if wanted == "float" and not (is_number and 0 < value <= 1):
        raise UserError(f"{path}: {name}: {value!r} must lie between 0 and 1")
    if wanted.startswith("tuple") and value is not None:
        pair = value if isinstance(value, list) and len(value) == 2 else [0, 0]
        if not all(isinstance(x, int | float) for x in pair) or pair[0] >= pair[1]:
            raise UserError(f"{path}: {name}: {value!r} must be [low, high] with low < high, or null")
        return float(pair[0]), float(pair[1])
    return value


def read_json(model: str, name: str) -> dict[str, Any]:
    """A JSON file of a model folder or of the hub; empty where there is none."""
    path = Path(model) / name
    if not Path(model).is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            path = Path(hf_hub_download(model, name))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError):
            return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def has_chat_template(model: str) -> bool:
    """True where the tokenizer knows how a conversation is written."""
    if read_json(model, "tokenizer_config.json").get("chat_template"):
        return True
    if Path(model).is_dir():
        return (Path(model) / "chat_template.jinja").is_file()
    from huggingface_hub import HfApi

    return HfApi().file_exists(model, "chat_template.jinja")


def kind_of(settings: Settings, model: str) -> str:
    """``discriminative`` or ``generative``, checked against the model's head.

    Raises:
        UserError: a head that does not fit the kind, more than two labels, or no chat template.
    """
    config = read_json(model, "config.json")
    architecture = next(iter(config.get("architectures") or []), "")
    labels = int(config.get("num_labels") or len(config.get("id2label") or {}) or 2)
    head = f"REWARD_MODEL_PATH={model} is a {architecture or 'model without architecture'}"
    classifies = "SequenceClassification" in architecture
    if settings.kind == "discriminative" and not classifies:
        raise UserError(
            f"{head}: kind: discriminative needs a ...ForSequenceClassification model with one or two labels; "
            "use kind: generative for a chat model"
        )
    if settings.kind == "generative" and classifies:
        raise UserError(f"{head}, which scores and does not write: use kind: discriminative")
    if not classifies and not any(
        word in architecture for word in ("ForCausalLM", "ForConditionalGeneration")
    ):
        raise UserError(f"{head}: a reward model is a ...ForSequenceClassification or a ...ForCausalLM")
    if classifies and labels > 2:
        raise UserError(f"{head} with {labels} labels: a reward needs one label, or two (bad, good)")
    if classifies and labels == 1 and settings.output == "margin":
        raise UserError(f"{head} with one label: output: margin needs two; use last")
    if not has_chat_template(model):
        raise UserError(
            f"REWARD_MODEL_PATH={model} has no chat template, so a question and its answer cannot be put to it: add "
            "the chat_template.jinja it was trained with to a copy of the folder"
        )
    return "discriminative" if classifies else "generative"


def plan(settings: Settings, model: str, path: Path, knobs: dict[str, str]) -> Plan:
    """Decide how the model is served.

    Args:
        model: folder or hub id.
        path: the settings file, for messages.
        knobs: the run's.

    Raises:
        UserError: a model, a length or a number of GPUs that cannot work; a line each.
    """
    kind, server = kind_of(settings, model), settings.server
    longest = number(knobs, "MAX_PROMPT_LENGTH", 0) + number(knobs, "MAX_RESPONSE_LENGTH", 0)
    if settings.max_length < longest:
        raise UserError(
            f"{path}: max_length: {settings.max_length} is below MAX_PROMPT_LENGTH + MAX_RESPONSE_LENGTH = {longest}"
        )
    on_cpu = knobs["DEVICE"] == "cpu"
    if settings.serve == "process" or (settings.serve == "auto" and on_cpu):
        return Plan(False, [])
    if on_cpu and server.engine != "vllm":
        raise UserError(f"{path}: server.engine: {server.engine} needs a GPU; use vllm, or serve: process")
    ranks = number(knobs, "N_GPUS") * number(knobs, "NNODES")
    pool = server.gpus * server.nodes or ranks
    if pool % server.tensor_parallel:
        raise UserError(
            f"{path}: server.tensor_parallel: {server.tensor_parallel} does not divide its {pool} GPUs"
        )
    if not on_cpu and server.gpus and number(knobs, "NNODES") == server.nodes == 1:
        wanted, there = number(knobs, "N_GPUS") + server.gpus, visible_gpus()
        if wanted > there:
            raise UserError(
                f"{path}: server.gpus: {server.gpus} and N_GPUS={knobs['N_GPUS']} need {wanted} GPUs, this machine "
                f"shows {there}: lower N_GPUS, or use gpus: 0 to share them"
            )
    return Plan(True, server_keys(settings, model, kind, on_cpu, number(knobs, "N_GPUS")))


def server_keys(settings: Settings, model: str, kind: str, on_cpu: bool, ranks: int) -> list[str]:
    """verl's overrides for a served reward model."""
    m, r, server = "reward.reward_model", "reward.reward_model.rollout", settings.server
    written = settings.judge.max_tokens if kind == "generative" else 1
    keys = [
        f"{m}.enable=True",
        f"{m}.model_path={quote(model)}",
        f"{m}.enable_resource_pool={bool(server.gpus)}",
        f"{r}.name={server.engine}",
        f"{r}.tensor_model_parallel_size={server.tensor_parallel}",
        f"{r}.gpu_memory_utilization={server.gpu_memory_utilization}",
        f"{r}.dtype={'float32' if on_cpu else settings.dtype}",
        f"{r}.max_model_len={settings.max_length + (written if kind == 'generative' else 0)}",
        f"{r}.prompt_length={settings.max_length}",
        f"{r}.response_length={written}",
    ]
    if server.gpus:
        keys += [f"{m}.n_gpus_per_node={server.gpus}", f"{m}.nnodes={server.nodes}"]
    if on_cpu:
        keys += [
            f"+{r}.enable_sleep_mode=False",
            f"{r}.free_cache_engine=False",
            f"{r}.max_num_batched_tokens={max(2048, settings.max_length)}",
            f"{r}.max_num_seqs=64",
            f"+{r}.engine_kwargs.vllm.kv_cache_memory_bytes={128 * 2**20}",
        ]
        if server.gpus:
            keys.append(f"+ray_kwargs.ray_init.num_gpus={ranks + server.gpus}")
    return keys
