"""An estimate for people and for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from common.memory.estimate import Estimate
from common.memory.fit import USABLE, Fit
from common.memory.sizes import show_size


def as_json(found: Estimate, memory: int | None, stopped: str, fitted: Fit | None) -> dict[str, Any]:
    """The estimate as plain values, in bytes.

    Args:
        stopped: the phase that does not fit, "" where all do.
    """
    return {
        "phases": [
            {
                "name": phase.name,
                "gpu_bytes": phase.gpu_bytes,
                "host_bytes": phase.host_bytes,
                "gpu_parts": phase.gpu_parts,
                "host_parts": phase.host_parts,
            }
            for phase in found.phases
        ],
        "peak": found.peak.name,
        "host_peak": found.host_peak.name,
        "parameters": found.parameters,
        "trainable": found.trainable,
        "checkpoint_bytes": found.checkpoint_bytes,
        "kv_tokens": found.kv_tokens,
        "kv_needed": found.kv_needed,
        "notes": found.notes,
        "memory": memory,
        "fits": None if memory is None else not stopped,
        "fit": None if fitted is None else asdict(fitted),
    }


def show(
    found: Estimate, title: str, run: dict[str, Any], memory: int | None, stopped: str, fitted: Fit | None
) -> None:
    """Print the phases, the parts of the largest one, and what fits."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    cpu = run["device"] == "cpu"
    where = f"{run['gpus']} process(es) on the CPU" if cpu else f"{run['gpus']} GPU(s)"
    console.print(
        f"[bold]{title}[/]: {found.parameters / 1e9:.2f}B weights, {found.trainable / 1e9:.3f}B learn; "
        f"{run['nodes']} node(s) with {where}"
    )
    table = Table("phase", *([] if cpu else ["each GPU"]), "each host", "largest parts", box=None)
    for phase in found.phases:
        parts = sorted(phase.parts.items(), key=lambda item: -item[1])[:4]
        said = ", ".join(f"{name} {show_size(size)}" for name, size in parts if size)
        gpu = [] if cpu else [show_size(phase.gpu_bytes)]
        style = "bold" if phase is found.peak else ""
        table.add_row(phase.name, *gpu, show_size(phase.host_bytes), said, style=style)
    console.print(table)
    console.print(f"a checkpoint takes {show_size(found.checkpoint_bytes)} on disk")
    if found.kv_tokens:
        console.print(f"a KV cache of {found.kv_tokens} tokens; the longest sequence takes {found.kv_needed}")
    for line in found.notes:
        console.print(f"note: {line}")
    if memory:
        console.print(
            f"[red]{stopped} does not fit into[/]" if stopped else "every phase fits into",
            f"{USABLE:.0%} of {show_size(memory)}",
        )
    if fitted:
        console.print(_said(fitted))


def _said(fitted: Fit) -> str:
    if not fitted.value:
        return f"{fitted.limit} does not fit even with {fitted.knob}={fitted.smallest}, the least there is"
    bound = f"; with more, {fitted.limit} does not fit" if fitted.limit else ", the whole batch of a step"
    return f"fits up to {fitted.knob}={fitted.value}{bound}"
