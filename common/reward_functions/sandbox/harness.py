"""Runs inside the sandbox: load solution.py, evaluate calls, report each value. Never imported.

Reads {"setup", "calls": [{"name", "args"} | {"expression"}], "mark"} from standard input and writes one
line per
call to standard output, `mark` in front. Expected values stay outside, so a solution cannot read them here.
"""

import json
import os
import sys


def main() -> None:
    """Evaluate every call; what the solution prints itself goes nowhere."""
    report = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    job = json.loads(sys.stdin.read())
    space: dict = {"__name__": "solution"}

    def tell(*line: str) -> None:
        os.write(report, f"\n{job['mark']}{json.dumps(line)}\n".encode())

    try:
        if job["setup"]:
            exec(compile(job["setup"], "setup.py", "exec"), space)  # noqa: S102 (what this file is for)
        with open("solution.py", encoding="utf-8") as file:  # noqa: PTH123
            exec(compile(file.read(), "solution.py", "exec"), space)  # noqa: S102
    except BaseException as error:
        tell("load", f"{type(error).__name__}: {error}"[:300])
        return
    for call in job["calls"]:
        try:
            if "expression" in call:
                value = eval(call["expression"], space)  # noqa: S307
            else:
                name = call["name"]
                function = space.get(name) or getattr(space["Solution"](), name)
                value = function(*call["args"])
            tell("value", repr(value))
        except BaseException as error:
            tell("error", f"{type(error).__name__}: {error}"[:300])


if __name__ == "__main__":
    main()
