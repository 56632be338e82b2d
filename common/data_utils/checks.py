"""The single checks of a quality report. Each sees every row once and then tells its findings."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from typing import Any, Protocol

from common.data_utils import reward_check
from common.data_utils.answers import is_missing
from common.data_utils.duplicates import NearDuplicates
from common.data_utils.findings import Finding, Histogram, Place, histogram
from common.data_utils.language import language_of
from common.data_utils.records import Message, Rejected, Row
from common.data_utils.targets import prompt_text

_POSITION = re.compile(r"\[\d+\]")
_QUOTED = re.compile(r"'[^']*'|\d+")


class Check(Protocol):
    """A check: `see` gets each training row with its source row, `finish` the outcome."""

    def see(self, place: Place, source: Row, row: Row) -> None: ...

    def finish(self, stats: dict[str, Any]) -> list[Finding]: ...


def turns_of(row: Row) -> list[Message]:
    """All messages of a training row, both sides of a pair included."""
    if "messages" in row:
        return list(row["messages"])
    return [*row["prompt"], *row.get("chosen", ()), *row.get("rejected", ())]


class BadRows:
    """Rows that cannot be converted, by field and reason."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], Finding] = {}

    def add(self, rejected: Rejected) -> None:
        """Note a rejected row."""
        field = _POSITION.sub("[]", rejected.field)
        key = field, _QUOTED.sub("_", rejected.reason)
        if key not in self.found:
            self.found[key] = Finding("bad_row", "error", f"{field}: {rejected.reason}")
        self.found[key].add(Place(rejected.file, rejected.row))

    def finish(self, stats: dict[str, Any]) -> list[Finding]:
        """One finding per reason, the most frequent first."""
        return sorted(self.found.values(), key=lambda finding: -finding.count)


class Schema:
    """Types per source column, holes and mixtures among them."""

    def __init__(self) -> None:
        self.types: dict[str, Counter[str]] = {}
        self.odd: dict[tuple[str, str], list[Place]] = {}
        self.blank: dict[str, Finding] = {}
        self.rows = 0

    def see(self, place: Place, source: Row, row: Row | None) -> None:
        """Called for bad rows too, with `row` None."""
        self.rows += 1
        for name, value in source.items():
            kind = "missing" if value is None or value != value else type(value).__name__
            counts = self.types.setdefault(name, Counter())
            counts[kind] += 1
            places = self.odd.setdefault((name, kind), [])
            if len(places) < 20:
                places.append(place)
            if isinstance(value, str) and is_missing(value):
                text = f"column {name!r} is empty or only white space"
                self.blank.setdefault(name, Finding("blank", "info", text)).add(place)

    def finish(self, stats: dict[str, Any]) -> list[Finding]:
        stats["columns"] = {name: dict(counts) for name, counts in self.types.items()}
        found = list(self.blank.values())
        for name, counts in self.types.items():
            kinds = {kind: number for kind, number in counts.items() if kind != "missing"}
            if len(kinds) > 1 and set(kinds) != {"int", "float"}:
                common = max(kinds, key=lambda kind: kinds[kind])
                rest = {kind: number for kind, number in kinds.items() if kind != common}
                listed = ", ".join(f"{number} {kind}" for kind, number in rest.items())
                finding = Finding(
                    "mixed_types", "warning", f"column {name!r} is mostly {common}, but also {listed}"
                )
                finding.count = sum(rest.values())
                finding.rows = [place for kind in rest for place in self.odd[name, kind]]
                found.append(finding)
        return found


class Roles:
    """Order of the roles: system first and once, user and assistant in turn, tool after a call."""

    def __init__(self) -> None:
        self.order = Finding(
            "roles_order", "warning", "roles out of order (many chat templates refuse such rows)"
        )
        self.tail = Finding(
            "no_last_answer", "warning", "ends without an assistant turn: its end is not learned"
        )
        self.turns: Counter[int] = Counter()

    def see(self, place: Place, source: Row, row: Row) -> None:
        turns = row.get("messages") or row["prompt"]
        problem = role_problem(turns)
        if problem:
            self.order.add(place, problem)
        if "messages" in row and turns[-1]["role"] != "assistant":
            self.tail.add(place)
        self.turns[sum(turn["role"] == "user" for turn in turns)] += 1

    def finish(self, stats: dict[str, Any]) -> list[Finding]:
        stats["user_turns"] = dict(sorted(self.turns.items()))
        return [self.order, self.tail]


