"""Make the sample data: additions of two small numbers, no question in both files.

python grpo/data/make_data.py            # writes train.jsonl (480 rows) and val.jsonl (64 rows) beside it
"""

from __future__ import annotations

import json
import random
from pathlib import Path

TRAIN_ROWS, VAL_ROWS, SEED = 480, 64, 20260101


def make_rows() -> list[dict[str, str]]:
    """All rows, shuffled, each with its answer computed: 2..30 plus 2..30, every question once."""
    pairs = [(a, b) for a in range(2, 31) for b in range(2, 31)]
    random.Random(SEED).shuffle(pairs)
    return [
        {"question": f"What is {a} + {b}? Reply with only the number.", "answer": str(a + b)}
        for a, b in pairs[: TRAIN_ROWS + VAL_ROWS]
    ]


def main() -> None:
    """Write both files."""
    rows = make_rows()
    folder = Path(__file__).resolve().parent
    for name, part in (("train", rows[:TRAIN_ROWS]), ("val", rows[TRAIN_ROWS:])):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
