"""Write the sample data: the additions of GRPO's sample, so that the two methods can be compared.

python -m ppo.data.make_data             # writes train.jsonl (480 rows) and val.jsonl (64 rows) beside it
python -m ppo.data.make_data --check     # only checks every answer and that no question is in both files
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from grpo.data.make_data import TRAIN_ROWS, make_rows

FOLDER = Path(__file__).resolve().parent


def check() -> list[str]:
    """One line per row whose answer is wrong or whose question was there before."""
    problems, seen = [], set()
    for name in ("train.jsonl", "val.jsonl"):
        for number, line in enumerate((FOLDER / name).read_text(encoding="utf-8").splitlines(), 1):
            row = json.loads(line)
            a, b = map(int, re.findall(r"\d+", row["question"]))
            if row["answer"] != str(a + b):
                problems.append(f"{name} line {number}: {a} + {b} is not {row['answer']}")
            if row["question"] in seen:
                problems.append(f"{name} line {number}: '{row['question']}' was there before")
            seen.add(row["question"])
    return problems


def main() -> None:
    """Write both files, then check them."""
    if "--check" not in sys.argv[1:]:
        rows = make_rows()
        for name, part in (("train", rows[:TRAIN_ROWS]), ("val", rows[TRAIN_ROWS:])):
            text = "".join(json.dumps(row) + "\n" for row in part)
            (FOLDER / f"{name}.jsonl").write_text(text, encoding="utf-8")
    sys.exit("\n".join(check()) or None)


if __name__ == "__main__":
    main()
