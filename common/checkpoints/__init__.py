"""Any model or verl checkpoint by its path, its run's name or an alias; shards and adapters as one HF folder.

    from common.checkpoints import merge, resolve
    model = merge(resolve("last:grpo"))      # a Hugging Face folder that transformers and vLLM load
    model.path, model.dtype                  # LoRA folded in; the precision that the run computed in

`python -m common.checkpoints list|merge|export|prune|verify` is the same for the shell. Importing this package
is light: torch, peft and transformers are imported when something has to be merged.
"""

from common.checkpoints.errors import CheckpointError
from common.checkpoints.merging import Merged, export, launch_model, merge
from common.checkpoints.naming import default_output, resolve
from common.checkpoints.place import Checkpoint

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Merged",
    "default_output",
    "export",
    "launch_model",
    "merge",
    "resolve",
]
