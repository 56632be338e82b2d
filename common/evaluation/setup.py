"""Everything between the flags and the first token: model, data, template, sampling, reward, output."""

from __future__ import annotations

import re
import shlex
import sys
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.checkpoints import Merged, default_output, merge, resolve
from common.evaluation import output as places
from common.evaluation.backends import Sampling
from common.evaluation.items import Item, data_name, digest, group_columns, load_items
from common.evaluation.scoring import choose_reward, reward_key
from common.evaluation.templates import Template, choose
from common.launcher.errors import UserError
from common.reward_functions import BoundReward

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Job:
    """One model on one file, ready to start."""

    options: Namespace
    model: Merged
    items: list[Item]
    reason: str
    template: Template
    generation_config: Any
    sampling: Sampling
    reward: BoundReward | None
    reward_from: str
    groups: tuple[str, ...]
    output: Path

    def settings(self) -> dict[str, Any]:
        """What must be equal for results to belong together; the data is checked row by row."""
        return {
            "model": self.model.checkpoint.path,
            "backend": "vllm" if self.options.use_vllm else "transformers",
            "dtype": self.model.dtype if self.options.dtype == "auto" else self.options.dtype,
            "template": self.template.name,
            "template_kwargs": self.template.kwargs,
            "system_prompt": self.template.system,
            **self.sampling.as_dict(),
        }

    def meta(self) -> dict[str, Any]:
        """What the Summary sheet and the run file say about this evaluation."""
        from common.launcher.plan import git_sha, versions

        return {
            "model": self.model.checkpoint.title,
            "path": self.model.path,
            "step": self.model.checkpoint.step,
            "dtype": f"{self.settings()['dtype']} ({_who(self)})",
            "backend": self.settings()["backend"],
            "data": self.options.input_file,
            "read as": self.reason,
            "template": self.template.name,
            "system prompt": self.template.system,
            "sampling": self.sampling.as_dict(),
            "reward": self.reward.label if self.reward else "",
            "reward from": self.reward_from,
            "reward key": reward_key(self.reward),
            "threshold of right": self.options.threshold,
            "items": len(self.items),
            "n": self.options.n,
            "command": reproduce(self.options.argv),
            "versions": versions(),
            "git_sha": git_sha(),
            "settings": self.settings(),
        }


def _who(job: Job) -> str:
    return job.model.dtype_from if job.options.dtype == "auto" else "--dtype"


def reproduce(arguments: list[str]) -> str:
    """The command that was given."""
    return shlex.join(["./test.sh", *arguments])


def load_model(options: Namespace) -> Merged:
    """The model of --model_path as a folder that loads."""
    checkpoint = resolve(
        options.model_path,
        output=options.output_dir or default_output(),
        step=options.step,
        base=options.base_model,
    )
    return merge(checkpoint, lora_alpha=options.lora_alpha)


def load_template(model: Merged, options: Namespace) -> tuple[Template, Any]:
    """(template, generation config) of a model."""
    from transformers import AutoTokenizer, GenerationConfig

    try:
        tokenizer = AutoTokenizer.from_pretrained(model.path)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{model.path}: its tokenizer does not load: {reason}") from None
    try:
        config = GenerationConfig.from_pretrained(model.path)
    except OSError:  # a model without one
        config = None
    given = options.chat_template_kwargs or template_kwargs(model.checkpoint.record())
    return choose(tokenizer, options.template, kwargs=given, system=options.system_prompt), config


def template_kwargs(record: dict[str, Any]) -> dict[str, Any]:
    """What the run passed to its chat template, e.g. {"enable_thinking": False}."""
    import yaml

    found = _overrides(record.get("command") or [], "data.apply_chat_template_kwargs.")
    thinking = (record.get("knobs") or {}).get("ENABLE_THINKING")
    if thinking in ("true", "false"):
        found.setdefault("enable_thinking", thinking)
    return {name: yaml.safe_load(value) for name, value in found.items()}


def prepare(options: Namespace) -> Job:
    """Check and load everything but the weights.

    Raises:
        UserError: anything the user has to mend.
    """
    items, reason = load_items(
        options.input_file,
        limit=options.limit,
        prompt_field=options.prompt_field,
        answer_field=options.answer_field,
    )
    groups = group_columns(items, options.group_by)
    model = load_model(options)
    record = model.checkpoint.record()
    reward, reward_from = choose_reward(options.reward, options.reward_kwargs, record, items)
    sampling = choose_sampling(options, record)
    template, config = load_template(model, options)
    job = Job(options, model, items, reason, template, config, sampling, reward, reward_from, groups, Path())
    return replace(job, output=options.output_file or _automatic(job))


