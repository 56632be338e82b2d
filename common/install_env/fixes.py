"""The likely fix for a failed step, read off its output."""

from __future__ import annotations

import re

# Pattern in the output, and what to do about it. The first that matches counts: specific ones come first.
_FIXES: tuple[tuple[str, str], ...] = (
    (
        r"no space left|os error 28\b|disk quota|os error 122\b",
        "the disk is full: free some space, or point UV_CACHE_DIR and TMPDIR at another disk",
    ),
    (
        r"permission denied|os error 13\b|read-only file system|os error 30\b|externally.managed",
        "no permission to write there: activate an environment of your own, or deactivate this one and let "
        "setup_env.sh make .venv",
    ),
    (
        r"ensurepip|no module named '?(venv|pip)\b",
        "this Python cannot make environments: sudo apt install python3-venv (python3.11-venv and so on for "
        "another version), or activate a conda environment",
    ),
    (
        r"certificate|unknownissuer|ssl:|tls handshake",
        "the server's certificate is not trusted: set SSL_CERT_FILE to your organisation's bundle",
    ),
    (
        r"\b(401 unauthorized|403 forbidden|407 proxy|unauthorized|forbidden)\b",
        "the package index or the proxy refuses access: check user name and password in UV_DEFAULT_INDEX or "
        "HTTPS_PROXY",
    ),
    (
        r"dns error|failed to lookup|name resolution|connection (refused|reset|aborted)|could not connect"
        r"|timed? ?out|error sending request|failed to fetch|network is unreachable|tunnel"
        r"|newconnectionerror|max retries",
        "no way to the package index: check the network, set HTTPS_PROXY, or name a mirror near you in "
        "UV_DEFAULT_INDEX",
    ),
    (
        r"\b(gcc|g\+\+|cc|c\+\+|cc1plus)\b.*(not found|no such file|failed)|python\.h"
        r"|unable to find a compiler",
        "a package has to be compiled and there is no compiler: sudo apt install build-essential python3-dev",
    ),
    (
        r"no wheels? with a matching|no solution found|not found in the package registry"
        r"|no matching distribution|not compatible with",
        "the index has no build for this Python or machine: use Python 3.11 on x86_64, or another mirror",
    ),
    (
        r"out of memory|cannot allocate|\bkilled\b",
        "the machine ran out of memory: close other programs",
    ),
)


def likely_fix(output: str) -> str:
    """What to do about a step that printed this; "" when nothing known is in it."""
    return next((fix for pattern, fix in _FIXES if re.search(pattern, output, re.IGNORECASE)), "")
