"""From a name, or a file and a function name, to a checked reward."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from common.reward_functions import registry
from common.reward_functions.calling import BoundReward, bind
from common.reward_functions.errors import RewardError


def load_reward(spec_path: str | None, name: str, kwargs: Mapping[str, Any] | None = None) -> BoundReward:
    """The reward a run asks for.

    Args:
        spec_path: the user's Python file, or None/"" for a registered reward.
        name: function in that file, or a registered name ("common:math" or "math").
        kwargs: knobs passed at every call.

    Raises:
        RewardError: file, import, name, signature or knob is wrong; one sentence says which and what to do.
    """
    if not name:
        raise RewardError("no reward name given; name a function of your file or e.g. common:math")
    if name.startswith("common:") or not spec_path:
        spec = registry.get(name)
        return bind(f"common:{spec.name}", spec.function, kwargs)
    path = Path(spec_path).expanduser()
    module = _import_file(path)
    label = f"{path.name}:{name}"
    if not hasattr(module, name):
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise RewardError(
            f"{path} has no function '{name}'{registry.nearest(name, own)}; "
            f"it has: {', '.join(own) or 'none'}"
        )
    return bind(label, getattr(module, name), kwargs)


# verl scores in several threads, and a module is in sys.modules before it is whole. Reentrant: files import files.
LOADING = threading.RLock()


def _import_file(path: Path) -> ModuleType:
    with LOADING:
        return _import_once(path)


def _import_once(path: Path) -> ModuleType:
    if not path.exists():
        raise RewardError(f"reward file {path} does not exist")
    if path.is_dir() or path.suffix != ".py":
        raise RewardError(f"reward file {path} is not a Python file (.py)")
    path = path.resolve()
    key = f"user_reward_{hashlib.sha1(str(path).encode()).hexdigest()[:12]}"
    if key in sys.modules:
        return sys.modules[key]
    spec = importlib.util.spec_from_file_location(key, path)
    if spec is None or spec.loader is None:
        raise RewardError(f"reward file {path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module  # dataclasses and pickle look a module up by name
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # so that a reward file may import its neighbours
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[key]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise RewardError(f"reward file {path} fails on import{_line(error, path)}: {_say(error)}") from error
    return module


def _line(error: BaseException, path: Path) -> str:
    if isinstance(error, SyntaxError):
        return f" at line {error.lineno}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path]
    return f" at line {lines[-1]}" if lines else ""


def _say(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {' '.join(text.split())}" if text else type(error).__name__
