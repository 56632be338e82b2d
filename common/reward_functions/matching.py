"""Rewards that compare an answer with a reference text: choice, exact, F1, ROUGE-L, similarity."""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from common.reward_functions import answers
from common.reward_functions.errors import RewardError
from common.reward_functions.registry import Example, register

_CJK = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3040-\u30ff\uac00-\ud7af"
_TOKEN = re.compile(rf"[{_CJK}]|[^\W_]+", re.UNICODE)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation + "，。！？；：、“”‘’（）《》【】…—·")
_LETTER = re.compile(r"(?<![A-Za-z])\(?([A-Z])\)?(?![A-Za-z'])")
_CHOSEN = re.compile(
    r"(?:answer|option|choice|choose|答案|选项|選項|选择|选|選)"
    r"(?:\s{1,3}(?:is|should be)|\s{0,3}[是为為])?\s{0,3}(?:option|choice)?"
    r"\s{0,3}[:：]?\s{0,3}[*(（\[]{0,4}\s{0,3}([A-Z])(?![A-Za-z'])",
    re.IGNORECASE,
)


def references(truth: Any) -> list[str]:
    """Every accepted reference: a string is one, a list is several, a dict gives its `target` or `answers`.

    Raises:
        RewardError: none, or an empty one.
    """
    if isinstance(truth, Mapping):
        truth = truth.get("target", truth.get("answers", truth.get("text")))
    many = [truth] if isinstance(truth, str | int | float) else truth
    if not isinstance(many, Sequence) or not many or any(not str(item).strip() for item in many):
        raise RewardError(f"a text or a list of texts is needed as ground truth, not {truth!r}")
    return [str(item) for item in many]


def tokens(text: str) -> list[str]:
    """Words in lower case; a Chinese, Japanese or Korean character is a word of its own."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())


def normalise(text: str) -> str:
    """Case, width, punctuation, English articles and extra spaces removed (the SQuAD rule)."""
    text = unicodedata.normalize("NFKC", text).casefold().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def statement(response: str, whole: bool) -> str:
    """The part of a response to judge: the marked final answer, else all of it after the thinking."""
    text = answers.after_thinking(response).strip()
    if whole:
        return text
    found = answers.final_answer(response)
    return found.text if found is not None and found.how in ("boxed", "tag", "hashes", "phrase") else text


@register(
    "multiple_choice",
    low=0.0,
    high=1.0,
    source="MMLU-style letter matching (Hendrycks et al. 2020)",
    gold=lambda truth, extra: f"The answer is ({truth}).",
    examples=(
        Example("I think it is late. The answer is (B).", "B", 1.0),
        Example("所以选 C。", "C", 1.0),
        Example("A is wrong, B is wrong, so \\boxed{D}", "D", 1.0),
        Example("The answer is A.", "B", 0.0),
        Example("All of them could be right.", "A", 0.0),
    ),
)
def multiple_choice(
    solution_str: str,
    ground_truth: Any,
    data_source: str = "",
    extra_info: Mapping[str, Any] | None = None,
    *,
    letters: str = "ABCDEFGHIJ",
) -> dict[str, Any]:
    """Whether the letter chosen in the answer is the gold one.

    The letter is taken from `\\boxed{}`, `<answer>`, "the answer is X" / 选 X, else from an answer that
    holds one
    single letter. Several letters ("AC") are a set.

    Args:
        letters: the letters that options may have.
    """
    gold = frozenset(str(ground_truth).strip().upper().strip("()."))
    if not gold or not gold <= set(letters):
        raise RewardError(f"multiple_choice needs letters of {letters} as ground truth, not {ground_truth!r}")
    chosen = _chosen(solution_str, letters)
    right = chosen == gold
    return {
        "score": float(right),
        "acc": float(right),
        "answered": float(bool(chosen)),
        "pred": "".join(sorted(chosen)),
        "reason": f"chose {''.join(sorted(chosen)) or 'nothing'}, gold {''.join(sorted(gold))}",
    }


def _chosen(response: str, letters: str) -> frozenset[str]:
    text = answers.after_thinking(response)
    found = answers.final_answer(response)
    if found is not None and found.how in ("boxed", "tag", "hashes"):
        inside = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", found.text).strip().upper().strip("().*。 ")
        compact = re.sub(r"[\s,，、()]+|AND", "", inside)
        if compact and set(compact) <= set(letters) and len(set(compact)) == len(compact):
            return frozenset(compact)
        first = re.match(r"([A-Z])\s*[).:：、]", inside)
        return frozenset(first.group(1)) if first and first.group(1) in letters else frozenset()
    stated = [letter.upper() for letter in _CHOSEN.findall(text) if letter.upper() in letters]
    if stated:
        return frozenset(stated[-1])
    alone = {letter for letter in _LETTER.findall(text) if letter in letters}
    # "I" and "A" are English words; a bare letter counts only in a short answer.
    return frozenset(alone) if len(alone) == 1 and len(text.split()) <= 3 else frozenset()


@register(
    "exact_match",
    low=0.0,
    high=1.0,
    source="SQuAD exact match (Rajpurkar et al. 2016)",
    examples=(
        Example("The Eiffel Tower.", "Eiffel tower", 1.0),
        Example("<answer>北京</answer>", ["北京", "北京市"], 1.0),
        Example("Paris or London", "Paris", 0.0),
        Example("eiffel tower", "Eiffel Tower", 0.0, kwargs={"strict": True}),
    ),
)
def exact_match(
    solution_str: str,
    ground_truth: Any,
    data_source: str = "",
    extra_info: Mapping[str, Any] | None = None,
    *,
    strict: bool = False,
) -> dict[str, Any]:
    """Whether the answer is a reference, letter case, punctuation and articles apart.

    Args:
        strict: compare character by character, only outer white space removed.
    """
    answer = statement(solution_str, whole=False)
    golds = references(ground_truth)
    right = (
        answer.strip() in {g.strip() for g in golds} if strict else normalise(answer) in map(normalise, golds)
    )
    return {"score": float(right), "acc": float(right), "pred": answer[:200]}


@register(
    "contains",
    low=0.0,
    high=1.0,
    source="substring accuracy of open-domain QA (DPR, Karpukhin et al. 2020)",
    examples=(
        Example("It was built in Paris, France.", "Paris", 1.0),
        Example("It was built in Parisville.", "Paris", 0.0),
    ),
)
def contains(
    solution_str: str,
    ground_truth: Any,
    data_source: str = "",
    extra_info: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Whether a reference occurs in the answer as whole words.

    Long answers gain from it: add a length reward.
    """
    said = f" {' '.join(tokens(statement(solution_str, whole=True)))} "
    right = any(f" {' '.join(tokens(gold))} " in said for gold in references(ground_truth))
    return {"score": float(right), "acc": float(right)}


