"""The sample pairs: small questions, a plain right answer against one that pads, dodges or is wrong.

    python dpo/data/make_data.py          # writes train.jsonl and val.jsonl beside this file

Everything is computed, nothing is taken from anywhere: the chosen answer is right, a wrong one is wrong, and no
question stands in both files.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
TRAIN, VAL = 480, 96

Question = tuple[str, str, str, str]  # question, sentence with {} for the result, right result, wrong result


def add(draw: random.Random) -> Question:
    a, b = draw.randint(2, 60), draw.randint(2, 60)
    return (
        f"What is {a} plus {b}?",
        f"{a} plus {b} is {{}}.",
        str(a + b),
        str(a + b + draw.choice((-3, 2, 10))),
    )


def take(draw: random.Random) -> Question:
    a, b = draw.randint(30, 99), draw.randint(2, 29)
    right, wrong = a - b, a - b + draw.choice((-2, 4, 10))
    return (
        f"I had {a} apples and gave {b} away. How many are left?",
        "You have {} apples left.",
        str(right),
        str(wrong),
    )


def double(draw: random.Random) -> Question:
    a = draw.randint(6, 400)
    return f"What is twice {a}?", f"Twice {a} is {{}}.", str(2 * a), str(2 * a + draw.choice((-1, 3, 10)))


def days(draw: random.Random) -> Question:
    start, later = draw.randrange(7), draw.randint(1, 60)
    right = (start + later) % 7
    wrong = (right + draw.randint(1, 6)) % 7
    asked = f"Today is {DAYS[start]}. Which day is it in {later} day{'s' if later > 1 else ''}?"
    return asked, "It will be {}.", DAYS[right], DAYS[wrong]


def minutes(draw: random.Random) -> Question:
    hours = draw.randint(2, 90)
    asked = f"How many minutes are {hours} hours?"
    return asked, f"{hours} hours are {{}} minutes.", str(60 * hours), str(100 * hours)


def letters(draw: random.Random) -> Question:
    word = "".join(draw.choice("bcdfghklmnprstvw") + draw.choice("aeiou") for _ in range(draw.randint(2, 5)))
    wrong = len(word) + draw.choice((-1, 1, 2))
    return f"How many letters does the word {word} have?", "It has {} letters.", str(len(word)), str(wrong)


QUESTIONS: tuple[Callable[[random.Random], Question], ...] = (add, take, double, days, minutes, letters)
PADDING = (
    "That is a really great question! Let me think about it carefully. {} I hope this helps, and please feel free to "
    "ask me anything else!",
    "As an AI language model, I have to say that questions like this can be tricky. {} But please check it yourself.",
    "Well, well, what an interesting thing to ask. There are many ways to look at it. {} Have a wonderful day!",
)
DODGES = (
    "I am not sure that I can help with this. Maybe you could ask someone else or look it up.",
    "It depends on many things, so it is hard to say anything definite about it.",
    "Why do you want to know? Let us talk about something more exciting instead.",
)


def pair(draw: random.Random) -> dict[str, str]:
    """One pair: what the rejected answer does wrong is drawn too."""
    question, sentence, right, wrong = draw.choice(QUESTIONS)(draw)
    chosen = sentence.format(right)
    kind = draw.choices(("padded", "dodged", "wrong"), (45, 45, 10))[0]
    rejected = {
        "padded": draw.choice(PADDING).format(chosen),
        "dodged": draw.choice(DODGES),
        "wrong": sentence.format(wrong),
    }[kind]
    return {"prompt": question, "chosen": chosen, "rejected": rejected}


def make(seed: int = 7) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """(training pairs, validation pairs); questions are unique over both."""
    draw = random.Random(seed)
    pairs: dict[str, dict[str, str]] = {}
    while len(pairs) < TRAIN + VAL:
        new = pair(draw)
        pairs.setdefault(new["prompt"], new)
    rows = list(pairs.values())
    return rows[:TRAIN], rows[TRAIN:]


def main() -> None:
    """Write both files."""
    for name, rows in zip(("train", "val"), make(), strict=True):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        Path(__file__).with_name(f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
