"""Run by torchrun: saves tiny models with verl's own FSDPCheckpointManager, as SFT and the actor of RL do.

python -m torch.distributed.run --nproc-per-node W write_shards.py MODEL OUT
writes OUT/full, OUT/lora and beside each what the trained model answers: OUT/<name>.logits.pt
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, AutoTokenizer
from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager


def trained(source: Path, lora: bool) -> Any:
    """A model in which everything that learns got another value."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    torch.manual_seed(7)
    if lora:
        import peft

        settings = peft.LoraConfig(
            r=4, lora_alpha=16, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"
        )
        model = peft.get_peft_model(model, settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def main() -> None:
    source, out = map(Path, sys.argv[1:])
    torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),), mesh_dim_names=("fsdp",))
    for name in ("full", "lora"):
        model = trained(source, lora=name == "lora")
        if torch.distributed.get_rank() == 0:
            torch.save(model(torch.arange(8).unsqueeze(0)).logits.detach(), out / f"{name}.logits.pt")
        torch.distributed.barrier()
        fully_shard(model, mesh=mesh)
        manager = FSDPCheckpointManager(
            model=model,
            optimizer=torch.optim.SGD([p for p in model.parameters() if p.requires_grad]),
            processing_class=AutoTokenizer.from_pretrained(source),
            checkpoint_config={"save_contents": ["model"], "load_contents": ["model"]},
        )
        manager.save_checkpoint(str(out / name), global_step=1)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
