"""Make the sample data: café orders in words, to be answered as JSON; no first message stands in both files.

python sft/data/make_data.py            # writes train.jsonl, val.jsonl, tools.jsonl, thinking.jsonl beside it
python sft/data/make_data.py --check    # reads them back and works out every answer from the question alone
"""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
TRAIN_ROWS, VAL_ROWS, FEW, SEED = 480, 64, 16, 20260101
NAMES = [
    *("Ana", "Ben", "Chen", "Dora", "Emil", "Fatima", "Goran", "Hana", "Ivan", "Jun"),
    *("Kofi", "Lena", "Mia", "Noor", "Omar", "Priya", "Quinn", "Rosa", "Sven", "Tara"),
]
ITEMS = ["latte", "muffin", "tea", "bagel", "espresso", "cookie", "juice", "sandwich", "mocha", "scone"]
COUNTS = ["one", "two", "three", "four", "five"]
GREETINGS = ["Hi, this is {}. {}, please.", "For {}: {}.", "{} would like {}.", "An order for {}, {}."]
ADDER = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two whole numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
Row = dict[str, Any]


def say(order: dict[str, int]) -> str:
    """{"tea": 2, "bagel": 1} -> "two teas and one bagel"."""
    parts = [f"{COUNTS[n - 1]} {item}{'s' if n > 1 else ''}" for item, n in order.items()]
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]


def answer(name: str, order: dict[str, int]) -> str:
    """What the assistant says."""
    return json.dumps({"customer": name, "items": order})


def order_row(random_: random.Random) -> Row:
    """A conversation of one or two turns."""
    name, items = random_.choice(NAMES), random_.sample(ITEMS, random_.randint(1, 3))
    order = {item: random_.randint(1, 5) for item in items}
    text = random_.choice(GREETINGS).format(name, say(order))
    messages = [
        {"role": "user", "content": text[0].upper() + text[1:]},
        {"role": "assistant", "content": answer(name, order)},
    ]
    if random_.random() < 0.5:
        if len(order) > 1 and random_.random() < 0.5:
            gone = random_.choice(list(order))
            text, order = f"No {gone} after all.", {k: v for k, v in order.items() if k != gone}
        else:
            more, count = random_.choice([i for i in ITEMS if i not in order]), random_.randint(1, 5)
            text, order = f"Also {say({more: count})}.", {**order, more: count}
        messages += [
            {"role": "user", "content": text},
            {"role": "assistant", "content": answer(name, order)},
        ]
    return {"messages": messages}


def understand(messages: list[Row]) -> list[str]:
    """The right answers to the user turns of an order, read from their words alone."""
    words = "|".join(COUNTS)
    first = messages[0]["content"]
    (name,) = [name for name in NAMES if re.search(rf"\b{name}\b", first)]
    order: dict[str, int] = {}
    answers = []
    for turn in messages[::2]:
        for count, item in re.findall(rf"\b({words}) ([a-z]+?)s?\b", turn["content"].lower()):
            order[item] = COUNTS.index(count) + 1
        gone = re.match(r"No (\w+) after all", turn["content"])
        if gone:
            del order[gone.group(1)]
        answers.append(answer(name, order))
    return answers


def tools_row(a: int, b: int) -> Row:
    """One call of a tool, its result, and the answer."""
    call = {"id": "call_0", "type": "function", "function": {"name": "add", "arguments": {"a": a, "b": b}}}
    return {
        "messages": [
            {"role": "user", "content": f"What is {a} + {b}?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_0", "content": str(a + b)},
            {"role": "assistant", "content": f"{a} + {b} = {a + b}"},
        ],
        "tools": [ADDER],
    }


def thinking_row(a: int, b: int) -> Row:
    """The same question, answered after reasoning."""
    tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    thought = f"{a // 10 * 10} + {b // 10 * 10} = {tens}, {a % 10} + {b % 10} = {ones}, together {a + b}."
    return {
        "messages": [
            {"role": "user", "content": f"What is {a} + {b}?"},
            {"role": "assistant", "content": f"<think>\n{thought}\n</think>\n\n{a + b}"},
        ],
        "enable_thinking": True,
    }


def make_files() -> dict[str, list[Row]]:
    """All files by name."""
    random_ = random.Random(SEED)
    rows: dict[str, Row] = {}
    while len(rows) < TRAIN_ROWS + VAL_ROWS:
        row = order_row(random_)
        rows.setdefault(row["messages"][0]["content"], row)
    orders = list(rows.values())
    pairs = [(random_.randint(10, 99), random_.randint(10, 99)) for _ in range(FEW)]
    return {
        "train": orders[:TRAIN_ROWS],
        "val": orders[TRAIN_ROWS:],
        "tools": [tools_row(a, b) for a, b in pairs],
        "thinking": [thinking_row(a, b) for a, b in pairs],
    }


def problems_in(name: str, rows: list[Row]) -> list[str]:
    """Wrong answers of a file, a line each."""
    found = []
    for number, row in enumerate(rows, 1):
        turns = row["messages"]
        said = [turn["content"] for turn in turns if turn["role"] == "assistant"]
        if name in ("train", "val"):
            wrong = said != understand(turns)
        else:
            total = sum(int(n) for n in re.findall(r"\d+", turns[0]["content"]))
            equations = re.findall(r"(\d+) \+ (\d+) = (\d+)", said[-1])
            wrong = re.findall(r"\d+", said[-1])[-1] != str(total) or any(
                int(a) + int(b) != int(c) for a, b, c in equations
            )
        if wrong:
            found.append(f"{name}.jsonl row {number}: {said}")
    return found


def read(name: str) -> list[Row]:
    """Rows of a file beside this one."""
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Write the files, or check them."""
    names = list(make_files())
    if "--check" in sys.argv[1:]:
        found = [line for name in names for line in problems_in(name, read(name))]
        sys.exit("\n".join(found) or 0)
    for name, rows in make_files().items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (FOLDER / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
