"""The same programs on a Sandbox Fusion server (bytedance/SandboxFusion, POST /run_code)."""

from __future__ import annotations

import base64
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from common.reward_functions.sandbox.host import DEFAULT_LIMITS, Limits, Outcome, SandboxError

ATTEMPTS = 4
FIRST_PAUSE = 0.5  # seconds before the second attempt, doubled each time
SLACK = 10.0  # seconds a request may take beyond the run itself (queueing, network)


def run_python(
    url: str,
    program: str,
    stdin: str = "",
    files: Mapping[str, str] | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Outcome:
    """Run a Python program on the server at `url` (".../run_code" is added when missing).

    Raises:
        SandboxError: the server cannot be reached or reports a failure of its own, after several attempts.
    """
    address = url.rstrip("/")
    if not address.endswith("/run_code"):
        address += "/run_code"
    body = {
        "language": "python",
        "code": program,
        "stdin": stdin,
        "compile_timeout": limits.wall_seconds,
        "run_timeout": limits.wall_seconds,
        "memory_limit_MB": limits.memory_mb,
        "files": {name: base64.b64encode(text.encode()).decode() for name, text in (files or {}).items()},
        "fetch_files": [],
    }
    begin = time.monotonic()
    answer = _post(address, json.dumps(body).encode(), 2 * limits.wall_seconds + SLACK)
    return _outcome(answer, limits, time.monotonic() - begin)


def _post(address: str, body: bytes, timeout: float) -> dict[str, Any]:
    if not address.startswith(("http://", "https://")):
        raise SandboxError(f"the Sandbox Fusion address must start with http:// or https://: {address}")
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    problem = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(FIRST_PAUSE * 2 ** (attempt - 1))
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                answer = json.load(response)
            if answer.get("status") != "SandboxError":
                return dict(answer)
            problem = str(answer.get("message") or "SandboxError")
        except urllib.error.HTTPError as error:
            problem = f"HTTP {error.code}"
            if error.code < 500 and error.code != 429:
                break
        except (OSError, ValueError) as error:
            problem = str(error)
    raise SandboxError(f"Sandbox Fusion at {address} failed: {problem}")


def _outcome(answer: Mapping[str, Any], limits: Limits, seconds: float) -> Outcome:
    run = answer.get("run_result") or answer.get("compile_result") or {}
    stdout, stderr = str(run.get("stdout") or ""), str(run.get("stderr") or "")
    if run.get("status") == "TimeLimitExceeded":
        return Outcome("timeout", -1, stdout, stderr, seconds)
    code = run.get("return_code")
    code = 1 if code is None else int(code)
    status = "ok" if answer.get("status") == "Success" and code == 0 else "exit"
    return Outcome(status, code, stdout[: limits.output_bytes], stderr[: limits.output_bytes], seconds)
