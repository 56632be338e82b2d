"""verl on a machine without a GPU: loaded by verl itself through ``VERL_USE_EXTERNAL_MODULES``.

Imported by ``verl/__init__`` in the driver, every Ray actor and every vLLM worker. It registers a
platform and changes the few places that take a CUDA device for granted or are slow without one, each when its
module is imported.
"""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import wrapt

from common import verl_fixes  # noqa: F401  (importing it mends what is wrong on every machine)
from common.cpu import heap, lean_engine, platform, vllm_patches  # noqa: F401  (importing platform registers it)
from common.cpu.versions import require


def single_gloo_backend(distributed: Any) -> None:
    """Name gloo once.

    Upstream: ``verl.utils.distributed.initialize_global_process_group{,_ray}`` builds
    ``cpu:gloo,<device>:<backend>``, here ``cpu:gloo,cpu:gloo``.
    Without: torch refuses the duplicate device, no process group starts.
    """
    original = distributed.init_process_group

    def init_process_group(backend: str | None = None, *args: Any, **kwargs: Any) -> Any:
        return original("cpu:gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *args, **kwargs)

    distributed.init_process_group = init_process_group


def no_pinned_offload(transformer_impl: Any) -> None:
    """Keep a forward-only model where it is.

    Upstream: ``verl.workers.engine.fsdp.transformer_impl`` uses ``CPUOffloadPolicy(pin_memory=True)``
    for the reference policy. Without: pinning memory raises where there is no CUDA.
    """

    class KeepInPlace:
        def __new__(cls, *_args: Any, **_kwargs: Any) -> Any:
            return None

    transformer_impl.CPUOffloadPolicy = KeepInPlace


def copy_received_weights(transfer: Any) -> None:
    """Hand vLLM copies of the received tensors.

    Upstream: ``BucketedWeightReceiver.receive_weights`` calls ``tensor.to(device)``, which on a CPU
    copies nothing, so the tensors alias the shared bucket that is reused and then closed.
    Without: "cannot close exported pointers exist", or weights of the next bucket.
    """
    original = transfer.BucketedWeightReceiver.receive_weights

    def receive_weights(self: Any, on_bucket_received: Any) -> None:
        def on_copies(weights: list, is_last: bool) -> None:
            on_bucket_received([(name, tensor.clone()) for name, tensor in weights], is_last)

        original(self, on_copies)

    transfer.BucketedWeightReceiver.receive_weights = receive_weights


def all_to_all_in_one_tensor(ulysses: Any) -> None:
    """Exchange one tensor instead of a list of them.

    Upstream: ``verl.utils.ulysses.all_to_all_tensor`` calls ``torch.distributed.all_to_all``.
    Without: "Backend gloo does not support alltoall", so no sequence parallelism on the CPU.
    """
    import torch

    def all_to_all_tensor(
        local_input: Any, scatter_dim: int, gather_dim: int, group: Any = None, async_op: bool = False
    ) -> Any:
        group = ulysses.get_ulysses_sequence_parallel_group() if group is None else group
        parts = torch.distributed.get_world_size(group)
        sent = torch.stack(torch.tensor_split(local_input, parts, scatter_dim))
        received = torch.empty_like(sent)
        torch.distributed.all_to_all_single(received, sent, group=group)
        result = torch.cat(received.unbind(), dim=gather_dim)
        return (lambda: result) if async_op else result

    ulysses.all_to_all_tensor = all_to_all_tensor


def poll_often(replay_buffer: Any) -> None:
    """Look for finished rollouts every 0.05 s instead of every 2 s.

    Upstream: ``verl.trainer.ppo.v1.replay_buffer.ReplayBuffer(poll_interval=2.0)``, not in the config.
    Why: with small models a CPU step takes a few seconds, of which the wait would be a third.
    """
    original = replay_buffer.ReplayBuffer.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("poll_interval", 0.05)
        original(self, *args, **kwargs)

    replay_buffer.ReplayBuffer.__init__ = init


def spawn_by_fork() -> None:
    """Have vLLM's engine process start through the fork server of this run, if there is one.

    Upstream: vLLM's CPU platform insists on multiprocessing's spawn. Without: five seconds of imports.
    """
    if os.environ.get("VERL_TRAINING_FORK_SOCKET"):
        multiprocessing.set_executable(str(Path(__file__).with_name("fork_python.sh")))


def install() -> None:
    """Register every patch; a module that is never imported is never touched."""
    require("verl")
    hook = wrapt.register_post_import_hook
    hook(single_gloo_backend, "torch.distributed")
    hook(no_pinned_offload, "verl.workers.engine.fsdp.transformer_impl")
    hook(copy_received_weights, "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer")
    hook(poll_often, "verl.trainer.ppo.v1.replay_buffer")
    hook(heap.bounded_heap, "verl.workers.engine.fsdp.transformer_impl")
    hook(lean_engine.lean_model, "verl.workers.engine.fsdp.transformer_impl")
    hook(lean_engine.label_wanted, "verl.workers.engine.fsdp.transformer_impl")
    hook(lean_engine.log_probs_of_wanted, "verl.utils.experimental.torch_functional")
    hook(all_to_all_in_one_tensor, "verl.utils.ulysses")
    vllm_patches.register()
    spawn_by_fork()


install()