def role_problem(turns: list[Message]) -> str | None:
    """What is wrong with the order of roles, or None."""
    before = ""
    for position, turn in enumerate(turns):
        role = turn["role"]
        if role == "system" and position:
            return f"system message at position {position + 1}"
        if role == "user" and before == "user":
            return f"two user messages in a row at position {position + 1}"
        if role == "assistant" and before in ("", "system"):
            return "the conversation starts with the assistant"
        if role == "assistant" and before == "assistant":
            return f"two assistant messages in a row at position {position + 1}"
        if role == "tool" and before not in ("tool", "assistant"):
            return f"tool message after {before or 'nothing'} at position {position + 1}"
        before = role
    return None


class Duplicates:
    """Exact duplicates of rows and of prompts."""

    def __init__(self) -> None:
        self.rows: dict[bytes, Place] = {}
        self.prompts: dict[bytes, Place] = {}
        self.same = Finding("duplicate", "warning", "the whole row repeats an earlier row")
        self.again = Finding(
            "duplicate_prompt", "info", "the prompt repeats an earlier row's, with another answer"
        )

    def see(self, place: Place, source: Row, row: Row) -> None:
        prompt = prompt_text(row)
        answers = [turn["content"] for turn in turns_of(row)]
        truth = str(row.get("reward_model", {}).get("ground_truth", ""))
        whole = _hash("\x1e".join([prompt, *answers, truth]))
        first = self.rows.setdefault(whole, place)
        if first is not place:
            self.same.add(place, f"row {place.row} of {place.file} = row {first.row} of {first.file}")
            return
        earlier = self.prompts.setdefault(_hash(prompt), place)
        if earlier is not place:
            self.again.add(place, f"row {place.row} = row {earlier.row}")

    def finish(self, stats: dict[str, Any]) -> list[Finding]:
        return [self.same, self.again]


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=12).digest()


class NearDuplicatePrompts:
    """Prompts that nearly equal an earlier one (exact repetitions are `Duplicates`' matter)."""

    def __init__(self, threshold: float) -> None:
        self.index = NearDuplicates(threshold)
        self.seen: set[bytes] = set()
        self.places: list[Place] = []
        text = f"the prompt nearly equals an earlier one (estimated Jaccard similarity >= {threshold:g})"
        self.near = Finding("near_duplicate", "warning", text)

    def see(self, place: Place, source: Row, row: Row) -> None:
        prompt = prompt_text(row)
        key = _hash(prompt)
        if key in self.seen:
            return
        self.seen.add(key)
        self.places.append(place)
        match = self.index.add(prompt)
        if match is not None:
            first = self.places[match]
            self.near.add(place, f"row {place.row} of {place.file} ~ row {first.row} of {first.file}")

    def finish(self, stats: dict[str, Any]) -> list[Finding]:
        return [self.near]


class Leak:
    """Validation prompts that training has seen: its rows go through `see`, then the others `see_val`."""

    def __init__(self, near: NearDuplicatePrompts | None) -> None:
        self.near_index = near
        self.train: dict[bytes, Place] = {}
        self.exact = Finding("leak", "error", "validation prompt stands in training too: its score is void")
        self.close = Finding("near_leak", "warning", "validation prompt nearly equals a training prompt")
        self.rows = 0

    def see(self, place: Place, source: Row, row: Row) -> None:
        self.train.setdefault(_hash(prompt_text(row)), place)

    def see_val(self, place: Place, row: Row) -> None:
        """A validation row, after all training rows."""
        self.rows += 1
        prompt = prompt_text(row)
        first = self.train.get(_hash(prompt))
        if first is not None:
            self.exact.add(place, f"row {place.row} of {place.file} = row {first.row} of {first.file}")
        elif self.near_index is not None:
            match = self.near_index.index.nearest(prompt)
            if match is not None:
                first = self.near_index.places[match]
                self.close.add(place, f"row {place.row} of {place.file} ~ row {first.row} of {first.file}")

    def finish(self, stats: dict[str, Any]) -> list[Finding]:
        stats["validation_rows"] = self.rows
        return [self.exact, self.close]