def _automatic(job: Job) -> Path:
    options = job.options
    settings = {
        **job.settings(),
        "n": options.n,
        "limit": options.limit,
        "data": digest(job.items),
        "reward": reward_key(job.reward),
    }
    folder = (options.output_dir or default_output()) / "evaluations"
    title = job.model.checkpoint.title
    name = title if job.model.checkpoint.run else Path(title).name
    return places.automatic(folder, name, data_name(options.input_file), settings)


def choose_sampling(options: Namespace, record: dict[str, Any]) -> Sampling:
    """The flags' values, or with --sampling train|val those of the run.

    Raises:
        UserError: the model is of no run.
    """
    own = Sampling(
        options.temperature,
        options.top_p,
        options.top_k,
        options.repetition_penalty,
        options.max_new_tokens,
        options.seed,
    )
    if options.sampling == "custom":
        return own
    command = record.get("command") or []
    if not command:
        raise UserError(f"--sampling {options.sampling}: {options.model_path} is no run that a launcher made")
    given = {"temperature", "top_p", "top_k"} & set(options.given)
    if given:
        raise UserError(
            f"--sampling {options.sampling} takes the run's values: leave --{sorted(given)[0]} out"
        )
    return from_run(own, command, options)


def from_run(own: Sampling, command: list[str], options: Namespace) -> Sampling:
    """The run's own sampling, from its verl command over its config.yaml over verl's defaults."""
    prefix = "actor_rollout_ref.rollout." + ("val_kwargs." if options.sampling == "val" else "")
    values = {**_config_values(command, prefix), **_overrides(command, prefix)}
    length = _overrides(command, "data.").get("max_response_length")
    temperature = float(values.get("temperature", 1.0))
    if options.sampling == "val" and str(values.get("do_sample", "false")).lower() == "false":
        temperature = 0.0
    return replace(
        own,
        temperature=temperature,
        top_p=float(values.get("top_p", 1.0)),
        top_k=max(0, int(values.get("top_k", -1))),
        max_new_tokens=own.max_new_tokens if "max_new_tokens" in options.given or not length else int(length),
    )


def _overrides(command: list[str], prefix: str) -> dict[str, str]:
    found = {}
    for word in command:
        match = re.fullmatch(re.escape(prefix) + r"(\w+)=(.*)", str(word).lstrip("+"), re.DOTALL)
        if match:
            found[match[1]] = match[2].strip('"')
    return found


def _config_values(command: list[str], prefix: str) -> dict[str, Any]:
    """Keys under *prefix* in the config file that the run was started with."""
    import yaml

    if "--config-path" not in command:
        return {}
    folder, name = (command[command.index(flag) + 1] for flag in ("--config-path", "--config-name"))
    path = Path(folder) / f"{name}.yaml"
    if not path.is_file():
        return {}
    node: Any = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    for part in prefix.rstrip(".").split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return {key: value for key, value in (node or {}).items() if not isinstance(value, dict)}


def announce(job: Job, done: int) -> None:
    """Say what will run before it runs."""
    total = len(job.items) * job.options.n
    sampling = ", ".join(f"{name} {value:g}" for name, value in job.sampling.as_dict().items())
    lines = [
        f"model    {job.model.checkpoint.title}",
        f"dtype    {job.settings()['dtype']} ({_who(job)})",
        f"data     {job.options.input_file}: {len(job.items)} items, {job.reason}",
        f"template {job.template.title}",
        f"sampling {sampling}" + (f", {job.options.n} answers each" if job.options.n > 1 else ""),
        f"reward   {f'{job.reward.label} (from {job.reward_from})' if job.reward else 'none: ' + job.reward_from}",
        f"output   {job.output}",
    ]
    info = job.model.info
    if "lora_norm" in info:
        lines[0] += f", LoRA folded in ({info['lora_modules']} modules, norm {info['lora_norm']:.3g})"
    if done:
        lines.append(f"going on {done} of {total} answers are there already")
    print("\n".join(lines), file=sys.stderr, flush=True)
