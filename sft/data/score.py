"""How well a model takes held-out orders: loss on the assistant turns, and exact answers to first turns.

python sft/data/score.py MODEL [ROWS]    # MODEL: folder, hub id or smollm2; ROWS of val.jsonl, default all
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from make_data import read  # noqa: E402


def held_out_loss(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> float:
    """Mean negative log-likelihood per learned token (nats)."""
    import torch

    from common.chat_tokens import turns

    total, count = 0.0, 0
    for row in rows:
        texts = turns.learned(turns.renderer(tokenizer, None, None), row["messages"])
        for ids, mask in turns.encode(tokenizer, texts):
            with torch.no_grad():
                logs = model(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
            picked = logs.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
            total -= float(picked[torch.tensor(mask[1:], dtype=torch.bool)].sum())
            count += sum(mask[1:])
    return total / count


def exact_answers(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> int:
    """Rows whose first answer, decoded greedily, is the right JSON to the letter."""
    import torch

    chats = [row["messages"][:1] for row in rows]
    tokenizer.padding_side = "left"
    batch = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, return_dict=True, return_tensors="pt", padding=True
    )
    with torch.no_grad():
        found = model.generate(**batch, max_new_tokens=64, do_sample=False)[:, batch["input_ids"].shape[1] :]
    texts = tokenizer.batch_decode(found, skip_special_tokens=True)
    return sum(text == row["messages"][1]["content"] for text, row in zip(texts, rows, strict=True))


def main() -> None:
    """Print both figures."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from common.cpu.model import resolve_model_path

    folder = resolve_model_path(sys.argv[1])
    rows = read("val")[: int(sys.argv[2]) if len(sys.argv) > 2 else None]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loss, right = held_out_loss(model, tokenizer, rows), exact_answers(model, tokenizer, rows)
    print(f"{right} of {len(rows)} first answers exactly right, loss {loss:.3f}")


if __name__ == "__main__":
    main()
