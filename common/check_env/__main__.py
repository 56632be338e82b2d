"""The doctor's command line: python -m common.check_env [--json] [--installed]; exit code 1 for any error.

Standard library only, so that it also reports on an environment in which little or nothing works.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common.check_env import finding, gpu, imports, machine, packages, services
from common.check_env.finding import Finding


def examine(installing: bool = False) -> list[Finding]:
    """All findings, in the order of the report. `installing`: only what an installation answers for."""
    prefix = Path(sys.prefix)
    with ThreadPoolExecutor(max_workers=1) as pool:
        driver = gpu.query()
        held, source = packages.current_set(prefix, has_gpu=bool(driver and driver.gpus))
        probing = pool.submit(imports.probe, held, every=installing)
        found = [
            *packages.environment(prefix, held, source, installing),
            *packages.versions(prefix, held, installing),
            *packages.conflicts(prefix, held),
            *packages.bytecode(prefix),
            *packages.shadowed(),
        ]
        rest = list(machine.disk())
        if not installing:
            rest += [
                *machine.memory(held.kind),
                *machine.compilers(held.kind),
                *services.ports(),
                *services.ray(os.environ),
                *services.hugging_face(os.environ),
                *services.wandb(os.environ),
            ]
        facts = probing.result()
    return [*found, *imports.report(held, facts), *machine.devices(driver, held, facts.get("torch")), *rest]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; the exit code."""
    parser = argparse.ArgumentParser(prog="./setup_env.sh --check", description=__doc__)
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    parser.add_argument("--installed", action="store_true", help="only what setup_env.sh has just installed")
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        near = difflib.get_close_matches(unknown[0], ["--json"], n=1)
        hint = f"did you mean {near[0]}?" if near else "--json is all that goes with --check"
        print(f"error: unknown argument {unknown[0]!r}: {hint}", file=sys.stderr)
        return 2
    if sys.stderr.isatty():
        print("examining, about 15 seconds ...", file=sys.stderr, flush=True)
    found = examine(installing=options.installed)
    if options.json:
        print(finding.as_json(found))
    else:
        finding.show(found)
    return 1 if finding.counts(found)[finding.ERROR] else 0


if __name__ == "__main__":
    sys.exit(main())
