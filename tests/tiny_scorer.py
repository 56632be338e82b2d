"""A classifier of random weights with a chat template, as small as tests/tiny_model.py's language model."""

from __future__ import annotations

from pathlib import Path

from tiny_model import tiny_model, tiny_tokenizer


def tiny_scorer(folder: Path, labels: int = 1, seed: int = 0, template: bool = True) -> Path:
    """Save a ``LlamaForSequenceClassification`` with *labels* labels and its tokenizer into *folder*."""
    import torch
    from transformers import AutoModelForSequenceClassification

    tiny_model(folder / "base", seed=seed)
    torch.manual_seed(seed + 1)
    scorer = AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=labels)
    # Heads start near zero: these make the scores of different answers differ visibly.
    torch.nn.init.normal_(scorer.score.weight, std=0.5)
    scorer.save_pretrained(folder)
    (tiny_tokenizer() if template else tiny_tokenizer(template=None)).save_pretrained(folder)
    return folder
