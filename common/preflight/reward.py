"""RL: where the reward comes from, on the resolved config (the launcher tries the reward itself on rows)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from common.preflight import names
from common.preflight.finding import Finding, error
from common.preflight.job import Job

_R = "reward"
_MODEL = "reward.reward_model"


def check(job: Job) -> Iterator[Finding]:
    """Function, manager and reward model."""
    yield from _function(job)
    yield from _manager(job)
    if job.get(f"{_MODEL}.enable"):
        yield from _model(job)
    if job.number(f"{_R}.num_workers") < 1:
        yield error(f"{_R}.num_workers={job.get(f'{_R}.num_workers')} must be 1 or more")


def _function(job: Job) -> Iterator[Finding]:
    key = f"{_R}.custom_reward_function"
    path, name = job.get(f"{key}.path"), str(job.get(f"{key}.name", "compute_score"))
    if path is None:
        sources = set(job.record.get("data", {}).get("data_sources") or [])
        unknown = sorted(s for s in sources if s not in names.scored_sources() and not s.startswith("aime"))
        if unknown and not job.get(f"{_MODEL}.enable"):
            yield error(
                f"{key}.path is empty and verl's own scorer does not know the data_source {', '.join(unknown)}: "
                "set REWARD_FUNC_PATH",
                "REWARD_FUNC_PATH",
            )
        return
    if str(path).startswith("pkg://"):
        return
    file = Path(str(path)).expanduser()
    if not file.is_absolute():
        yield error(
            f"{key}.path={path} is relative, but verl's workers run elsewhere: give an absolute path",
            f"{key}.path",
        )
    elif not file.is_file():
        yield error(f"{key}.path={path} does not exist", f"{key}.path")
    elif (found := top_level_names(file)) is not None and name not in found:
        hint = names.suggest(name, [n for n in found if not n.startswith("_")]) if found else ""
        yield error(f"{key}.name={name} is not defined in {file.name}{hint}", f"{key}.name")


def top_level_names(file: Path) -> set[str] | None:
    """What a module defines or imports by name; None where that cannot be told without running it."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):
        return set()
    found: set[str] = set()
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            if any(alias.name == "*" for alias in node.names):
                return None
            found.update(alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        else:  # if, try, with, an assignment: whatever it holds
            waiting += ast.iter_child_nodes(node)
    return found


def _manager(job: Job) -> Iterator[Finding]:
    key = f"{_R}.reward_manager"
    source, name = job.get(f"{key}.source", "register"), str(job.get(f"{key}.name", "naive"))
    if source not in ("register", "importlib"):
        yield error(f"{key}.source={source} must be register or importlib", f"{key}.source")
    elif source == "importlib" and not job.get(f"{key}.module.path"):
        yield error(
            f"{key}.source=importlib needs {key}.module.path, the module that holds {name}",
            f"{key}.module.path",
        )
    elif source == "register" and name not in names.reward_managers():
        yield error(
            f"{key}.name={name} is none that verl knows{names.suggest(name, names.reward_managers())}",
            f"{key}.name",
        )
    buffer, most = f"{_R}.reward_kwargs.overlong_buffer_cfg", job.get(f"{_R}.reward_kwargs.max_resp_len")
    if name != "dapo" or not job.get(f"{buffer}.enable"):
        return
    length = job.get(f"{buffer}.len", 0)
    if most is None:
        yield error(f"{buffer}.enable=True needs {_R}.reward_kwargs.max_resp_len", buffer)
    elif not 0 < length <= most:
        yield error(
            f"{buffer}.len={length} must lie between 1 and max_resp_len={most}: it is the stretch of tokens before the "
            "limit in which a long answer loses points",
            buffer,
        )


def _model(job: Job) -> Iterator[Finding]:
    path, rollout = job.get(f"{_MODEL}.model_path"), f"{_MODEL}.rollout"
    if not path:
        yield error(f"{_MODEL}.enable=True needs {_MODEL}.model_path", "REWARD_MODEL_PATH")
    engine = job.get(f"{rollout}.name")
    if engine is None:
        yield error(f"{rollout}.name is not set: set it to vllm, as ROLLOUT_ENGINE", f"{rollout}.name")
    elif engine not in names.rollout_engines():
        yield error(
            f"{rollout}.name={engine} is none that verl knows{names.suggest(str(engine), names.rollout_engines())}",
            f"{rollout}.name",
        )
    pool = bool(job.get(f"{_MODEL}.enable_resource_pool"))
    gpus = job.number(f"{_MODEL}.n_gpus_per_node") * job.number(f"{_MODEL}.nnodes", 0) if pool else job.ranks
    each = 1
    for size in ("tensor_model_parallel_size", "data_parallel_size", "pipeline_model_parallel_size"):
        each *= job.number(f"{rollout}.{size}")
    if pool and gpus < 1:
        yield error(
            f"{_MODEL}.enable_resource_pool=True needs {_MODEL}.nnodes and n_gpus_per_node of 1 or more",
            f"{_MODEL}.nnodes",
        )
    elif gpus % each:
        yield error(
            f"the reward model's engine takes {each} GPUs (tensor parallel; verl's default is 2), which does "
            f"not divide its {gpus}: set {rollout}.tensor_model_parallel_size to a divisor, e.g. 1",
            f"{rollout}.tensor_model_parallel_size",
        )
