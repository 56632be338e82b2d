"""End a verl run from inside a reward worker, where an exception alone is swallowed.

verl 0.9.1 logs an exception of compute_score, marks the group as failed and pads the batch
(trainer/ppo/v1/agent_loop_tq.py:133-141, replay_buffer.py:506). So the process that started the run, the Ray
driver of this job, is told to terminate; Ray then takes every actor down.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

# Ray forwards a worker's stderr to the driver's console about twice a second.
FLUSH_SECONDS = 1.5


def stop_run(message: str) -> None:
    """Terminate this job's Ray driver, on whatever node it runs; without Ray, leave it to the exception."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return
    print(f"stopping the run: {message}", file=sys.stderr, flush=True)
    driver = _driver(ray)
    if driver is None:
        print("the run's driver was not found; end it by hand", file=sys.stderr, flush=True)
        return
    address, pid = driver
    time.sleep(FLUSH_SECONDS)
    here = ray.util.get_node_ip_address()
    if address == here:
        os.kill(pid, signal.SIGTERM)
        return
    node = next((n["NodeID"] for n in ray.nodes() if n["Alive"] and n["NodeManagerAddress"] == address), None)
    if node is None:
        print(f"the driver's node {address} was not found; end the run by hand", file=sys.stderr, flush=True)
        return
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    place = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    ray.remote(num_cpus=0, scheduling_strategy=place)(os.kill).remote(pid, int(signal.SIGTERM))


def _driver(ray: Any) -> tuple[str, int] | None:
    """(IP address, pid) of the driver of the job this worker belongs to."""
    job = ray.get_runtime_context().get_job_id()
    for entry in ray._private.state.jobs():  # Ray's public list of jobs needs the dashboard
        if entry["JobID"] == job:
            return entry["DriverIPAddress"], int(entry["DriverPid"])
    return None
