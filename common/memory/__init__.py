"""How much memory a run takes, on GPUs and on hosts, from its verl config and the model's config.json alone.

    python -m common.memory grpo --model Qwen/Qwen2.5-7B-Instruct --gpus 8 --gpu-memory 80GB

Method, formulas and their sources: docs/memory.md.
"""

from common.memory.architecture import Shape, UnknownArchitectureError, read_shape
from common.memory.estimate import Estimate, Phase, estimate
from common.memory.lora import lora_parameters

__all__ = [
    "Estimate",
    "Phase",
    "Shape",
    "UnknownArchitectureError",
    "estimate",
    "lora_parameters",
    "read_shape",
]