def f1_of(left: Sequence[str], right: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the tokens, with counts; 0 where either side has none."""
    shared = sum((Counter(left) & Counter(right)).values())
    return 2 * shared / (len(left) + len(right)) if shared else 0.0


@register(
    "f1",
    low=0.0,
    high=1.0,
    source="SQuAD F1 (Rajpurkar et al. 2016); characters for Chinese, as in CMRC 2018",
    examples=(
        Example("the Eiffel Tower", "The Eiffel Tower", 1.0),
        Example("<answer>中国北京</answer>", "北京", 2 / 3),
        Example("London", "Paris", 0.0),
    ),
)
def f1(
    solution_str: str,
    ground_truth: Any,
    data_source: str = "",
    extra_info: Mapping[str, Any] | None = None,
    *,
    threshold: float = 1.0,
) -> dict[str, Any]:
    """Best token F1 with any reference; Chinese by characters.

    Args:
        threshold: F1 from which `acc` is 1.
    """
    answer = tokens(normalise(statement(solution_str, whole=False)))
    best = max(f1_of(answer, tokens(normalise(gold))) for gold in references(ground_truth))
    return {"score": best, "acc": float(best >= threshold)}


def longest_common(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence; bit-parallel (Hyyro 2004), so long answers stay cheap."""
    where: dict[str, int] = {}
    for index, token in enumerate(left):
        where[token] = where.get(token, 0) | 1 << index
    ones = row = (1 << len(left)) - 1
    for token in right:
        matched = row & where.get(token, 0)
        row = ((row + matched) | (row - matched)) & ones
    return len(left) - bin(row).count("1")


@register(
    "rouge_l",
    low=0.0,
    high=1.0,
    source="ROUGE-L F-measure (Lin 2004); characters for Chinese",
    examples=(
        Example("the cat sat on the mat", "the cat sat on the mat", 1.0),
        Example("police kill the gunman", "police killed the gunman", 0.75),
        Example("今天天气很好", "今天天气不错", 2 / 3),
    ),
)
def rouge_l(
    solution_str: str,
    ground_truth: Any,
    data_source: str = "",
    extra_info: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Best ROUGE-L F1 with any reference, over the whole answer after the thinking."""
    answer = tokens(statement(solution_str, whole=True))
    return {"score": max(_rouge(answer, tokens(gold)) for gold in references(ground_truth))}


def _rouge(answer: Sequence[str], gold: Sequence[str]) -> float:
    shared = longest_common(gold, answer)
    return 2 * shared / (len(answer) + len(gold)) if shared else 0.0


@register(
    "similarity",
    low=0.0,
    high=1.0,
    source="cosine of character trigram counts (Damashek 1995)",
    examples=(
        Example("The cat sat.", "the cat sat", 1.0),
        Example("abcd", "abce", 0.5),
        Example("", "a b", 0.0),
    ),
)
def similarity(
    solution_str: str,
    ground_truth: Any,
    data_source: str = "",
    extra_info: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """How alike answer and nearest reference are in spelling, whatever the order of their parts."""
    answer = _trigrams(statement(solution_str, whole=True))
    return {"score": max(_cosine(answer, _trigrams(gold)) for gold in references(ground_truth))}


def _trigrams(text: str) -> Counter[str]:
    text = normalise(text)
    return Counter(text[index : index + 3] for index in range(max(1, len(text) - 2))) if text else Counter()


def _cosine(left: Counter[str], right: Counter[str]) -> float:
    shared = sum(count * right[gram] for gram, count in left.items())
    size = math.sqrt(sum(c * c for c in left.values()) * sum(c * c for c in right.values()))
    return min(1.0, shared / size) if size else 0.0