class Texts:
    """Languages, lost characters, lengths in characters, and the length bias of pairs."""

    def __init__(self) -> None:
        self.languages: Counter[str] = Counter()
        self.lost = Finding(
            "replacement_characters", "warning", "holds U+FFFD: text was lost in an earlier conversion"
        )
        self.lengths: list[int] = []
        self.pairs: list[tuple[int, int]] = []

    def see(self, place: Place, source: Row, row: Row) -> None:
        texts = [turn["content"] for turn in turns_of(row)]
        texts.append(str(row.get("reward_model", {}).get("ground_truth", "")))
        whole = "\n".join(texts)
        self.languages[language_of(whole)] += 1
        if "\ufffd" in whole:
            self.lost.add(place)
        self.lengths.append(sum(map(len, texts)))
        if "chosen" in row:
            sides = [sum(len(turn["content"]) for turn in row[name]) for name in ("chosen", "rejected")]
            self.pairs.append((sides[0], sides[1]))

    def finish(self, stats: dict[str, Any]) -> list[Finding]:
        total = sum(self.languages.values())
        stats["languages"] = {name: round(count / total, 4) for name, count in self.languages.most_common()}
        return [self.lost, *self._bias(stats)]

    def _bias(self, stats: dict[str, Any]) -> list[Finding]:
        if not self.pairs:
            return []
        longer = sum(chosen > rejected for chosen, rejected in self.pairs) / len(self.pairs)
        equal = sum(chosen == rejected for chosen, rejected in self.pairs) / len(self.pairs)
        means = [sum(pair[side] for pair in self.pairs) / len(self.pairs) for side in (0, 1)]
        stats["preference_lengths"] = {
            "chosen_longer": round(longer, 4),
            "equal": round(equal, 4),
            "mean_chosen_chars": round(means[0], 1),
            "mean_rejected_chars": round(means[1], 1),
        }
        decided = 1 - equal
        share = longer / decided if decided else 0.5
        # A fair coin over n pairs strays by more than 3 * 0.5 / sqrt(n) less than three times in a thousand.
        if abs(share - 0.5) > max(0.1, 1.5 / len(self.pairs) ** 0.5):
            side = "longer" if share > 0.5 else "shorter"
            much = f"{max(share, 1 - share):.0%}"
            text = f"length bias: the chosen answer is the {side} one in {much} of the pairs that differ"
            finding = Finding("length_bias", "warning", text)
            finding.count = len(self.pairs)
            return [finding]
        return []

    def histograms(self) -> list[Histogram]:
        """Lengths in characters; for pairs, of both sides."""
        if not self.lengths:
            return []
        if not self.pairs:
            return [histogram("characters per row", self.lengths)]
        return [
            histogram("characters of chosen", [pair[0] for pair in self.pairs]),
            histogram("characters of rejected", [pair[1] for pair in self.pairs]),
        ]


class RewardCheck:
    """Ground truths the run's reward cannot use."""

    def __init__(self, name: str) -> None:
        self.reward = reward_check.load(name)
        self.found = Finding("reward", "error", f"the reward {name} cannot use the ground truth")
        self.rows = 0

    def see(self, place: Place, source: Row, row: Row) -> None:
        self.rows += 1
        problem = reward_check.problem_with(self.reward, row)
        if problem:
            truth = str(row["reward_model"]["ground_truth"])
            self.found.add(place, f"row {place.row}: {problem}; ground truth {truth[:60]!r}")

    def finish(self, stats: dict[str, Any]) -> list[Finding]:
        stats["reward_checked_rows"] = self.rows
        return [self.found]
