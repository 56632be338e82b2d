"""The hardware table of the READMEs: which GPUs a model needs at the defaults of each train.sh."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from common.launcher.errors import UserError
from common.memory.compose import ROOT, compose
from common.memory.estimate import estimate
from common.memory.fit import shortage
from common.memory.models import known_models

GIB = 1 << 30
# Tried in this order: one GPU of each size, then more of the largest, then more nodes.
MACHINES = [
    (1, 1, 24),
    (1, 1, 48),
    (1, 1, 80),
    *((1, gpus, 80) for gpus in (2, 4, 8)),
    (2, 8, 80),
    (4, 8, 80),
]
COLUMNS = [
    (f"{method} {kind}".strip(), method.split(",")[0].lower(), kind == "LoRA")
    for method in ("SFT", "DPO", "GRPO, GSPO", "PPO")
    for kind in ("", "LoRA")
]
FILES = {"README.md": "model", "README.zh-CN.md": "模型"}
BEGIN, END = "<!-- memory table: python -m common.memory table -->", "<!-- end of the memory table -->"


def needed(config: dict[str, Any], model_config: dict[str, Any]) -> str:
    """The smallest of MACHINES on which every phase fits, as `2 x 80 GB`; "-" where none does.

    A model whose rollouts do not fit one GPU is given more of the node's (ROLLOUT_TP_SIZE).
    """
    for nodes, gpus, memory in MACHINES:
        for parallel in (1, 2, 4, 8):
            if parallel > gpus:
                break
            tree = copy.deepcopy(config)
            if "actor_rollout_ref" in tree:
                tree["actor_rollout_ref"]["rollout"]["tensor_model_parallel_size"] = parallel
            elif parallel > 1:
                break
            found = estimate(tree, model_config, gpus=gpus, nodes=nodes, gpu_memory=memory * GIB)
            if not shortage(found, memory * GIB):
                return f"{nodes * gpus} x {memory} GB"
    return "-"


def rows() -> list[list[str]]:
    """The table without its header: a row per model."""
    configs = {
        name: compose(method, ["--model", "any", "--use_lora", str(lora).lower()])
        for name, method, lora in COLUMNS
    }
    return [
        [model, *(needed(configs[name], shape) for name, _, _ in COLUMNS)]
        for model, shape in known_models().items()
    ]


def markdown(first: str, found: list[list[str]]) -> str:
    """The table between its marks."""
    header = [first, *(name for name, _, _ in COLUMNS)]
    lines = [header, ["---"] * len(header), *found]
    return "\n".join([BEGIN, *(f"| {' | '.join(line)} |" for line in lines), END])


def fill(text: str, table: str) -> str:
    """The text with the table between its marks.

    Raises:
        UserError: the marks are not there.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise UserError(f"no table to fill: put '{BEGIN}' and '{END}' on lines of their own")
    return head + table + tail


def write(root: Path = ROOT) -> list[Path]:
    """Fill the table of each README; returns those that changed.

    Raises:
        UserError: a README has no marks.
    """
    found, changed = rows(), []
    for name, first in FILES.items():
        path = root / name
        old = path.read_text(encoding="utf-8")
        try:
            new = fill(old, markdown(first, found))
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        if new != old:
            path.write_text(new, encoding="utf-8")
            changed.append(path)
    return changed
