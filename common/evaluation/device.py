"""GPU or CPU, and what vLLM and torch read from the environment on a CPU (as common/launch.sh sets it)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from common.launcher.device import choose, cores

ROOT = Path(__file__).resolve().parents[2]


def kind() -> str:
    """gpu or cpu."""
    return choose("auto").kind


def prepare() -> str:
    """Set the environment before torch is imported; returns gpu or cpu."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    found = kind()
    if found == "gpu":
        return found
    os.environ.setdefault("OMP_NUM_THREADS", str(cores()))
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    # Small functions that are compiled at every start cost more than they save here.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    # For vLLM's engine process: keep freed memory instead of mapping each large tensor anew.
    os.environ.setdefault("MALLOC_MMAP_MAX_", "0")
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "68719476736")
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    # Tells vLLM that its CPU build is vLLM, here and in the processes that it starts.
    site = str(ROOT / "common/cpu/site")
    if site not in sys.path:
        sys.path.insert(0, site)
    paths = [site, str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    return found
