"""An update as FSDP2 and AdamW do it, one process on the CPU: live bytes of tensors against what is counted."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoConfig, AutoModelForCausalLM

from common.cpu import lean_layers, lean_lora
from common.memory import engine_memory, read_shape
from common.memory.settings import Engine, Lengths, engine

TOKENS = 768
SHAPE = {
    "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 8192, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    store = tmp_path_factory.mktemp("store") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def live_peak(work: Any) -> int:
    """Bytes of tensors at the most during *work*, beyond those from before."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def counted(config: Any, checkpointing: bool, rank: int) -> Engine:
    return engine(
        read_shape(config.to_dict()),
        {"use_fused_kernels": True, "enable_gradient_checkpointing": checkpointing, "lora_rank": rank},
        {"mixed_precision": {"param_dtype": "float32"}},
        Lengths(TOKENS, TOKENS, 1), ranks=1, local_ranks=1, cpu=True, head="",
        train=(TOKENS, None), infer=(TOKENS, None),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("tied", "rank"), [(True, 0), (False, 0), (True, 16)])
def test_an_update_takes_what_is_counted(tied: bool, rank: int, checkpointing: bool, mesh: Any) -> None:
    config = AutoConfig.for_model("llama", **SHAPE, tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32).train()
    lean_layers.install(model)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def loss(self: Any, input_ids: Any, **_: Any) -> Any:
        hidden = self.model(input_ids=input_ids, use_cache=False)[0][0]
        every = torch.log_softmax(self.lm_head(hidden), dim=-1)
        return -every.gather(-1, input_ids[0].unsqueeze(-1)).mean()

    model.forward = types.MethodType(loss, model)
    # As verl.utils.fsdp_utils.apply_fsdp2 wraps it.
    own_units = [*model.model.layers, *([] if tied else [model.model.embed_tokens, model.lm_head])]
    if rank:
        model = get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear"))
        lean_lora.install(model)
    for module in own_units:
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    ids = torch.randint(2, SHAPE["vocab_size"], (1, TOKENS), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        model(input_ids=ids).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # AdamW makes its moments in the first one
    own = counted(config, checkpointing, rank)
    said = sum(engine_memory.update(own).values())
    assert said == pytest.approx(live_peak(step), rel=0.06)
    held = sum(
        tensor.to_local().numel() * 4 if hasattr(tensor, "to_local") else tensor.numel() * 4
        for state in optimizer.state.values()
        for tensor in state.values()
        if tensor.numel() > 1
    )
    assert engine_memory.optimizer(own) == held
    assert engine_memory.weights(own) == sum(p.to_local().numel() * 4 for p in model.parameters())
