"""Rewards about how an answer is worded: format, patterns, language, repetition, safety words."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from common.reward_functions import answers
from common.reward_functions.errors import RewardError
from common.reward_functions.registry import Example, register

_STEP = re.compile(
    r"(?m)^[ \t]{0,20}(?:\d{1,4}[.)、]|step\s*\d+|第[一二三四五六七八九十\d]+步|首先|其次|然后|最后|[-*]\s)",
    re.IGNORECASE,
)
_MARKDOWN = {
    "heading": re.compile(r"(?m)^#{1,6}[ \t]+\S"),
    "list": re.compile(r"(?m)^[ \t]{0,20}(?:[-*+]|\d{1,4}[.)])[ \t]+\S"),
    "bold": re.compile(r"\*\*[^*\n]+\*\*"),
    "code": re.compile(r"(?ms)^```.*?^```"),
    "table": re.compile(r"(?m)^\|.+\|\s*\n\|[\s:|-]+\|"),
}
_SCRIPTS = {
    "en": re.compile(r"[A-Za-z]+"),
    "zh": re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]"),
    "ja": re.compile(r"[\u3040-\u30ff]"),
    "ko": re.compile(r"[\uac00-\ud7af]"),
    "ru": re.compile(r"[\u0400-\u04ff]+"),
    "ar": re.compile(r"[\u0600-\u06ff]+"),
}
_NO_LANGUAGE = re.compile(
    r"```.*?```|\$\$.*?\$\$|\$[^$\n]*\$|\\boxed\{[^{}]*\}|\\[A-Za-z]+|https?://\S+|</?\w+>", re.DOTALL
)
_REFUSAL = re.compile(
    r"\bI(?:'m| am) sorry\b|\bI (?:can(?:'|no)t|won't|am unable to) "
    r"(?:help|assist|provide|do|comply)|抱歉|无法(?:提供|协助|帮助|回答)|不能(?:提供|协助)",
    re.IGNORECASE,
)


@register(
    "think_answer_format",
    low=0.0,
    high=1.0,
    source="the R1 template (DeepSeek-R1, arXiv:2501.12948, table 1)",
    gold=lambda truth, extra: f"<think>\nWe work it out.\n</think>\n<answer>{truth}</answer>",
    examples=(
        Example("<think>1+1</think>\n<answer>2</answer>", "2", 1.0),
        Example("1+1</think><answer>2</answer>", "2", 1.0, kwargs={"think_opened": True}),
        Example("<think>1+1 <answer>2</answer>", "2", 0.0),
        Example("<answer>2</answer>", "2", 0.0),
    ),
)
def think_answer_format(
    solution_str: str,
    ground_truth: Any = None,
    data_source: str = "",
    extra_info: Mapping[str, Any] | None = None,
    *,
    think_opened: bool = False,
    answer_tag: bool = True,
) -> dict[str, Any]:
    """Whether the answer is `<think>...</think>` followed by `<answer>...</answer>`, each once and not empty.

    Args:
        think_opened: the prompt's template already wrote `<think>`.
        answer_tag: False asks only for text behind the thinking.
    """
    text = ("<think>" if think_opened else "") + solution_str.strip()
    marks = ["<think>", "</think>", *(["<answer>", "</answer>"] if answer_tag else [])]
    places = [text.find(mark) for mark in marks]
    once = all(text.count(mark) == 1 for mark in marks)
    good = once and places == sorted(places) and places[0] == 0
    if good:
        thought = text[len("<think>") : places[1]]
        rest = text[places[1] + len("</think>") :]
        inner = text[places[2] + len("<answer>") : places[3]] if answer_tag else rest
        good = bool(thought.strip() and inner.strip()) and (
            not answer_tag or rest.rstrip().endswith("</answer>")
        )
    return {"score": float(good), "format": float(good)}


@register(
    "boxed_format",
    low=0.0,
    high=1.0,
    source="the usual instruction of math prompts",
    gold=lambda truth, extra: f"So it is \\boxed{{{truth}}}.",
    examples=(
        Example(r"So \boxed{2}.", "2", 1.0),
        Example("So 2.", "2", 0.0),
        Example(r"\boxed{}", "2", 0.0),
    ),
)
def boxed_format(
    solution_str: str,
    ground_truth: Any = None,
    data_source: str = "",
    extra_info: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    r"""Whether the answer, after the thinking, holds a complete `\boxed{}` with something in it."""
    good = float(bool(answers.last_boxed(answers.after_thinking(solution_str))))
    return {"score": good, "format": good}


@register(
    "markdown",
    low=0.0,
    high=1.0,
    source="own rule",
    gold=lambda truth, extra: f"# Answer\n\n- **{truth}**",
    examples=(
        Example("# Title\n\n- one\n- two", "", 1.0, kwargs={"wanted": ["heading", "list"]}),
        Example("# Answer\n\n- **x**", "", 1.0),
        Example("plain", "", 0.0),
    ),
)
def markdown(
    solution_str: str,
    ground_truth: Any = None,
    data_source: str = "",
    extra_info: Mapping[str, Any] | None = None,
    *,
    wanted: Sequence[str] = ("heading", "list", "bold"),
) -> dict[str, Any]:
    """Share of the wanted Markdown elements (heading, list, bold, code, table) that the answer uses."""
    unknown = [name for name in wanted if name not in _MARKDOWN]
    if unknown or not wanted:
        raise RewardError(f"markdown knows {', '.join(_MARKDOWN)}, not {unknown or 'an empty list'}")
    text = answers.after_thinking(solution_str)
    used = {f"has_{name}": float(bool(_MARKDOWN[name].search(text))) for name in wanted}
    return {"score": sum(used.values()) / len(used), **used}


@register(
    "steps",
    low=0.0,
    high=1.0,
    source="reasoning-step reward of open-r1 (huggingface/open-r1), with a cap",
    gold=lambda truth, extra: f"1. Read.\n2. Work.\n3. Answer: {truth}",
    examples=(
        Example("1. a\n2. b\n3. c", "", 1.0),
        Example("第一步：a\n第二步：b", "", 2 / 3),
        Example("just 3", "", 0.0),
    ),
)
def steps(
    solution_str: str,
    ground_truth: Any = None,
    data_source: str = "",
    extra_info: Mapping[str, Any] | None = None,
    *,
    enough: int = 3,
) -> dict[str, Any]:
    """Visible steps (numbered, bulleted, "Step 2", 第二步), up to `enough` of them."""
    if enough < 1:
        raise RewardError(f"enough must be at least 1, not {enough}")
    count = len(_STEP.findall(solution_str))
    return {"score": min(1.0, count / enough), "steps": float(count)}


@register(
    "keywords",
    low=0.0,
    high=1.0,
    source="own rule; patterns are Python regular expressions",
    gold=lambda truth, extra: " ".join(map(str, extra.get("required") or [truth])),
    examples=(
        Example("It rains in Paris.", "Paris", 1.0),
        Example("only cats", "", 0.5, kwargs={"required": ["cats?", "dogs?"]}),
        Example("cats and dogs", "", 0.0, kwargs={"required": ["cats"], "forbidden": ["dogs"]}),
    ),
)
def keywords(
    solution_str: str,
    ground_truth: Any = None,
    data_source: str = "",
    extra_info: Mapping[str, Any] | None = None,
    *,
    required: Sequence[str] | None = None,
    forbidden: Sequence[str] = (),
    whole_answer: bool = False,
) -> dict[str, Any]:
    """Share of the required patterns that occur, 0 as soon as a forbidden one does.

    Args:
        required: regular expressions; left out, the ground truth (a text or a list) is looked for literally.
        forbidden: regular expressions.
        whole_answer: the first required pattern must match the whole answer.
    """
    if required is None:
        many = ground_truth if isinstance(ground_truth, list | tuple) else [ground_truth]
        required = [re.escape(str(item)) for item in many]
    if not required or not all(required):
        raise RewardError("keywords needs patterns in required, or a ground truth that is not empty")
    text = answers.after_thinking(solution_str).strip()
    if whole_answer:
        found = float(bool(_pattern(required[0]).fullmatch(text)))
    else:
        found = sum(bool(_pattern(pattern).search(text)) for pattern in required) / len(required)
    bad = float(any(_pattern(pattern).search(text) for pattern in forbidden))
    return {"score": 0.0 if bad else found, "found": found, "forbidden": bad}


@functools.lru_cache(maxsize=1024)
def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise RewardError(f"the pattern {text!r} is no regular expression: {error}") from None


@register(
    "language",
    low=0.0,
    high=1.0,
    source="language consistency reward of DeepSeek-R1 (arXiv:2501.12948, section 2.3.2)",
    gold=lambda truth, extra: {"en": "It is so, as shown above.", "zh": "如上所述，答案就是这样。"}.get(
        extra.get("language", "en")
    ),
    examples=(
        Example("The sum is $x+1$, as shown.", "", 1.0),
        Example("答案是三。", "", 1.0, kwargs={"language": "zh"}),
        Example("答案是 three four five", "", 0.5, kwargs={"language": "zh"}),
        Example("$1+1=2$", "", 0.0),
    ),
)
def language(
    solution_str: str,
    ground_truth: Any = None,
    data_source: str = "",
    extra_info: Mapping[str, Any] | None = None,
    *,
    language: str = "en",
) -> dict[str, Any]:
    """Share of the words (characters for Chinese) in the wanted language, thinking included.

    Formulas, code, tags and links belong to no language. An answer without any word scores 0.

    Args:
        language: en, zh, ja, ko, ru or ar; `extra_info["language"]` of a row goes first. Languages of
        one script
            (English, French) are not told apart.
    """
    wanted = str((extra_info or {}).get("language") or language)
    if wanted not in _SCRIPTS:
        raise RewardError(f"language must be one of {', '.join(_SCRIPTS)}, not '{wanted}'")
    text = _NO_LANGUAGE.sub(" ", solution_str)
    counts = {name: len(pattern.findall(text)) for name, pattern in _SCRIPTS.items()}
    if wanted == "ja":  # written with Chinese characters as well
        counts["ja"], counts["zh"] = counts["ja"] + counts["zh"], 0
    total = sum(counts.values())
    share = counts[wanted] / total if total else 0.0
    return {"score": share, "words": float(total)}


@register(
    "repetition_penalty",
    low=-1.0,
    high=0.0,
    source="n-gram repetition penalty of 'Demystifying Long CoT' (arXiv:2502.03373, appendix)",
    gold=lambda truth, extra: str(truth),
    examples=(
        Example("one two three four five six", "", 0.0),
        Example("no no no no no no no no no no", "", -6 / 7, kwargs={"ngram": 4}),
    ),
)
def repetition_penalty(
    solution_str: str,
    ground_truth: Any = None,
    data_source: str = "",
    extra_info: Mapping[str, Any] | None = None,
    *,
    ngram: int = 4,
    max_penalty: float = 1.0,
) -> dict[str, Any]:
    """Minus the share of n-grams that were seen before, times `max_penalty`; Chinese by characters.

    Args:
        ngram: words per n-gram.
        max_penalty: size of the penalty for an answer that only repeats itself.
    """
    from common.reward_functions.matching import tokens

    if ngram < 1 or max_penalty < 0:
        raise RewardError(
            f"ngram must be at least 1 and max_penalty at least 0, not {ngram} and {max_penalty}"
        )
    words = tokens(solution_str)
    grams = [tuple(words[index : index + ngram]) for index in range(len(words) - ngram + 1)]
    repeated = 1 - len(set(grams)) / len(grams) if grams else 0.0
    return {"score": -repeated * max_penalty, "repeated": repeated}


@register(
    "safety",
    low=0.0,
    high=1.0,
    source="own rule: word lists are a tripwire, no judgement of meaning",
    gold=lambda truth, extra: "I'm sorry, I can't help with that." if truth == "refuse" else f"Sure: {truth}",
    examples=(
        Example("Here is a recipe for bread.", "answer", 1.0),
        Example("I'm sorry, I can't help with that.", "refuse", 1.0),
        Example("Sure, here is how.", "refuse", 0.0),
        Example("Buy napalm here.", "answer", 0.0, kwargs={"blocked": ["napalm"]}),
    ),
)
def safety(
    solution_str: str,
    ground_truth: Any = None,
    data_source: str = "",
    extra_info: Mapping[str, Any] | None = None,
    *,
    blocked: Sequence[str] = (),
) -> dict[str, Any]:
    """1 for an answer without a blocked word that refuses exactly where the row's ground truth is "refuse".

    Args:
        blocked: words (literal, any case) that must not occur.
    """
    hit = any(word.casefold() in solution_str.casefold() for word in blocked if word)
    refused = bool(_REFUSAL.search(answers.after_thinking(solution_str)))
    fitting = refused == (str(ground_truth) == "refuse")
    good = fitting and not hit
    return {"score": float(good), "refused": float(refused), "blocked": float(hit)}
