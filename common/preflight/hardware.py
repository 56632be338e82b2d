"""GPUs, Ray, CPUs, shared memory and ports: is there what the run will ask for?"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

from common.check_env import services
from common.preflight.finding import Finding, error, note, warning
from common.preflight.job import ROLLOUT, Job

_GIB = 1024**3
# verl asks for a placement bundle of this many CPUs beside each GPU (single_controller/ray/base.py:192).
_CPUS_PER_GPU = 3


def check(job: Job) -> Iterator[Finding]:
    """Everything about the machine except memory estimates and disk."""
    if job.on_gpu:
        yield from _gpus(job)
    yield from _shared_memory(job)
    if job.rl:
        yield from _ray(job)
    else:
        yield from _rendezvous(job)


def _gpus(job: Job) -> Iterator[Finding]:
    gpus, wanted = job.machine.gpus, job.number("trainer.n_gpus_per_node")
    # The head of a cluster may have none of its own.
    if len(gpus) < wanted and not (job.rl and job.number("trainer.nnodes") > 1):
        visible = job.machine.environment.get("CUDA_VISIBLE_DEVICES")
        limited = f" (CUDA_VISIBLE_DEVICES={visible})" if visible is not None else ""
        here = "this node" if job.number("trainer.nnodes") > 1 else "this machine"
        yield error(
            f"N_GPUS={wanted}, but {here} shows {len(gpus)} GPUs{limited}: use N_GPUS={max(1, len(gpus))}",
            "N_GPUS",
        )
    share = float(job.get(f"{ROLLOUT}.gpu_memory_utilization", 0)) if job.rl else 0.0
    for each in gpus[:wanted]:
        total, free = each.memory_total, each.memory_free
        if not total or free is None:
            continue
        used = (total - free) / 1024
        if free < share * total:
            yield error(
                f"GPU {each.index} has {free / 1024:.1f} of {total / 1024:.1f} GiB free, the rollout engine asks for "
                f"{share:g} x {total / 1024:.1f} = {share * total / 1024:.1f} GiB (nvidia-smi shows what holds it): "
                f"end it, or use GPU_MEMORY_UTILIZATION={max(0.1, int(free / total * 10) / 10):g}",
                "GPU_MEMORY_UTILIZATION",
            )
        elif free < 0.9 * total:
            yield warning(
                f"GPU {each.index}: {used:.1f} of {total / 1024:.1f} GiB are in use by something else (nvidia-smi)"
            )


def _shared_memory(job: Job) -> Iterator[Finding]:
    free, local = job.machine.shm_free, job.number("trainer.n_gpus_per_node")
    if free < 0:
        yield warning("/dev/shm is missing: Ray, NCCL and DataLoaders need it; docker: --shm-size=16g")
        return
    if job.rl and not job.on_gpu:
        bucket = job.number(f"{ROLLOUT}.checkpoint_engine.update_weights_bucket_megabytes", 0) * 1024**2
        if free < 2 * bucket * local:
            yield error(
                f"/dev/shm has {free / _GIB:.2f} GiB, sending weights takes two buckets of {bucket / _GIB:.2f} GiB "
                f"per process = {2 * bucket * local / _GIB:.2f} GiB: docker: --shm-size=4g"
            )
    elif free < _GIB * min(local, 4):
        yield warning(
            f"/dev/shm has {free / _GIB:.2f} GiB free; NCCL and Ray need it for {local} GPUs: docker: "
            "--shm-size=16g or --ipc=host"
        )


def _ray(job: Job) -> Iterator[Finding]:
    init = "ray_kwargs.ray_init"
    address, environment = str(job.get(f"{init}.address", "")), job.machine.environment
    nodes, each = job.number("trainer.nnodes"), job.number("trainer.n_gpus_per_node")
    current = [f for f in services.ray(environment) if f.status == "warning"]
    if nodes == 1 and address != "local":
        if address and address != "auto":
            yield note(f"the run joins the Ray cluster at {address}")
        elif current:
            yield error(
                f"{current[0].detail} without a word: add +{init}.address=local for a run of its own, or end the "
                "cluster with ray stop"
            )
    elif nodes == 1 and current:
        yield note(
            f"a Ray cluster runs here ({current[0].detail.partition(':')[0]}); this run starts its own beside it"
        )
    given = {name: job.get(f"{init}.{name}") for name in ("num_cpus", "num_gpus")}
    attached = address not in ("", "local")
    if attached and any(value is not None for value in given.values()):
        named = ", ".join(f"{init}.{name}={value}" for name, value in given.items() if value is not None)
        yield error(
            f"{named}: a cluster that runs already (address={address}) decides that itself; leave it out"
        )
    units = job.number("transfer_queue.backend.SimpleStorage.num_data_storage_units", 0)
    pool = each * nodes
    if job.get("reward.reward_model.enable") and job.get("reward.reward_model.enable_resource_pool"):
        pool += job.number("reward.reward_model.n_gpus_per_node") * job.number(
            "reward.reward_model.nnodes", 0
        )
    # TransferQueue's storage units and their controller hold a CPU each; starting any other actor takes a free one.
    needed = _CPUS_PER_GPU * pool + units + 2
    if attached:
        if address == "auto" and not current:
            yield _no_cluster(nodes, address, "nothing runs here")
        else:
            yield from _cluster(job, address, needed)
        return
    cpus = given["num_cpus"] if isinstance(given["num_cpus"], int) else job.machine.cores
    if cpus < needed:
        yield error(
            f"Ray would have {cpus} CPUs, verl asks it for {_CPUS_PER_GPU} x {pool} GPUs + {units} storage units + 2 = "
            f"{needed} and waits for ever without a word: add ray_kwargs.ray_init.num_cpus={needed} (Ray only counts "
            "them), or fewer transfer_queue.backend.SimpleStorage.num_data_storage_units",
            f"{init}.num_cpus",
        )
    gpus = given["num_gpus"]
    if isinstance(gpus, int) and gpus < each:
        yield error(
            f"{init}.num_gpus={gpus} is below trainer.n_gpus_per_node={each}: Ray would never place the workers",
            "N_GPUS",
        )


def _cluster(job: Job, address: str, cpus: int) -> Iterator[Finding]:
    """Nodes and resources of a running cluster; the run would wait for what it lacks."""
    nodes, each = job.number("trainer.nnodes"), job.number("trainer.n_gpus_per_node")
    try:
        found = cluster_nodes(address)
    except ValueError as problem:
        yield _no_cluster(nodes, address, str(problem))
        return
    able = [node for node in found if node.get("GPU", 0) >= each]
    if len(able) < nodes:
        has = ", ".join(f"{node.get('GPU', 0):g}" for node in found)
        yield error(
            f"NNODES x N_GPUS = {nodes} x {each} GPUs, but the Ray cluster has {len(found)} nodes with {has} "
            f"GPUs: start the missing nodes, or lower NNODES or N_GPUS",
            "NNODES",
        )
    total = sum(node.get("CPU", 0) for node in found)
    if total < cpus:
        yield error(
            f"the Ray cluster has {total:g} CPUs, verl asks it for {cpus} and waits for ever without a word: start its "
            "nodes with ray start --num-cpus=...",
            "NNODES",
        )


def _no_cluster(nodes: int, address: str, why: str) -> Finding:
    return error(
        f"NNODES={nodes}: no Ray cluster answers at {address} ({why}): `ray start --head` on the first node, "
        "`ray start --address=HEAD:6379` on the others, then launch on the head",
        "NNODES",
    )


def cluster_nodes(address: str, seconds: float = 30.0) -> list[dict[str, float]]:
    """Resources of every living node of the cluster at *address*, asked for in a process of its own.

    Raises:
        ValueError: none answers; the message says why.
    """
    script = (
        "import json, sys, ray\n"
        "ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')\n"
        "print('NODES' + json.dumps([n['Resources'] for n in ray.nodes() if n['Alive']]))\n"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, address],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"no answer within {seconds:g} s") from None
    for line in done.stdout.splitlines():
        if line.startswith("NODES"):
            return list(json.loads(line[len("NODES") :]))
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    raise ValueError(lines[-1].strip()[:200] if lines else f"exit code {done.returncode}")


def _rendezvous(job: Job) -> Iterator[Finding]:
    """torchrun on several nodes: node 0 listens on MASTER_PORT."""
    options = job.command.options
    if "master_port" not in options:
        return
    port = options["master_port"]
    if not port.isdigit() or not 0 < int(port) < 65536:
        yield error(f"MASTER_PORT={port} is no port: use a number between 1024 and 65535", "MASTER_PORT")
    elif options.get("node_rank") == "0" and not job.machine.port_free(int(port)):
        yield error(
            f"MASTER_PORT={port} is taken on this node: ss -ltnp 'sport = :{port}' shows by what; choose another, the "
            "same on every node",
            "MASTER_PORT",
        )
